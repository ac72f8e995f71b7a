// q8_0 weights: 16 bytes are 16 values, so a chunk is one vector load; scales are f16, one for each 32
// values, in their own plane. engine/quant/q8_0.rs writes both.

@group(1) @binding(0) var<storage, read> quants: array<vec4<u32>>; // [rows, cols / 16]
@group(1) @binding(1) var<storage, read> scales: array<u32>; // [rows, ceil(cols / 64)]

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
    let words = quants[row * (cols / 16u) + chunk];
    let block = chunk / 2u;
    let pair = unpack2x16float(scales[row * ((cols + 32u) / 64u) + block / 2u]);
    let scale = select(pair.x, pair.y, (block & 1u) == 1u);
    return Weight16(
        vec4<f32>(unpack4xI8(words.x)) * scale,
        vec4<f32>(unpack4xI8(words.y)) * scale,
        vec4<f32>(unpack4xI8(words.z)) * scale,
        vec4<f32>(unpack4xI8(words.w)) * scale,
    );
}

// The same, for loops over pieces of 16 bytes or more.
fn piece(row: u32, at: u32, cols: u32) -> Piece {
    return weight16(row, at, cols);
}

fn part16(piece: Piece, part: u32) -> Weight16 {
    return piece;
}
