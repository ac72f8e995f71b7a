// The sums that an invocation of tile_f32.wgsl or tile_int8.wgsl keeps in registers.

// The products of a token with four rows, 8 apart, and with the four that follow in a tile of 64.
struct Rows {
    low: vec4<f32>,
    high: vec4<f32>,
}

// The sums of each token of an invocation. Members of tokens that a tile does not have are never touched.
struct Sums {
    a0: Rows,
    a1: Rows,
    a2: Rows,
    a3: Rows,
    a4: Rows,
    a5: Rows,
    a6: Rows,
    a7: Rows,
}
