// The bindings of every product. The prologue or the epilogue adds at most one tensor, at binding 3; the planes of
// the weight are group 1 (quant/*.wgsl).

struct Params {
    cols: u32, // K, a multiple of 32
    outputs: u32, // columns of out that this part of the weight computes
    column: u32, // the first of them
    tokens: u32, // R
    width: u32, // N
    first_row: u32, // of x: T - R
    last_row: u32, // of x: T - 1
    eps: f32, // of a norm
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [T, K / 4]
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // [R, N]
