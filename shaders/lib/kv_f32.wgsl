// Four values of an f32 KV cache. kv_f16.wgsl and kv_f16_native.wgsl define the same names.

alias Kv4 = vec4<f32>;

fn kv_load(values: Kv4) -> vec4<f32> {
    return values;
}

fn kv_store(values: vec4<f32>) -> Kv4 {
    return values;
}
