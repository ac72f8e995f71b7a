// Prologue of a product: RMSNorm.
//   prologue(x)[t,:] = x[t,:] * gains * rsqrt(mean(x[t,:]^2) + eps)
// The factor of a row is known only after its last column and is the same for all of them. So the loop multiplies x
// by the gains, sums the squares of x beside the products, and multiplies the sums by the factor. Each workgroup
// normalises for itself, which saves a launch and a round trip of [R, K]. plain.wgsl defines the same names.
// q/k norm, RoPE and the cache write cannot join the qkv projection as an epilogue: it would bind 10 or 11 storage
// buffers, and WebGPU has 8. qk_norm_rope.wgsl does them.

@group(0) @binding(3) var<storage, read> gains: array<vec4<f32>>; // [K / 4]

const NORMED = true; // whether the squares of a row are summed

// The gains of columns 4 * vector .. 4 * vector + 4.
fn gains4(vector: u32) -> vec4<f32> {
    return gains[vector];
}

// Four values of x times the gains of their columns.
fn scaled(v: vec4<f32>, gains: vec4<f32>) -> vec4<f32> {
    return v * gains;
}

// Adds the squares of four values of a row to their sum.
fn add_squares(v: vec4<f32>, sum: f32) -> f32 {
    return fma(v.w, v.w, fma(v.z, v.z, fma(v.y, v.y, fma(v.x, v.x, sum))));
}

// The sum of the squares of 16 values of a row.
fn squares16(a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>) -> f32 {
    return dot(a, a) + dot(b, b) + dot(c, c) + dot(d, d);
}

// The factor of a row's sums, from its sum of squares.
fn row_factor(squares: f32) -> f32 {
    return inverseSqrt(squares / f32(params.cols) + params.eps);
}
