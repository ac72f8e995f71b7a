// q4_0 weights as integers, for product/rows_int8.wgsl and product/tile_int8.wgsl: the eight nibbles of a word become
// two words of four bytes, the even values and the odd ones. q4_0.wgsl has the layout.

@group(1) @binding(0) var<storage, read> quants: array<vec4<u32>>; // [rows, cols / 32]
@group(1) @binding(1) var<storage, read> scales: array<u32>; // [rows, ceil(cols / 64)]

// A block: 32 integers and their scale.
struct Piece {
    a: vec4<u32>,
    b: vec4<u32>,
    scale: f32,
}

// Eight values of x in the order of the weight's: even ones in the first word, odd ones in the second.
fn packed(p: vec4<i32>, q: vec4<i32>) -> vec2<u32> {
    return vec2<u32>(pack4xI8(vec4<i32>(p.xz, q.xz)), pack4xI8(vec4<i32>(p.yw, q.yw)));
}

// Each nibble minus 8, in bytes: adding 0x78 carries into no other byte, and flipping the top bit turns
// n + 120 into the two's complement of n - 8.
fn bytes_of(words: vec2<u32>) -> vec4<u32> {
    let nibbles = vec4<u32>(words.x, words.x >> 4u, words.y, words.y >> 4u) & vec4<u32>(0x0f0f0f0fu);
    return (nibbles + vec4<u32>(0x78787878u)) ^ vec4<u32>(0x80808080u);
}

// Values 32 * block .. 32 * block + 32 of a row of `cols` values.
fn piece(row: u32, block: u32, cols: u32) -> Piece {
    let words = quants[row * (cols / 32u) + block];
    let pair = unpack2x16float(scales[row * ((cols + 32u) / 64u) + block / 2u]);
    let scale = select(pair.x, pair.y, (block & 1u) == 1u);
    return Piece(bytes_of(words.xy), bytes_of(words.zw), scale);
}
