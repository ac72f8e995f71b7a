// Everything between the qkv projection and attention, in one dispatch.
//   q[t,h,:]                  = rope(norm(qkv[t,h,:]) * q_weight),       h < H
//   k_cache[h,place(t),:]     = rope(norm(qkv[t,H+h,:]) * k_weight),     h < Hkv
//   v_cache[h,place(t),:]     = qkv[t,H+Hkv+h,:]
//   norm(x) = x * rsqrt(mean(x^2) + eps);   rope as in rope.wgsl, row place(t) of `table`
// LANES invocations share a head; each has vector `lane` of both halves, which is what rotate-half
// pairs, so a head stays in registers from its only read to its only write. A workgroup of 64 takes 8
// heads of Dh 64. f32 throughout; an f16 cache rounds once, an adapter without f16 maybe toward zero.
// Saves two launches and the round trips of normalised and of turned heads. All 8 storage buffers of
// WebGPU's default limits are in use.

override WG: u32 = 64;
override LANES: u32 = 8; // Dh / 8

struct Params {
    tokens: u32, // T
    query_heads: u32, // H
    kv_heads: u32, // Hkv
    slots: u32,
    capacity: u32, // S
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> qkv: array<vec4<f32>>; // [T, H + 2 Hkv, Dh / 4]
@group(0) @binding(2) var<storage, read> q_weight: array<vec4<f32>>; // [Dh / 4]
@group(0) @binding(3) var<storage, read> k_weight: array<vec4<f32>>; // [Dh / 4]
@group(0) @binding(4) var<storage, read> table: array<vec4<f32>>; // [S, Dh / 4]: cosines, then sines
@group(0) @binding(5) var<storage, read> position: array<u32>; // [1], of a batch [T, 2]
@group(0) @binding(6) var<storage, read_write> q: array<vec4<f32>>; // [T, H, Dh / 4]
@group(0) @binding(7) var<storage, read_write> k_cache: array<Kv4>; // [slots, Hkv, S, Dh / 4]
@group(0) @binding(8) var<storage, read_write> v_cache: array<Kv4>; // [slots, Hkv, S, Dh / 4]

var<workgroup> scratch: array<f32, WG>; // of head_sum

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let keys_end = params.query_heads + params.kv_heads;
    let heads = keys_end + params.kv_heads;
    let wanted = (group.x * WG + index) / LANES;
    let row = min(wanted, params.tokens * heads - 1u); // past the end: repeats the last, stores nothing
    let token = row / heads;
    let head = row % heads;
    let lane = index % LANES;
    var low = qkv[row * 2u * LANES + lane];
    var high = qkv[row * 2u * LANES + LANES + lane];
    let squares = head_sum(dot(low, low) + dot(high, high), index);
    if wanted != row {
        return;
    }
    let stands = place(token);
    let cache = slot(token) * params.kv_heads;
    if head < keys_end {
        let is_query = head < params.query_heads;
        let scale = inverseSqrt(squares / f32(8u * LANES) + params.eps);
        low *= select(k_weight[lane], q_weight[lane], is_query) * scale;
        high *= select(k_weight[lane + LANES], q_weight[lane + LANES], is_query) * scale;
        let cosine = table[stands * 2u * LANES + lane];
        let sine = table[stands * 2u * LANES + LANES + lane];
        let turned = low * cosine - high * sine;
        high = high * cosine + low * sine;
        low = turned;
    }
    if head < params.query_heads {
        let to = (token * params.query_heads + head) * 2u * LANES + lane;
        q[to] = low;
        q[to + LANES] = high;
    } else if head < keys_end {
        let to = ((cache + head - params.query_heads) * params.capacity + stands) * 2u * LANES + lane;
        k_cache[to] = kv_store(low);
        k_cache[to + LANES] = kv_store(high);
    } else {
        let to = ((cache + head - keys_end) * params.capacity + stands) * 2u * LANES + lane;
        v_cache[to] = kv_store(low);
        v_cache[to + LANES] = kv_store(high);
    }
}
