// Gate and up projections of a few tokens with their SwiGLU product.
//   out[t, f] = silu(W[f,:] . x[t,:]) * (W[F+f,:] . x[t,:]),   silu(g) = g / (1 + exp(-g))
// As in matvec.wgsl (lib/rows.wgsl), but that 4 rows of W are gate and up of 2 outputs.
// So the [T, 2F] intermediate is never stored, and a launch is saved. f32 accumulation; exp(-g) is kept
// finite. Outputs and tokens past the end are computed as the last one and not written.

override WG: u32 = 32;
override APART: u32 = 0;
override TOKENS: u32 = 1;

struct Params {
    cols: u32, // K, a multiple of 32
    ffn_dim: u32, // F
    tokens: u32, // T
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [T, K / 4]
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // [T, F]

// The gates of two outputs, and their ups.
fn rows_of(quad: u32) -> vec4<u32> {
    let gates = min(vec2<u32>(quad * 2u, quad * 2u + 1u), vec2<u32>(params.ffn_dim - 1u));
    return vec4<u32>(gates, gates + params.ffn_dim);
}

// Called by `main` of lib/reduce4_*.wgsl.
fn run(at: Invocation) {
    let tile = tile_of(at, params.tokens);
    reduce(row_products(tile, tile.token, params.tokens - 1u, at, params.cols), at);
    let first = tile.quad * 2u;
    let count = min(TOKENS, params.tokens - tile.token);
    for (var t = at.index % LANES; t < count; t += LANES) {
        let totals = finish(t, at);
        let products = totals.xy / (1.0 + exp(min(-totals.xy, vec2<f32>(88.0)))) * totals.zw;
        let n = (tile.token + t) * params.ffn_dim + first;
        if first < params.ffn_dim {
            out[n] = products.x;
        }
        if first + 1u < params.ffn_dim {
            out[n + 1u] = products.y;
        }
    }
}
