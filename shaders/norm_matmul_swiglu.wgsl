// Gate and up projections of the RMSNorm of several tokens with their SwiGLU product.
//   y = x[t,:] * norm * rsqrt(mean(x[t,:]^2) + eps)
//   out[t,f] = silu(W[f,:] . y) * (W[F+f,:] . y),   silu(g) = g / (1 + exp(-g))
// The tile is that of matmul_swiglu.wgsl. Squares are added up while x is staged, and scale what comes out
// (lib/tile_normed.wgsl). f32 accumulation. Tokens and outputs past the end repeat the last one, unwritten.

struct Params {
    cols: u32, // K, a multiple of 32
    ffn_dim: u32, // F
    tokens: u32, // T
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [T, K / 4]
@group(0) @binding(2) var<storage, read> norm: array<vec4<f32>>; // [K / 4]
@group(0) @binding(3) var<storage, read_write> out: array<f32>; // [T, F]

fn x_row(token: u32) -> u32 {
    return min(token, params.tokens - 1u);
}
