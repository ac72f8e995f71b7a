// Residual connection and the RMSNorm that follows it.
//   sum[t,:] = a[t,:] + b[t,:];   out[t,:] = sum[t,:] * weight * rsqrt(mean(sum[t,:]^2) + eps)
// One workgroup per row t. Invocation i handles vectors i, i + WG, ... of the row in both passes, so it reads
// back only what it wrote itself and the second pass needs no extra barrier.
// Sum and scale in f32. The norm finds its row in cache: one launch and one round trip of [T, D] less than
// add and rms_norm.

override WG: u32 = 64;

struct Params {
    model_dim: u32, // D, a multiple of 4
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>; // [T, D / 4]
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>; // [T, D / 4]
@group(0) @binding(3) var<storage, read> weight: array<vec4<f32>>; // [D / 4]
@group(0) @binding(4) var<storage, read_write> sum: array<vec4<f32>>; // [T, D / 4]
@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>; // [T, D / 4]

var<workgroup> scratch: array<f32, WG>; // for reduce_add

// Called by `main` of lib/reduce_*.wgsl.
fn run(group: vec3<u32>, at: Invocation) {
    let vectors = params.model_dim / 4u;
    let row = group.x * vectors;
    var squares = 0.0;
    for (var i = at.index; i < vectors; i += WG) {
        let v = a[row + i] + b[row + i];
        sum[row + i] = v;
        squares += dot(v, v);
    }
    let mean = reduce_add(squares, at) / f32(params.model_dim);
    let scale = inverseSqrt(mean + params.eps);
    for (var i = at.index; i < vectors; i += WG) {
        out[row + i] = sum[row + i] * weight[i] * scale;
    }
}
