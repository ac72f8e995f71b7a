//! Tiles of products in integers of 8 bits: what they round, and that nothing else is lost.

mod common;

use common::outputs::{errors, run, tune};
use samara::gpu::Gpu;
use samara::kernels::matmul::Matmul;
use samara::kernels::matmul_add::MatmulAdd;
use samara::kernels::matmul_swiglu::MatmulSwiglu;
use samara::kernels::norm_matmul::NormMatmul;
use samara::kernels::norm_matmul_swiglu::NormMatmulSwiglu;
use samara::kernels::{Case, CaseBuilder, Fill, Kernel, Tier};
use samara::quant::Format;
use samara::tensor::DType;

/// Columns that end with half of what is staged at once, and rows that do not fill a tile.
const COLS: usize = 160;
const ROWS: usize = 70;

const KERNELS: [&str; 5] = ["matmul", "matmul_add", "matmul_swiglu", "norm_matmul", "norm_matmul_swiglu"];

/// The formats whose products round activations.
const ROUNDED: [Format; 2] = [Format::Q8_0, Format::Q4_0];

/// Some value for a column of a token.
type Value = fn(token: usize, column: usize) -> f64;

fn any(token: usize, column: usize) -> f64 {
    (((token * 8191 + column * 127) % 1009) as f64 - 504.0) / 256.0
}

/// What 8 bits and a scale hold: integers up to 127, which each block of 32 has, times a power of two.
fn whole(token: usize, column: usize) -> f64 {
    let integer =
        if column % 32 == token % 32 { 127 } else { (token * 8191 + column * 77) as i32 % 253 - 126 };
    f64::from(integer) * step(column)
}

/// The same but for 0.3 of a step, which rounding takes away.
fn nearly(token: usize, column: usize) -> f64 {
    whole(token, column)
        + if column % 32 == token % 32 { 0.0 } else { [0.3, -0.3][column % 2] * step(column) }
}

fn step(column: usize) -> f64 {
    f64::from(column as i32 / 32 % 5 - 2).exp2()
}

fn case(name: &str, format: Format, tokens: &[usize], value: Value) -> Case {
    let mut case = CaseBuilder::new(format!("{name}, {format}"));
    let values = |width: usize| {
        Fill::Values(tokens.iter().flat_map(|&t| (0..width).map(move |c| value(t, c))).collect())
    };
    let x = case.tensor("x", [tokens.len(), COLS], DType::F32, values(COLS));
    let weight = case.tensor("weight", [ROWS, COLS], format.dtype(), Fill::Uniform(0.1));
    let norm = case.tensor("norm", [COLS], DType::F32, Fill::Values(vec![1.0; COLS]));
    let residual = case.tensor("residual", [tokens.len(), ROWS], DType::F32, values(ROWS));
    let width = if name.ends_with("swiglu") { ROWS / 2 } else { ROWS };
    let out = case.tensor("out", [tokens.len(), width], DType::F32, Fill::Zero);
    let tensors = &case.tensors;
    match name {
        "matmul" => build(Matmul::new(tensors, x, weight, out, 0), case),
        "matmul_add" => build(MatmulAdd::new(tensors, residual, x, weight, out, 0), case),
        "matmul_swiglu" => build(MatmulSwiglu::new(tensors, x, weight, out), case),
        "norm_matmul" => build(NormMatmul::new(tensors, x, norm, weight, out, 0, 1e-6), case),
        "norm_matmul_swiglu" => build(NormMatmulSwiglu::new(tensors, x, norm, weight, out, 1e-6), case),
        other => panic!("{other}"),
    }
}

fn build(kernel: impl Kernel, case: CaseBuilder) -> Case {
    case.build(kernel, 0.0, "bits")
}

/// A token more than a tile of one group.
const TOKENS: [usize; 9] = [0, 1, 2, 3, 4, 5, 6, 7, 8];

#[test]
fn what_8_bits_hold_is_multiplied_exactly() {
    let Some(gpu) = common::gpu_at(Tier::INT8) else { return };
    // Formats take turns: a software adapter compiles each kernel for seconds.
    for (name, format) in KERNELS.into_iter().zip(ROUNDED.into_iter().cycle()) {
        let exact = errors(&gpu, &case(name, format, &TOKENS, whole));
        assert!(exact.iter().all(|error| *error <= 1e-11), "{name}, {format}: {exact:?}");
        let rounded = errors(&gpu, &case(name, format, &TOKENS, any));
        assert!(
            rounded.iter().all(|error| *error > 1e-7),
            "{name}, {format}: nothing was rounded: {rounded:?}"
        );
    }
}

#[test]
fn activations_are_rounded_to_the_nearest_integer_at_tier_int8_alone() {
    let Some(gpu) = common::gpu_at(Tier::INT8) else { return };
    let subgroup = gpu.at_tier(Tier::SUBGROUP).unwrap();
    for (name, format) in ["matmul", "matmul_swiglu"].into_iter().zip(ROUNDED) {
        let rows = |gpu: &Gpu, value| run(gpu, &case(name, format, &TOKENS, value));
        assert_eq!(rows(&gpu, nearly), rows(&gpu, whole), "{name}, {format}");
        assert_ne!(rows(&subgroup, nearly), rows(&subgroup, whole), "{name}, {format}");
    }
}

#[test]
fn a_token_is_the_same_in_every_tile_and_among_others() {
    let Some(mut gpu) = common::gpu_at(Tier::INT8) else { return };
    let many: Vec<usize> = (0..67).rev().collect();
    let among = case("norm_matmul", Format::Q4_0, &many, any);
    let alone = run(&gpu, &case("norm_matmul", Format::Q4_0, &[5], any)).remove(0);
    let choices = among.kernel.choices(Tier::INT8);
    assert_eq!(choices.len(), 10, "{choices:?}");
    // The smallest, the largest and some between.
    for choice in choices.into_iter().step_by(3) {
        tune(&mut gpu, &*among.kernel, &choice);
        assert_eq!(run(&gpu, &among)[61], alone, "{choice}");
    }
}
