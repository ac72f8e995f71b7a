// Four values of an f16 KV cache without the f16 feature. The other kv_*.wgsl define the same names;
// kv_q8_0.wgsl documents them.

alias Kv4 = vec2<u32>;

fn kv_load(words: Kv4, scales: Kv4, c: u32) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
}

fn kv_word(values: vec4<f32>, at: u32) -> Kv4 {
    return vec2<u32>(pack2x16float(values.xy), pack2x16float(values.zw));
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
