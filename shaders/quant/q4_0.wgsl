// q4_0 weights: 16 bytes hold 32 values in nibbles, value = (nibble - 8) * scale, so a piece is one vector load
// and one scale. Scales are f16, one per 32 values, in their own plane. engine/quant/q4_0.rs writes both.

@group(1) @binding(0) var<storage, read> quants: array<vec4<u32>>; // [rows, cols / 32]
@group(1) @binding(1) var<storage, read> scales: array<u32>; // [rows, ceil(cols / 64)]

const PARTS = 2u; // of 16 values in a piece

struct Piece {
    words: vec4<u32>,
    scale: f32,
}

struct WeightChunk {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
}

// The four values whose nibbles are the low half of `word`.
fn nibbles(word: u32) -> vec4<f32> {
    let quads = (vec4<u32>(word) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u);
    return vec4<f32>(quads) - 8.0;
}

// Values 32 * at .. 32 * at + 32 of a row of `cols` values, as they are stored.
fn piece(row: u32, at: u32, cols: u32) -> Piece {
    let pair = unpack2x16float(scales[row * ((cols + 32u) / 64u) + at / 2u]);
    return Piece(quants[row * (cols / 32u) + at], select(pair.x, pair.y, (at & 1u) == 1u));
}

// Part 0 or 1 of a piece.
fn weight_chunk(piece: Piece, part: u32) -> WeightChunk {
    let words = select(piece.words.xy, piece.words.zw, part == 1u);
    return WeightChunk(
        nibbles(words.x) * piece.scale,
        nibbles(words.x >> 16u) * piece.scale,
        nibbles(words.y) * piece.scale,
        nibbles(words.y >> 16u) * piece.scale,
    );
}
