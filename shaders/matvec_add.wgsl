// Matrix times a few vectors, one for each token, and the residual connection.
//   out[t, row0 + r] = residual[t, row0 + r] + W[r,:] . x[t,:]
// As matvec, one workgroup per 4 rows and TOKENS tokens (lib/rows.wgsl), f32 accumulation. The product is
// never stored, and a launch is saved. Rows and tokens past the end are computed as the last one and not
// written.

override WG: u32 = 32;
override TOKENS: u32 = 1;

struct Params {
    cols: u32, // K, a multiple of 32
    rows: u32, // of this part of the weight
    row0: u32, // where the part begins in out
    tokens: u32, // T
    width: u32, // N
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> residual: array<f32>; // [T, N]
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>; // [T, K / 4]
@group(0) @binding(3) var<storage, read_write> out: array<f32>; // [T, N]

// Called by `main` of lib/reduce4_*.wgsl.
fn run(at: Invocation) {
    let tile = tile_of(at, params.tokens);
    let first = tile.unit * 4u;
    let rows = min(vec4<u32>(first, first + 1u, first + 2u, first + 3u), vec4<u32>(params.rows - 1u));
    reduce(row_products(rows, tile.token, params.tokens - 1u, at.index, params.cols), at);
    let token = tile.token + at.index;
    if at.index < TOKENS && token < params.tokens {
        let totals = finish(at.index, at);
        let count = min(4u, params.rows - min(first, params.rows));
        for (var r = 0u; r < count; r++) {
            let n = token * params.width + params.row0 + first + r;
            out[n] = residual[n] + totals[r];
        }
    }
}
