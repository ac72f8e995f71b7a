// q/k norm, RoPE and the write to the KV cache, in one pass over the packed projection.
//   q, k heads: y = x * w * rsqrt(mean(x^2) + eps), then rotate-half with cos, sin of position + t
//   q goes to q[t,h,:], k and v to slot position + t of their caches
// One workgroup per head and token (q, k and v heads alike); invocation i holds the vectors i and
// i + Dh/8 of the head, the two that RoPE pairs, so nothing is exchanged but the sum of squares.
// Against three kernels: q and k are read once instead of three times, and two launches are saved.

override WG: u32 = 32;

struct Params {
    half: u32, // Dh / 8: vectors of half a head, at most WG
    query_heads: u32, // H
    kv_heads: u32, // Hkv
    tokens: u32, // T
    context: u32, // S
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> qkv: array<vec4<f32>>; // [T, H + 2 Hkv, Dh / 4]
@group(0) @binding(2) var<storage, read> q_weight: array<vec4<f32>>; // [Dh / 4]
@group(0) @binding(3) var<storage, read> k_weight: array<vec4<f32>>; // [Dh / 4]
@group(0) @binding(4) var<storage, read> table: array<vec4<f32>>; // [S, 2, Dh / 8]: cos, sin
@group(0) @binding(5) var<storage, read> position: array<u32>; // [1]
@group(0) @binding(6) var<storage, read_write> q: array<vec4<f32>>; // [T, H, Dh / 4]
@group(0) @binding(7) var<storage, read_write> k_cache: array<Kv4>; // [Hkv, S, Dh / 4]
@group(0) @binding(8) var<storage, read_write> v_cache: array<Kv4>; // [Hkv, S, Dh / 4]

var<workgroup> scratch: array<f32, WG>; // of reduce_add

@compute @workgroup_size(WG)
fn main(at: Invocation) {
    let head = at.group.x;
    let t = at.group.y;
    let i = at.index;
    let j = i + params.half;
    let head_vectors = 2u * params.half;
    let owns = i < params.half;
    let source = (t * (params.query_heads + 2u * params.kv_heads) + head) * head_vectors;
    var a = vec4<f32>(0.0);
    var b = vec4<f32>(0.0);
    if owns {
        a = qkv[source + i];
        b = qkv[source + j];
    }
    let mean = reduce_add(dot(a, a) + dot(b, b), at) / f32(4u * head_vectors);
    if !owns {
        return;
    }
    let slot = min(position[0], params.context - params.tokens) + t;
    if head >= params.query_heads + params.kv_heads {
        let to = ((head - params.query_heads - params.kv_heads) * params.context + slot) * head_vectors;
        v_cache[to + i] = kv_store(a);
        v_cache[to + j] = kv_store(b);
        return;
    }
    let is_query = head < params.query_heads;
    let scale = inverseSqrt(mean + params.eps);
    a *= scale * select(k_weight[i], q_weight[i], is_query);
    b *= scale * select(k_weight[j], q_weight[j], is_query);
    let c = table[slot * head_vectors + i];
    let s = table[slot * head_vectors + j];
    let low = a * c - b * s;
    let high = b * c + a * s;
    if is_query {
        let to = (t * params.query_heads + head) * head_vectors;
        q[to + i] = low;
        q[to + j] = high;
    } else {
        let to = ((head - params.query_heads) * params.context + slot) * head_vectors;
        k_cache[to + i] = kv_store(low);
        k_cache[to + j] = kv_store(high);
    }
}
