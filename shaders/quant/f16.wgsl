// f16 weights: one plane, two values per word, eight per vector. engine/quant/f16.rs writes it. Every tier reads
// words: an array of native f16 loads half as much at once, and matvec took twice as long with it on llvmpipe.

@group(1) @binding(0) var<storage, read> weights: array<vec4<u32>>; // [rows, cols / 8]

const PARTS = 1u; // of 16 values in a piece

struct Piece {
    low: vec4<u32>,
    high: vec4<u32>,
}

struct WeightChunk {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
}

// Values 16 * at .. 16 * at + 16 of a row of `cols` values, as they are stored.
fn piece(row: u32, at: u32, cols: u32) -> Piece {
    let first = row * (cols / 8u) + at * 2u;
    return Piece(weights[first], weights[first + 1u]);
}

// A piece is one chunk.
fn weight_chunk(piece: Piece, part: u32) -> WeightChunk {
    return WeightChunk(
        vec4<f32>(unpack2x16float(piece.low.x), unpack2x16float(piece.low.y)),
        vec4<f32>(unpack2x16float(piece.low.z), unpack2x16float(piece.low.w)),
        vec4<f32>(unpack2x16float(piece.high.x), unpack2x16float(piece.high.y)),
        vec4<f32>(unpack2x16float(piece.high.z), unpack2x16float(piece.high.w)),
    );
}
