// Prologue of a product: x as it is. rms_norm.wgsl defines the same names.

const NORMED = false; // whether the squares of a row are summed

// The gains of columns 4 * vector .. 4 * vector + 4.
fn gains4(vector: u32) -> vec4<f32> {
    return vec4<f32>(1.0);
}

// Four values of x with the gains of their columns.
fn scaled(v: vec4<f32>, gains: vec4<f32>) -> vec4<f32> {
    return v;
}

// The sum of the squares of a row, with four more values of it.
fn add_squares(v: vec4<f32>, sum: f32) -> f32 {
    return sum;
}

// The sum of the squares of 16 values of a row.
fn squares16(a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>) -> f32 {
    return 0.0;
}

// What the sums of a row are multiplied with.
fn row_factor(squares: f32) -> f32 {
    return 1.0;
}
