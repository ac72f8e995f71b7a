// Sampling by the last row of a step: the token goes to ids[0] and to the history, where the sequence goes on by
// itself. draw_rows.wgsl and draw_batch.wgsl define the same names.

// The options of a row.
fn table_of(row: u32) -> u32 {
    return 0u;
}

// The index that the token has in its sequence.
fn next_of(row: u32) -> u32 {
    return position[0] + params.advance;
}

// Where the row's sequence begins in `last_seen`.
fn seen_from(row: u32) -> u32 {
    return 0u;
}

// Which of four ids occurred within the window unknown to `last_seen`.
fn drafted(lanes: vec4<u32>, row: u32, window: u32) -> vec4<bool> {
    return vec4<bool>(false);
}

fn publish(row: u32, id: u32, next: u32) {
    ids[0] = id;
    history[min(next, params.capacity)] = id;
    position[0] = next;
    if id < params.vocabulary {
        last_seen[id] = next + 1u;
    }
}
