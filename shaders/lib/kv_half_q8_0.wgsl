// Four values of a q8_0 KV cache for matrix units: rounded and clamped to f16. kv_q8_0.wgsl documents the layout
// of a row; kv_half_f16.wgsl defines the same names.

enable f16;

alias Kv4 = u32;

const MOST_HALF = 65504.0; // the largest f16

fn half_of(word: Kv4, scales: Kv4, c: u32) -> vec4<f16> {
    let pair = unpack2x16float(scales);
    let values = vec4<f32>(unpack4xI8(word)) * select(pair.x, pair.y, ((c / 8u) & 1u) == 1u);
    return vec4<f16>(clamp(values, vec4<f32>(-MOST_HALF), vec4<f32>(MOST_HALF)));
}

fn k_half(row: u32, c: u32) -> vec4<f16> {
    return half_of(k_cache[row + c], k_cache[row + COLS + c / 16u], c);
}

fn v_half(row: u32, c: u32) -> vec4<f16> {
    return half_of(v_cache[row + c], v_cache[row + COLS + c / 16u], c);
}
