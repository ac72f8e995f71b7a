// Two f16 values in a u32 word, converted by f16 hardware. half_packed.wgsl defines the same names.

enable f16;

fn half2_load(word: u32) -> vec2<f32> {
    return vec2<f32>(bitcast<vec2<f16>>(word));
}

fn half2_store(values: vec2<f32>) -> u32 {
    return bitcast<u32>(vec2<f16>(values));
}
