// Four values of an f16 KV cache for matrix units; kv_half_q8_0.wgsl defines the same names.

enable f16;

alias Kv4 = vec4<f16>;

fn k_half(row: u32, c: u32) -> vec4<f16> {
    return k_cache[row + c];
}

fn v_half(row: u32, c: u32) -> vec4<f16> {
    return v_cache[row + c];
}
