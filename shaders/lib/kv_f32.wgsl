// Four values of an f32 KV cache. kv_q8_0.wgsl documents the names.

alias Kv4 = vec4<f32>;

fn kv_load(values: Kv4, scales: Kv4, c: u32) -> vec4<f32> {
    return values;
}

fn kv_word(values: vec4<f32>, at: u32) -> Kv4 {
    return values;
}

fn k_load(row: u32, c: u32) -> vec4<f32> {
    return kv_load(k_cache[row + c], Kv4(), c);
}

fn v_load(row: u32, c: u32) -> vec4<f32> {
    return kv_load(v_cache[row + c], Kv4(), c);
}

// f32 has no scales.
fn kv_note(values: vec4<f32>, at: u32) {}

fn kv_scales(at: u32) -> Kv4 {
    return Kv4();
}
