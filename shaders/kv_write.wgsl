// Appends the keys and values of a step to the KV cache of a layer.
//   k_cache[h, position_of(t), :] = qk[t, H + h, :];   v_cache[h, position_of(t), :] = qkv[t, H + Hkv + h, :]
// Each invocation moves one vector of the keys and the same one of the values: neighbours write neighbouring
// vectors of a cache row. Values are rounded once, to the format of the cache; without the f16 feature an
// adapter may round toward zero, as WGSL allows. Bound by the launch: qk_norm_rope saves it.

override WG: u32 = 64;
override COLS: u32 = 16; // Dh / 4
override STRIDE: u32 = 16; // Kv4s of a cached row

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
@group(0) @binding(4) var<storage, read_write> k_cache: array<Kv4>; // [slots, Hkv, S, STRIDE]
@group(0) @binding(5) var<storage, read_write> v_cache: array<Kv4>; // [slots, Hkv, S, STRIDE]

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let col = id.x % COLS;
    let wanted = id.x / COLS;
    let row = min(wanted, params.tokens * params.kv_heads - 1u); // past the end: repeats the last, stores nothing
    let token = row / params.kv_heads;
    let head = row % params.kv_heads;
    let heads = params.query_heads + params.kv_heads;
    let key = qk[(token * heads + params.query_heads + head) * COLS + col];
    let value = qkv[(token * (heads + params.kv_heads) + heads + head) * COLS + col];
    kv_note(key, index);
    kv_note(value, index + WG);
    workgroupBarrier();
    if wanted != row {
        return;
    }
    let to = ((slot(token) * params.kv_heads + head) * params.capacity + position_of(token)) * STRIDE;
    k_cache[to + col] = kv_word(key, index);
    v_cache[to + col] = kv_word(value, index + WG);
    if STRIDE > COLS && col % 16u == 0u {
        k_cache[to + COLS + col / 16u] = kv_scales(index);
        v_cache[to + COLS + col / 16u] = kv_scales(index + WG);
    }
}
