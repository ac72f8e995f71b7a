// f16 weights with the f16 feature: one plane of four values a vector. engine/quant/f16.rs writes it;
// f16.wgsl reads the same bytes without the feature. (naga 30 turns a bitcast of a word to vec2<f16>
// into a conversion, so words cannot be shared between the two.)

enable f16;

@group(1) @binding(0) var<storage, read> weights: array<vec4<f16>>; // [rows, cols / 4]

struct Weight16 {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
}

// Values 16 * chunk .. 16 * chunk + 16 of a row of `cols` values.
fn weight16(row: u32, chunk: u32, cols: u32) -> Weight16 {
    let at = row * (cols / 4u) + chunk * 4u;
    return Weight16(
        vec4<f32>(weights[at]),
        vec4<f32>(weights[at + 1u]),
        vec4<f32>(weights[at + 2u]),
        vec4<f32>(weights[at + 3u]),
    );
}
