// q8_0 weights: 16 bytes hold 16 values, so a chunk is one vector load. Scales are f16, one per 32 values, in
// their own plane. engine/quant/q8_0.rs writes both.

@group(1) @binding(0) var<storage, read> quants: array<vec4<u32>>; // [rows, cols / 16]
@group(1) @binding(1) var<storage, read> scales: array<u32>; // [rows, ceil(cols / 64)]

const PARTS = 1u; // of 16 values in a piece

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

// Values 16 * at .. 16 * at + 16 of a row of `cols` values, as they are stored.
fn piece(row: u32, at: u32, cols: u32) -> Piece {
    let block = at / 2u;
    let pair = unpack2x16float(scales[row * ((cols + 32u) / 64u) + block / 2u]);
    return Piece(quants[row * (cols / 16u) + at], select(pair.x, pair.y, (block & 1u) == 1u));
}

// A piece is one chunk.
fn weight_chunk(piece: Piece, part: u32) -> WeightChunk {
    return WeightChunk(
        vec4<f32>(unpack4xI8(piece.words.x)) * piece.scale,
        vec4<f32>(unpack4xI8(piece.words.y)) * piece.scale,
        vec4<f32>(unpack4xI8(piece.words.z)) * piece.scale,
        vec4<f32>(unpack4xI8(piece.words.w)) * piece.scale,
    );
}
