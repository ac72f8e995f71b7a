// Gate and up projections of several tokens with their SwiGLU product.
//   out[t,f] = silu(W[f,:] . x[t,:]) * (W[F+f,:] . x[t,:]),   silu(g) = g / (1 + exp(-g))
// A workgroup computes a tile of tokens x rows in registers (lib/tile_*.wgsl): half of the rows are gates, the
// others the ups of the same outputs. The four rows of a `store` are gate and up of 2 outputs, so the product
// needs no exchange, and the [T, 2F] intermediate is never stored. f32 accumulation; exp(-g) is kept finite.
// Tokens and outputs past the end repeat the last one, unwritten.

struct Params {
    cols: u32, // K, a multiple of 32
    ffn_dim: u32, // F
    tokens: u32, // T
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [T, K / 4]
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // [T, F]

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
