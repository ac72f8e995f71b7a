// Four values of an f16 KV cache with the f16 feature, which rounds to nearest even where pack2x16float may
// round toward zero. Loads are those of kv_f16.wgsl: native f16 loads are half as wide and took 10 % longer in
// decode attention (llvmpipe, Mesa 25). kv_q8_0.wgsl documents the names.

enable f16;

alias Kv4 = vec2<u32>;

fn kv_load(words: Kv4, scales: Kv4, c: u32) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
}

fn kv_word(values: vec4<f32>, at: u32) -> Kv4 {
    let rounded = vec4<f32>(vec4<f16>(values));
    return vec2<u32>(pack2x16float(rounded.xy), pack2x16float(rounded.zw));
}

fn k_load(row: u32, c: u32) -> vec4<f32> {
    return kv_load(k_cache[row + c], Kv4(), c);
}

fn v_load(row: u32, c: u32) -> vec4<f32> {
    return kv_load(v_cache[row + c], Kv4(), c);
}

// f16 has no scales.
fn kv_note(values: vec4<f32>, at: u32) {}

fn kv_scales(at: u32) -> Kv4 {
    return Kv4();
}
