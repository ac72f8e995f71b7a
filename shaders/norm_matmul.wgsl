// Matrix times the RMSNorm of several vectors, one for each token: the last R rows of x.
//   out[r, row0 + n] = rsqrt(mean(x[t,:]^2) + eps) * (W[n,:] . (x[t,:] * norm)),   t = T - R + r
// A workgroup computes a tile of tokens x rows in registers (lib/tile_*.wgsl), adds up the squares of its tokens
// while it stages them and scales what comes out (lib/tile_normed.wgsl): in place of a launch and a round trip of
// [R, K]. f32 accumulation. Tokens and rows past the end repeat the last one, unwritten.
// The norms and rotations of q and k and the write of k and v to the cache are no part of this epilogue: with
// them it would bind x, norm, two weights of heads, the table, the position, q, both caches and the planes of
// the weight, 10 or 11 storage buffers where WebGPU has 8. They are qk_norm_rope.wgsl.

struct Params {
    cols: u32, // K, a multiple of 32
    rows: u32, // of this part of the weight
    row0: u32, // where the part begins in out
    tokens: u32, // R
    width: u32, // N
    first_row: u32, // T - R
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [T, K / 4]
@group(0) @binding(2) var<storage, read> norm: array<vec4<f32>>; // [K / 4]
@group(0) @binding(3) var<storage, read_write> out: array<f32>; // [R, N]

fn x_row(token: u32) -> u32 {
    return params.first_row + min(token, params.tokens - 1u);
}
