// Rotary position embedding of each head, rotate-half (NeoX) layout: value j pairs with j + Dh/2.
//   out[t,h,j]        = x[t,h,j] * cos - x[t,h,j+Dh/2] * sin
//   out[t,h,j+Dh/2]   = x[t,h,j+Dh/2] * cos + x[t,h,j] * sin
//   cos, sin of the angle position_of(t) * theta^(-2j/Dh), j < Dh/2, from row position_of(t) of `table`
// Each invocation rotates four pairs: one vector of each half of a head.
// Numerics: the host computes the table in f64, because WGSL bounds the error of sin and cos only within
// [-pi, pi] and angles reach thousands. It also saves 2 transcendentals per pair; all heads of a token share
// its row, so it comes from cache.

override WG: u32 = 64;
override LANES: u32 = 8; // Dh / 8

struct Params {
    tokens: u32, // T
    heads: u32,
    capacity: u32, // S
    slots: u32, // 1: rope does not use the cache
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [T, heads, Dh / 4]
@group(0) @binding(2) var<storage, read> table: array<vec4<f32>>; // [S, Dh / 4]: cosines, then sines
@group(0) @binding(3) var<storage, read> position: array<u32>; // [1], of a batch [T, 2]
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>; // [T, heads, Dh / 4]

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let lane = id.x % LANES;
    let row = id.x / LANES;
    if row >= params.tokens * params.heads {
        return;
    }
    let angle = position_of(row / params.heads) * 2u * LANES + lane;
    let at = row * 2u * LANES + lane;
    let low = x[at];
    let high = x[at + LANES];
    let cosine = table[angle];
    let sine = table[angle + LANES];
    out[at] = low * cosine - high * sine;
    out[at + LANES] = high * cosine + low * sine;
}
