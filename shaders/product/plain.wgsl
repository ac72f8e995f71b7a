// Prologue of a product: x unchanged. rms_norm.wgsl defines the same names.

const NORMED = false; // whether the squares of a row are summed

// The gains of columns 4 * vector .. 4 * vector + 4.
fn gains4(vector: u32) -> vec4<f32> {
    return vec4<f32>(1.0);
}

// Four values of x times the gains of their columns.
fn scaled(v: vec4<f32>, gains: vec4<f32>) -> vec4<f32> {
    return v;
}

// Adds the squares of four values of a row to their sum.
fn add_squares(v: vec4<f32>, sum: f32) -> f32 {
    return sum;
}

// The sum of the squares of 16 values of a row.
fn squares16(a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>) -> f32 {
    return 0.0;
}

// The factor of a row's sums.
fn row_factor(squares: f32) -> f32 {
    return 1.0;
}
