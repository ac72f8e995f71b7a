// Sampling by every row of a step of drafted tokens: row r draws what stands behind token r, for which the tokens up
// to it are seen, and nothing else changes. draw_last.wgsl says what the names mean.

fn table_of(row: u32) -> u32 {
    return 0u;
}

fn next_of(row: u32) -> u32 {
    return position[0] + row + 1u;
}

fn seen_from(row: u32) -> u32 {
    return 0u;
}

fn drafted(lanes: vec4<u32>, row: u32, window: u32) -> vec4<bool> {
    var found = vec4<bool>(false);
    for (var i = row + 1u - min(row, window); i <= row; i++) {
        found = found | (lanes == vec4<u32>(ids[i]));
    }
    return found;
}

fn publish(row: u32, id: u32, next: u32) {
    history[row] = id;
}
