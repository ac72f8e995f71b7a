// Appends the keys and values of a step to the KV cache of a layer.
//   k_cache[h, place(t), :] = qk[t, H + h, :];   v_cache[h, place(t), :] = qkv[t, H + Hkv + h, :]
// Each invocation moves one vector of the keys and the same one of the values: neighbours write
// neighbouring vectors of a cache row. An f16 cache rounds here, once; an adapter without the f16
// feature may round toward zero, as WGSL allows. Bound by the launch: qk_norm_rope saves it.

override WG: u32 = 64;
override COLS: u32 = 16; // Dh / 4

struct Params {
    tokens: u32, // T
    query_heads: u32, // H
    kv_heads: u32, // Hkv
    slots: u32,
    capacity: u32, // S
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> qk: array<vec4<f32>>; // [T, H + Hkv, Dh / 4]
@group(0) @binding(2) var<storage, read> qkv: array<vec4<f32>>; // [T, H + 2 Hkv, Dh / 4]
@group(0) @binding(3) var<storage, read> position: array<u32>; // [1], of a batch [T, 2]
@group(0) @binding(4) var<storage, read_write> k_cache: array<Kv4>; // [slots, Hkv, S, Dh / 4]
@group(0) @binding(5) var<storage, read_write> v_cache: array<Kv4>; // [slots, Hkv, S, Dh / 4]

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let col = id.x % COLS;
    let row = id.x / COLS;
    if row >= params.tokens * params.kv_heads {
        return;
    }
    let token = row / params.kv_heads;
    let head = row % params.kv_heads;
    let heads = params.query_heads + params.kv_heads;
    let key = (token * heads + params.query_heads + head) * COLS + col;
    let value = (token * (heads + params.kv_heads) + heads + head) * COLS + col;
    let to = ((slot(token) * params.kv_heads + head) * params.capacity + place(token)) * COLS + col;
    k_cache[to] = kv_store(qk[key]);
    v_cache[to] = kv_store(qkv[value]);
}
