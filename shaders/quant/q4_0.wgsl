// q4_0 weights: 8 bytes are 16 values in nibbles, value = (nibble - 8) * scale; scales are f16, one for
// each 32 values, in their own plane. engine/quant/q4_0.rs writes both.

@group(1) @binding(0) var<storage, read> quants: array<vec2<u32>>; // [rows, cols / 16]
@group(1) @binding(1) var<storage, read> scales: array<u32>; // [rows, ceil(cols / 64)]

struct Weight16 {
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

// Values 16 * chunk .. 16 * chunk + 16 of a row of `cols` values.
fn weight16(row: u32, chunk: u32, cols: u32) -> Weight16 {
    let words = quants[row * (cols / 16u) + chunk];
    let block = chunk / 2u;
    let pair = unpack2x16float(scales[row * ((cols + 32u) / 64u) + block / 2u]);
    let scale = select(pair.x, pair.y, (block & 1u) == 1u);
    return Weight16(
        nibbles(words.x) * scale,
        nibbles(words.x >> 16u) * scale,
        nibbles(words.y) * scale,
        nibbles(words.y >> 16u) * scale,
    );
}
