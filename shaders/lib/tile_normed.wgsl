// How the tiles of lib/tile_*.wgsl read x: through an RMSNorm. A row's scale is known only at its end, and is the same
// for all its columns: so the gains of columns are applied to x while it is staged, the squares are added up
// beside, and the scale is applied to the sums. Each tile of rows does so again: 2 operations for a value of x
// to the 2 * ROWS of its products. The including kernel binds norm, the gain of each column, and has cols and eps
// among its params. tile_plain.wgsl defines the same names.

const NORMED = true; // whether a row's squares have to be added up

// What columns 4 * vector .. 4 * vector + 4 are multiplied with while they are staged.
fn gains(vector: u32) -> vec4<f32> {
    return norm[vector];
}

// A row's sum of squares so far, and with four more values of x, before their gains.
fn add_squares(v: vec4<f32>, sum: f32) -> f32 {
    return fma(v.w, v.w, fma(v.z, v.z, fma(v.y, v.y, fma(v.x, v.x, sum))));
}

// What the products of four tokens are multiplied with, by their sums of squares.
fn row_scales(squares: vec4<f32>) -> vec4<f32> {
    return inverseSqrt(squares / f32(params.cols) + params.eps);
}
