// f32 weights: one plane of four values a vector. engine/quant/f32.rs writes it.

@group(1) @binding(0) var<storage, read> weights: array<vec4<f32>>; // [rows, cols / 4]

const PARTS = 1u; // of 16 values in a piece

alias Piece = Weight16;

struct Weight16 {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
}

// Values 16 * chunk .. 16 * chunk + 16 of a row of `cols` values.
fn weight16(row: u32, chunk: u32, cols: u32) -> Weight16 {
    let at = row * (cols / 4u) + chunk * 4u;
    return Weight16(weights[at], weights[at + 1u], weights[at + 2u], weights[at + 3u]);
}

// The same, for loops over pieces of 16 bytes or more.
fn piece(row: u32, at: u32, cols: u32) -> Piece {
    return weight16(row, at, cols);
}

fn part16(piece: Piece, part: u32) -> Weight16 {
    return piece;
}
