// Four values of an f16 KV cache without the f16 feature. kv_f16_native.wgsl and kv_f32.wgsl define the
// same names.

alias Kv4 = vec2<u32>;

fn kv_load(words: Kv4) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
}

fn kv_store(values: vec4<f32>) -> Kv4 {
    return vec2<u32>(pack2x16float(values.xy), pack2x16float(values.zw));
}
