// f32 weights: one plane, four values per vector. engine/quant/f32.rs writes it.

@group(1) @binding(0) var<storage, read> weights: array<vec4<f32>>; // [rows, cols / 4]

const PARTS = 1u; // of 16 values in a piece

alias Piece = WeightChunk;

struct WeightChunk {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
}

// Values 16 * at .. 16 * at + 16 of a row of `cols` values, as they are stored.
fn piece(row: u32, at: u32, cols: u32) -> Piece {
    let first = row * (cols / 4u) + at * 4u;
    return Piece(weights[first], weights[first + 1u], weights[first + 2u], weights[first + 3u]);
}

// A piece is one chunk.
fn weight_chunk(piece: Piece, part: u32) -> WeightChunk {
    return piece;
}
