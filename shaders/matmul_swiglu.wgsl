// Gate and up projections of several tokens with their SwiGLU product.
//   out[t,f] = silu(W[f,:] . x[t,:]) * (W[F+f,:] . x[t,:]),   silu(g) = g / (1 + exp(-g))
// A workgroup computes a tile of tokens x rows in registers (lib/tile_*.wgsl), gates and ups of the same outputs
// (lib/places_gated.wgsl), so the [T, 2F] intermediate is never stored. f32 accumulation. Tokens and outputs past
// the end repeat the last one, unwritten.

struct Params {
    cols: u32, // K, a multiple of 32
    ffn_dim: u32, // F
    tokens: u32, // T
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [T, K / 4]
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // [T, F]

fn x_row(token: u32) -> u32 {
    return min(token, params.tokens - 1u);
}
