// Matrix times the RMSNorm of a few vectors, one for each token: the last R rows of x.
//   out[r, row0 + n] = rsqrt(mean(x[t,:]^2) + eps) * (W[n,:] . (x[t,:] * norm)),   t = first_row + r
// Rows and tokens go to workgroups as in matvec.wgsl (lib/rows.wgsl). Each workgroup sums the
// squares of its tokens in the loop of the products and scales what comes out (lib/activation_normed.wgsl):
// a quarter more multiply-adds, in place of a launch and a round trip of [R, K]. f32 accumulation. Rows and
// tokens past the end are computed as the last one and not written.

override WG: u32 = 32;
override APART: u32 = 0;
override TOKENS: u32 = 1;

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

// Those past the end are the last one.
fn rows_of(quad: u32) -> vec4<u32> {
    return min(vec4<u32>(quad * 4u) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(params.rows - 1u));
}

// Called by `main` of lib/reduce4_*.wgsl.
fn run(at: Invocation) {
    let tile = tile_of(at, params.tokens);
    let last = params.first_row + params.tokens - 1u;
    reduce(row_products(tile, params.first_row + tile.token, last, at, params.cols), at);
    let first = tile.quad * 4u;
    let count = min(TOKENS, params.tokens - tile.token);
    for (var t = at.index % LANES; t < count; t += LANES) {
        let totals = finish(t, at);
        let rows = min(4u, params.rows - min(first, params.rows));
        for (var r = 0u; r < rows; r++) {
            out[(tile.token + t) * params.width + params.row0 + first + r] = totals[r];
        }
    }
}
