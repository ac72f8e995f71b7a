// How the tiles of lib/tile_*.wgsl read x: as it is. tile_normed.wgsl defines the same names.

const NORMED = false; // whether a row's squares have to be added up

// What columns 4 * vector .. 4 * vector + 4 are multiplied with while they are staged.
fn gains(vector: u32) -> vec4<f32> {
    return vec4<f32>(1.0);
}

// A row's sum of squares so far, and with four more values of x, before their gains.
fn add_squares(v: vec4<f32>, sum: f32) -> f32 {
    return sum;
}

// What the products of four tokens are multiplied with, by their sums of squares.
fn row_scales(squares: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(1.0);
}
