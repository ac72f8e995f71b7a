// Matrix times vector, for one token.
//   out[row0 + r] = W[r,:] . x
// One workgroup per 4 rows. Invocation i takes the chunks i, i + WG, ... of 16 columns: it loads x once
// for 4 rows, and neighbours load neighbouring bytes of a row. Each weight byte is read once; x comes
// from cache. Four sums end in one reduction. f32 accumulation. Rows past the end are computed as the
// last row and not written.

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

fn dot16(w: Weight16, a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>) -> f32 {
    return dot(w.a, a) + dot(w.b, b) + dot(w.c, c) + dot(w.d, d);
}

@compute @workgroup_size(WG)
fn main(at: Invocation) {
    let first = (at.group.y * at.groups.x + at.group.x) * 4u;
    let rows = min(vec4<u32>(first, first + 1u, first + 2u, first + 3u), vec4<u32>(params.rows - 1u));
    var sums = vec4<f32>(0.0);
    for (var chunk = at.index; chunk < params.cols / 16u; chunk += WG) {
        let a = x[chunk * 4u];
        let b = x[chunk * 4u + 1u];
        let c = x[chunk * 4u + 2u];
        let d = x[chunk * 4u + 3u];
        sums += vec4<f32>(
            dot16(weight16(rows.x, chunk, params.cols), a, b, c, d),
            dot16(weight16(rows.y, chunk, params.cols), a, b, c, d),
            dot16(weight16(rows.z, chunk, params.cols), a, b, c, d),
            dot16(weight16(rows.w, chunk, params.cols), a, b, c, d),
        );
    }
    let totals = reduce_add4(sums, at);
    if at.index == 0u {
        let count = min(4u, params.rows - min(first, params.rows));
        for (var r = 0u; r < count; r++) {
            out[params.row0 + first + r] = totals[r];
        }
    }
}
