// Causal grouped-query attention of a step of T tokens over the KV cache, with online softmax.
//   out[t,h,:] = sum_s softmax_s(q[t,h,:] . k[h/G,s,:] / sqrt(Dh)) * v[h/G,s,:],   s <= position + t
// With groups of G = H / Hkv heads, query row r of a kv head is member r % G of token r / G, so one tile of keys
// serves the whole group. A workgroup takes some rows of one kv head and loops over tiles of keys up to the last
// one that its rows see; later tiles are never read. Workgroups with the longest loops start first.
// lib/attention_f32.wgsl has the loop, lib/attention_coop.wgsl the one on matrix units.

const LOWEST: f32 = -3e38; // below every score; a difference of two never overflows to NaN

override COLS: u32 = 16; // Dh / 4
override STRIDE: u32 = 16; // Kv4s of a cached row

struct Params {
    tokens: u32, // T
    query_heads: u32, // H
    kv_heads: u32, // Hkv
    capacity: u32, // S
    stride: u32, // vectors from one token of q to the next
    last_tile: u32, // tiles of rows, less one
    slices: u32, // COLS / SLICE, f32 only; a constant would unroll the loop: 2.5x the compile time at Dh 64 (lavapipe)
    scale: f32, // log2(e) / sqrt(Dh): the softmax is in powers of two
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>; // [T, stride], H heads first
@group(0) @binding(2) var<storage, read> k_cache: array<Kv4>; // [Hkv, S, STRIDE]
@group(0) @binding(3) var<storage, read> v_cache: array<Kv4>; // [Hkv, S, STRIDE]
@group(0) @binding(4) var<storage, read> position: array<u32>; // [1]
@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>; // [T, H, Dh / 4]

// Where a query row's head starts in a buffer of `stride` vectors a token.
fn head_start(kv_head: u32, row: u32, stride: u32) -> u32 {
    let members = params.query_heads / params.kv_heads;
    return row / members * stride + (kv_head * members + row % members) * COLS;
}

// Stores a vector of a row's output, unless the row lies past the end.
fn store(kv_head: u32, row: u32, c: u32, value: vec4<f32>) {
    if row < params.tokens * (params.query_heads / params.kv_heads) {
        out[head_start(kv_head, row, params.query_heads * COLS) + c] = value;
    }
}
