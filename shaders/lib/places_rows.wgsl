// The places of a tile of lib/tile_*.wgsl, where each is a row of the weight and a column of out. The including kernel
// has rows, row0, tokens and width among its params, and binds out. places_gated.wgsl defines the same names.

// Those past the end are the last one.
fn weight_row(tile: u32, place: u32) -> u32 {
    return min(tile * ROWS + place, params.rows - 1u);
}

// Rows place, place + 8, place + 16 and place + 24 of a tile, of one token.
fn store(token: u32, tile: u32, place: u32, sums: vec4<f32>) {
    if token < params.tokens {
        let row = tile * ROWS + place;
        let to = token * params.width + params.row0;
        for (var b = 0u; b < 4u; b++) {
            if row + 8u * b < params.rows {
                out[to + row + 8u * b] = sums[b];
            }
        }
    }
}
