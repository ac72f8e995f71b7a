// Sampling by every row of a batch: each has options of its own and stands at (position, slot) of `position`, where
// what it draws is noted as seen and becomes the row's id, as in token/rows.wgsl. draw_last.wgsl says what the names mean.

fn table_of(row: u32) -> u32 {
    return row;
}

fn next_of(row: u32) -> u32 {
    return position[2u * row] + 1u;
}

fn seen_from(row: u32) -> u32 {
    return min(position[2u * row + 1u], params.slots - 1u) * params.vocabulary;
}

fn drafted(lanes: vec4<u32>, row: u32, window: u32) -> vec4<bool> {
    return vec4<bool>(false);
}

fn publish(row: u32, id: u32, next: u32) {
    history[row] = id;
    ids[row] = id;
    if id < params.vocabulary {
        last_seen[seen_from(row) + id] = next + 1u;
    }
}
