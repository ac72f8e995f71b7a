// RMSNorm: scales each row to unit root mean square, then each column by its weight.
//   out[r,:] = x[t,:] * weight * rsqrt(mean(x[t,:]^2) + eps),   t = first_row + r
// One workgroup per row r of out; invocation i handles vectors i, i + WG, ... of the row.
// Sum and scale in f32. The second read of x comes from cache: a row is at most 12 KiB.

override WG: u32 = 64;

struct Params {
    model_dim: u32, // D, a multiple of 4
    first_row: u32, // T - R: the last R rows are normalised
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [T, D / 4]
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>; // [D / 4]
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>; // [R, D / 4]

var<workgroup> scratch: array<f32, WG>; // for reduce_add

// Called by `main` of lib/reduce_*.wgsl.
fn run(group: vec3<u32>, at: Invocation) {
    let vectors = params.model_dim / 4u;
    let row = (params.first_row + group.x) * vectors;
    var squares = 0.0;
    for (var i = at.index; i < vectors; i += WG) {
        let v = x[row + i];
        squares += dot(v, v);
    }
    let mean = reduce_add(squares, at) / f32(params.model_dim);
    let scale = inverseSqrt(mean + params.eps);
    for (var i = at.index; i < vectors; i += WG) {
        out[group.x * vectors + i] = x[row + i] * weight[i] * scale;
    }
}
