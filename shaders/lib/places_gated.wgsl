// The places of a tile of lib/tile_*.wgsl, where the weight is gate rows and then up rows: half of the tile are gates,
// the others the ups of the same outputs. The four rows of a `store` are gate and up of 2 outputs, so their product
// needs no exchange. exp(-g) is kept finite. The including kernel has ffn_dim and tokens among its params, and binds
// out. places_rows.wgsl defines the same names.

// The output at a place: of each 32 places, 16 are gates, and the 16 behind them their ups.
fn output(tile: u32, place: u32) -> u32 {
    return tile * (ROWS / 2u) + place / 32u * 16u + place % 16u;
}

// Those past the end are the last one.
fn weight_row(tile: u32, place: u32) -> u32 {
    return min(output(tile, place), params.ffn_dim - 1u) + place / 16u % 2u * params.ffn_dim;
}

// Outputs f and f + 8 of one token from (gate f, gate f + 8, up f, up f + 8).
fn store(token: u32, tile: u32, place: u32, sums: vec4<f32>) {
    let products = sums.xy / (1.0 + exp(min(-sums.xy, vec2<f32>(88.0)))) * sums.zw;
    if token < params.tokens {
        let f = output(tile, place);
        let to = token * params.ffn_dim;
        if f < params.ffn_dim {
            out[to + f] = products.x;
        }
        if f + 8u < params.ffn_dim {
            out[to + f + 8u] = products.y;
        }
    }
}
