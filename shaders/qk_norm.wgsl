// RMSNorm of each query and key head over its own Dh values.
//   out[t,h,:] = qkv[t,h,:] * weight * rsqrt(mean(qkv[t,h,:]^2) + eps),   h < H + Hkv
//   weight = q_weight for h < H, else k_weight: one vector for all heads of a kind
// LANES invocations share a head, two vectors each, so a workgroup of 64 handles 8 heads of Dh 64; with one
// head per workgroup most invocations would idle. Sum and scale in f32. The head stays in registers between
// both passes, so qkv is read once.

override WG: u32 = 64;
override LANES: u32 = 8; // Dh / 8

struct Params {
    tokens: u32, // T
    query_heads: u32, // H
    kv_heads: u32, // Hkv
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> qkv: array<vec4<f32>>; // [T, H + 2 Hkv, Dh / 4]
@group(0) @binding(2) var<storage, read> q_weight: array<vec4<f32>>; // [Dh / 4]
@group(0) @binding(3) var<storage, read> k_weight: array<vec4<f32>>; // [Dh / 4]
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>; // [T, H + Hkv, Dh / 4]

var<workgroup> scratch: array<f32, WG>; // for head_sum

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let heads = params.query_heads + params.kv_heads;
    let slot = (group.x * WG + index) / LANES;
    let row = min(slot, params.tokens * heads - 1u); // past the end: repeats the last, stores nothing
    let head = row % heads;
    let lane = index % LANES;
    let source = (row / heads * (heads + params.kv_heads) + head) * 2u * LANES + lane;
    let low = qkv[source];
    let high = qkv[source + LANES];
    let squares = head_sum(dot(low, low) + dot(high, high), index);
    let scale = inverseSqrt(squares / f32(8u * LANES) + params.eps);
    let is_query = head < params.query_heads;
    if slot == row {
        let to = row * 2u * LANES + lane;
        out[to] = low * select(k_weight[lane], q_weight[lane], is_query) * scale;
        out[to + LANES] = high * select(k_weight[lane + LANES], q_weight[lane + LANES], is_query) * scale;
    }
}
