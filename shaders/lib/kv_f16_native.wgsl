// Four values of an f16 KV cache with the f16 feature. kv_f16.wgsl and kv_f32.wgsl define the same names.

enable f16;

alias Kv4 = vec4<f16>;

fn kv_load(values: Kv4) -> vec4<f32> {
    return vec4<f32>(values);
}

fn kv_store(values: vec4<f32>) -> Kv4 {
    return vec4<f16>(values);
}
