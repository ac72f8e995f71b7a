// Two f16 values in a u32 word, without the f16 feature. half_native.wgsl defines the same names.

fn half2_load(word: u32) -> vec2<f32> {
    return unpack2x16float(word);
}

fn half2_store(values: vec2<f32>) -> u32 {
    return pack2x16float(values);
}
