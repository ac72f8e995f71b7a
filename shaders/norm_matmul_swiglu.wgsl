// Gate and up projections of the RMSNorm of several tokens with their SwiGLU product.
//   y = x[t,:] * norm * rsqrt(mean(x[t,:]^2) + eps)
//   out[t,f] = silu(W[f,:] . y) * (W[F+f,:] . y),   silu(g) = g / (1 + exp(-g))
// The tile is that of matmul_swiglu.wgsl, half gates and half ups of the same outputs. Squares are added up while
// x is staged, and scale what comes out (lib/tile_normed.wgsl). f32 accumulation; exp(-g) is kept finite. Tokens
// and outputs past the end repeat the last one, unwritten.

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

// The output at a place: of each 32 places, 16 are gates, and the 16 behind them their ups.
fn output(tile: u32, place: u32) -> u32 {
    return tile * (ROWS / 2u) + place / 32u * 16u + place % 16u;
}

// Those past the end are the last one.
fn weight_row(tile: u32, place: u32) -> u32 {
    return min(output(tile, place), params.ffn_dim - 1u) + place / 16u % 2u * params.ffn_dim;
}

fn x_row(token: u32) -> u32 {
    return min(token, params.tokens - 1u);
}

// Outputs f and f + 8 of one token from (gate f, gate f + 8, up f, up f + 8).
fn store(token: u32, tile: u32, place: u32, sums: vec4<f32>) {
    let products = sums.xy / (1.0 + exp(min(-sums.xy, vec2<f32>(88.0)))) * sums.zw;
    if token < params.tokens {
        let f = output(tile, place);
        let to = token * params.ffn_dim;
        if f < params.ffn_dim {
            out[to + f] = products.x;
        }
        if f + 8u < params.ffn_dim {
            out[to + f + 8u] = products.y;
        }
    }
}
