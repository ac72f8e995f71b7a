// Matrix times vector, for one token.
//   out[row0 + r] = W[r,:] . x
// One workgroup per 4 rows; its invocations split the columns (lib/rows.wgsl), and four sums end in one
// reduction. Each weight byte is read once; x comes from cache. f32 accumulation. Rows past the end are
// computed as the last row and not written.

override WG: u32 = 32;

struct Params {
    cols: u32, // K, a multiple of 32
    rows: u32, // of this part of the weight
    row0: u32, // where the part begins in out
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [K / 4]
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // [N]

var<workgroup> scratch: array<vec4<f32>, WG>; // of reduce_add4

// Called by `main` of lib/reduce4_*.wgsl.
fn run(at: Invocation) {
    let first = (at.group.y * at.groups.x + at.group.x) * 4u;
    let rows = min(vec4<u32>(first, first + 1u, first + 2u, first + 3u), vec4<u32>(params.rows - 1u));
    let totals = reduce_add4(row_products(rows, at.index, params.cols), at);
    if at.index == 0u {
        let count = min(4u, params.rows - min(first, params.rows));
        for (var r = 0u; r < count; r++) {
            out[params.row0 + first + r] = totals[r];
        }
    }
}
