// Everything between the qkv projection and attention, in one dispatch.
//   q[t,h,:]                  = rope(norm(qkv[t,h,:]) * q_weight),       h < H
//   k_cache[h,position_of(t),:]     = rope(norm(qkv[t,H+h,:]) * k_weight),     h < Hkv
//   v_cache[h,position_of(t),:]     = qkv[t,H+Hkv+h,:]
//   norm(x) = x * rsqrt(mean(x^2) + eps);   rope as in rope.wgsl, row position_of(t) of `table`
// LANES invocations share a head; each holds vector `lane` of both halves, the pair of rotate-half, so a head
// stays in registers from its only read to its only write. A workgroup of 64 handles 8 heads of Dh 64.
// f32 throughout; an f16 cache rounds once, maybe toward zero without the f16 feature.
// Saves two launches and the round trips of normalised and of rotated heads. Uses all 8 storage buffers of
// WebGPU's default limits.

override WG: u32 = 64;
override LANES: u32 = 8; // Dh / 8
override COLS: u32 = 16; // Dh / 4
override STRIDE: u32 = 16; // Kv4s of a cached row

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
@group(0) @binding(7) var<storage, read_write> k_cache: array<Kv4>; // [slots, Hkv, S, STRIDE]
@group(0) @binding(8) var<storage, read_write> v_cache: array<Kv4>; // [slots, Hkv, S, STRIDE]

var<workgroup> scratch: array<f32, WG>; // for head_sum

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
    let stands = position_of(token);
    if head < keys_end {
        let is_query = head < params.query_heads;
        let scale = inverseSqrt(squares / f32(8u * LANES) + params.eps);
        low *= select(k_weight[lane], q_weight[lane], is_query) * scale;
        high *= select(k_weight[lane + LANES], q_weight[lane + LANES], is_query) * scale;
        let cosine = table[stands * COLS + lane];
        let sine = table[stands * COLS + LANES + lane];
        let turned = low * cosine - high * sine;
        high = high * cosine + low * sine;
        low = turned;
    }
    let at = index / LANES * COLS + lane; // index of the low vector in the workgroup
    kv_note(low, at);
    kv_note(high, at + LANES);
    workgroupBarrier();
    if wanted != row {
        return;
    }
    if head < params.query_heads {
        let to = (token * params.query_heads + head) * COLS + lane;
        q[to] = low;
        q[to + LANES] = high;
        return;
    }
    let kv_head = slot(token) * params.kv_heads + (head - params.query_heads) % params.kv_heads;
    let to = (kv_head * params.capacity + stands) * STRIDE;
    let words = vec2<u32>(to + lane, to + lane + LANES);
    if head < keys_end {
        k_cache[words.x] = kv_word(low, at);
        k_cache[words.y] = kv_word(high, at + LANES);
    } else {
        v_cache[words.x] = kv_word(low, at);
        v_cache[words.y] = kv_word(high, at + LANES);
    }
    // Some lanes also store the scales of 16 vectors.
    if lane >= STRIDE - COLS {
        return;
    }
    if head < keys_end {
        k_cache[to + COLS + lane] = kv_scales(at - lane + 16u * lane);
    } else {
        v_cache[to + COLS + lane] = kv_scales(at - lane + 16u * lane);
    }
}
