// f16 weights: one plane, two values a word, eight a vector. engine/quant/f16.rs writes it. Words serve
// every tier: arrays of native f16 load half as much at once, and matvec took twice as long with them
// on llvmpipe.

@group(1) @binding(0) var<storage, read> weights: array<vec4<u32>>; // [rows, cols / 8]

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
    let at = row * (cols / 8u) + chunk * 2u;
    let low = weights[at];
    let high = weights[at + 1u];
    return Weight16(
        vec4<f32>(unpack2x16float(low.x), unpack2x16float(low.y)),
        vec4<f32>(unpack2x16float(low.z), unpack2x16float(low.w)),
        vec4<f32>(unpack2x16float(high.x), unpack2x16float(high.y)),
        vec4<f32>(unpack2x16float(high.z), unpack2x16float(high.w)),
    );
}

// The same, for loops over pieces of 16 bytes or more.
fn piece(row: u32, at: u32, cols: u32) -> Piece {
    return weight16(row, at, cols);
}

fn part16(piece: Piece, part: u32) -> Weight16 {
    return piece;
}
