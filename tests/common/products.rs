//! Products on rows that depend only on their numbers, so that a row can be compared alone and among others.

use samara::kernels::ProductCase;
use samara::kernels::{Case, Fill};
use samara::quant::Format;

/// The kernels that compute row by row.
pub const ROWS: [&str; 5] = ["matvec", "matvec_add", "matvec_swiglu", "norm_matvec", "norm_matvec_swiglu"];

/// The kernels that compute in tiles.
pub const TILES: [&str; 5] = ["matmul", "matmul_add", "matmul_swiglu", "norm_matmul", "norm_matmul_swiglu"];

/// The formats whose products round activations at tier `int8`.
pub const INTEGERS: [Format; 2] = [Format::Q8_0, Format::Q4_0];

/// Some value for a column of a row.
pub type Value = fn(row: usize, column: usize) -> f64;

/// Values without a pattern.
pub fn any(row: usize, column: usize) -> f64 {
    (((row * 8191 + column * 127) % 1009) as f64 - 504.0) / 256.0
}

/// Values that 8 bits and a scale represent: integers up to 127, which each block of 32 has, times a power of two.
pub fn whole(row: usize, column: usize) -> f64 {
    let integer = if column % 32 == row % 32 { 127 } else { (row * 8191 + column * 77) as i32 % 253 - 126 };
    f64::from(integer) * step(column)
}

/// The same plus or minus 0.3 of a step, which rounding removes.
pub fn nearly(row: usize, column: usize) -> f64 {
    whole(row, column) + if column % 32 == row % 32 { 0.0 } else { [0.3, -0.3][column % 2] * step(column) }
}

fn step(column: usize) -> f64 {
    f64::from(column as i32 / 32 % 5 - 2).exp2()
}

/// The values of some rows.
pub fn values(rows: &[usize], width: usize, value: Value) -> Fill {
    Fill::Values(rows.iter().flat_map(|&row| (0..width).map(move |column| value(row, column))).collect())
}

/// A product of some rows with a weight of `[rows, K]`, half of whose rows are gates where the kernel is gated. Weights
/// and gains are the same whatever the rows are.
pub fn product(name: &str, format: Format, rows: &[usize], sizes: [usize; 2], value: Value) -> ProductCase {
    let [weight_rows, cols] = sizes;
    let outputs = if name.ends_with("swiglu") { weight_rows / 2 } else { weight_rows };
    ProductCase::new(name, "numbered rows", format, [rows.len(), outputs, cols])
        .x(values(rows, cols, value))
        .residual(values(rows, outputs, value))
        .weight(Fill::Uniform(0.1))
}

/// Makes a case of it.
pub fn seeded(product: ProductCase) -> Case {
    Case { seed: 7, ..product.build() }
}
