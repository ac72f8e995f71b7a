// Gate and up projections of one token with their SwiGLU product.
//   out[f] = silu(W[f,:] . x) * (W[F+f,:] . x),   silu(g) = g / (1 + exp(-g))
// As matvec, one workgroup computes 4 rows of W: gate and up of 2 outputs. So the [2F] intermediate is
// never stored, and a launch is saved. f32 accumulation; exp(-g) is kept finite. An output past the end
// is computed as the last one and not written.

override WG: u32 = 32;

struct Params {
    cols: u32, // K, a multiple of 32
    ffn_dim: u32, // F
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [K / 4]
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // [F]

var<workgroup> scratch: array<vec4<f32>, WG>; // of reduce_add4

// Called by `main` of lib/reduce4_*.wgsl.
fn run(at: Invocation) {
    let first = (at.group.y * at.groups.x + at.group.x) * 2u;
    let gates = min(vec2<u32>(first, first + 1u), vec2<u32>(params.ffn_dim - 1u));
    let totals = reduce_add4(row_products(vec4<u32>(gates, gates + params.ffn_dim), at.index, params.cols), at);
    if at.index == 0u {
        let products = totals.xy / (1.0 + exp(min(-totals.xy, vec2<f32>(88.0)))) * totals.zw;
        if first < params.ffn_dim {
            out[first] = products.x;
        }
        if first + 1u < params.ffn_dim {
            out[first + 1u] = products.y;
        }
    }
}
