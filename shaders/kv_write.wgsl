// Appends the step's k and v heads to the cache.
//   k_cache[g, position + t, :] = qk[t, H + g, :];   v_cache[g, position + t, :] = qkv[t, H + Hkv + g, :]
// Invocation i copies vector i of k and of v. The cache keeps a KV head's tokens together, as attention
// reads them; kv_store rounds to the cache's element type.

override WG: u32 = 64;

struct Params {
    vectors: u32, // T * Hkv * Dh / 4
    head_vectors: u32, // Dh / 4
    query_heads: u32, // H
    kv_heads: u32, // Hkv
    tokens: u32, // T
    context: u32, // S
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> qk: array<vec4<f32>>; // [T, H + Hkv, Dh / 4]
@group(0) @binding(2) var<storage, read> qkv: array<vec4<f32>>; // [T, H + 2 Hkv, Dh / 4]
@group(0) @binding(3) var<storage, read> position: array<u32>; // [1]
@group(0) @binding(4) var<storage, read_write> k_cache: array<Kv4>; // [Hkv, S, Dh / 4]
@group(0) @binding(5) var<storage, read_write> v_cache: array<Kv4>; // [Hkv, S, Dh / 4]

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.vectors {
        return;
    }
    let i = id.x % params.head_vectors;
    let head = id.x / params.head_vectors % params.kv_heads;
    let t = id.x / params.head_vectors / params.kv_heads;
    let heads = params.query_heads + params.kv_heads;
    let slot = min(position[0], params.context - params.tokens) + t;
    let to = (head * params.context + slot) * params.head_vectors + i;
    k_cache[to] = kv_store(qk[(t * heads + params.query_heads + head) * params.head_vectors + i]);
    v_cache[to] = kv_store(qkv[(t * (heads + params.kv_heads) + heads + head) * params.head_vectors + i]);
}
