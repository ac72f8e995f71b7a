// q8_0 weights as integers, for product/rows_int8.wgsl and product/tile_int8.wgsl: the stored words, unchanged.
// q8_0.wgsl has the layout.

@group(1) @binding(0) var<storage, read> quants: array<vec4<u32>>; // [rows, cols / 16]
@group(1) @binding(1) var<storage, read> scales: array<u32>; // [rows, ceil(cols / 64)]

// A block: 32 integers and their scale.
struct Piece {
    a: vec4<u32>,
    b: vec4<u32>,
    scale: f32,
}

// Eight values of x in the order of the weight's: four per word.
fn packed(p: vec4<i32>, q: vec4<i32>) -> vec2<u32> {
    return vec2<u32>(pack4xI8(p), pack4xI8(q));
}

// Values 32 * block .. 32 * block + 32 of a row of `cols` values.
fn piece(row: u32, block: u32, cols: u32) -> Piece {
    let at = row * (cols / 16u) + 2u * block;
    let pair = unpack2x16float(scales[row * ((cols + 32u) / 64u) + block / 2u]);
    let scale = select(pair.x, pair.y, (block & 1u) == 1u);
    return Piece(quants[at], quants[at + 1u], scale);
}
