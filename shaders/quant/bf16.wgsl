// bf16 weights: one plane, two values per word, eight per vector; shifting a half to the top of a word gives its
// f32. engine/quant/bf16.rs writes it.

@group(1) @binding(0) var<storage, read> weights: array<vec4<u32>>; // [rows, cols / 8]

const PARTS = 1u; // of 16 values in a piece

alias Piece = WeightChunk;

struct WeightChunk {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
}

fn widen(words: vec2<u32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(
        words.x << 16u,
        words.x & 0xffff0000u,
        words.y << 16u,
        words.y & 0xffff0000u,
    ));
}

// Values 16 * at .. 16 * at + 16 of a row of `cols` values.
fn piece(row: u32, at: u32, cols: u32) -> Piece {
    let first = row * (cols / 8u) + at * 2u;
    let low = weights[first];
    let high = weights[first + 1u];
    return Piece(widen(low.xy), widen(low.zw), widen(high.xy), widen(high.zw));
}

// A piece is one chunk.
fn weight_chunk(piece: Piece, part: u32) -> WeightChunk {
    return piece;
}
