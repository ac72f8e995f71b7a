// Four values of an f16 KV cache with the f16 feature, which rounds to nearest even where
// pack2x16float may round toward zero. Words are loaded as without it: native f16 loads are half as wide
// and took 10 % longer in decode attention (llvmpipe, Mesa 25). kv_f16.wgsl and kv_f32.wgsl define the
// same names.

enable f16;

alias Kv4 = vec2<u32>;

fn kv_load(words: Kv4) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
}

fn kv_store(values: vec4<f32>) -> Kv4 {
    let rounded = vec4<f32>(vec4<f16>(values));
    return vec2<u32>(pack2x16float(rounded.xy), pack2x16float(rounded.zw));
}
