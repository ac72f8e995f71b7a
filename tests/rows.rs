//! What is computed for one token does not depend on how many others are computed with it, nor on what they
//! hold: bit for bit. Speculation and batches return the text of plain decoding because of that.

mod common;

use common::outputs::{run, tune};
use samara::gpu::Gpu;
use samara::kernels::matvec::Matvec;
use samara::kernels::matvec_add::MatvecAdd;
use samara::kernels::matvec_swiglu::MatvecSwiglu;
use samara::kernels::norm_matvec::NormMatvec;
use samara::kernels::norm_matvec_swiglu::NormMatvecSwiglu;
use samara::kernels::{Case, CaseBuilder, Fill, Kernel, MOST_TOKENS, Tier};
use samara::quant::Format;
use samara::tensor::DType;

/// More columns than a workgroup takes at once, and rows that do not fill the last one.
const COLS: usize = 1056;
const ROWS: usize = 6;

const KERNELS: [&str; 5] = ["matvec", "matvec_add", "matvec_swiglu", "norm_matvec", "norm_matvec_swiglu"];

/// Some value for a column of a row.
type Value = fn(row: usize, column: usize) -> f64;

fn any(row: usize, column: usize) -> f64 {
    (((row * 8191 + column * 127) % 1009) as f64 - 504.0) / 256.0
}

/// What 8 bits and a scale hold: integers up to 127, which each block of 32 has, times a power of two.
fn whole(row: usize, column: usize) -> f64 {
    let integer = if column % 32 == row % 32 { 127 } else { (row * 8191 + column * 77) as i32 % 253 - 126 };
    f64::from(integer) * f64::from(column as i32 / 32 % 5 - 2).exp2()
}

/// The same but for 0.3 of a step, which rounding takes away.
fn nearly(row: usize, column: usize) -> f64 {
    let step = f64::from(column as i32 / 32 % 5 - 2).exp2();
    whole(row, column) + if column % 32 == row % 32 { 0.0 } else { [0.3, -0.3][column % 2] * step }
}

/// A kernel on some rows out of as many as can be, which follow from their numbers alone.
fn case(name: &str, format: Format, rows: &[usize]) -> Case {
    case_of(name, format, rows, any, Fill::Uniform(1.5))
}

fn case_of(name: &str, format: Format, rows: &[usize], value: Value, gains: Fill) -> Case {
    let mut case = CaseBuilder::new(format!("{name}, {format}"));
    let values = |width: usize| {
        Fill::Values(rows.iter().flat_map(|&row| (0..width).map(move |i| value(row, i))).collect())
    };
    let x = case.tensor("x", [rows.len(), COLS], DType::F32, values(COLS));
    let weight = case.tensor("weight", [ROWS, COLS], format.dtype(), Fill::Uniform(0.1));
    let norm = case.tensor("norm", [COLS], DType::F32, gains);
    let residual = case.tensor("residual", [rows.len(), ROWS], DType::F32, values(ROWS));
    let gated = name.ends_with("swiglu");
    let width = if gated { ROWS / 2 } else { ROWS };
    let out = case.tensor("out", [rows.len(), width], DType::F32, Fill::Zero);
    let tensors = &case.tensors;
    match name {
        "matvec" => build(Matvec::new(tensors, x, weight, out, 0), case),
        "matvec_add" => build(MatvecAdd::new(tensors, residual, x, weight, out, 0), case),
        "matvec_swiglu" => build(MatvecSwiglu::new(tensors, x, weight, out), case),
        "norm_matvec" => build(NormMatvec::new(tensors, x, norm, weight, out, 0, 1e-6), case),
        "norm_matvec_swiglu" => build(NormMatvecSwiglu::new(tensors, x, norm, weight, out, 1e-6), case),
        other => panic!("{other}"),
    }
}

fn build(kernel: impl Kernel, case: CaseBuilder) -> Case {
    case.build(kernel, 0.0, "bits")
}

fn check(gpu: &Gpu, name: &str, format: Format) {
    let alone = |row: usize| run(gpu, &case(name, format, &[row])).remove(0);
    let expected: Vec<Vec<u8>> = (0..9).map(alone).collect();
    assert!(expected.windows(2).all(|pair| pair[0] != pair[1]), "rows differ");
    for tokens in [2, 3, 4, 5, 7, 8, 9, MOST_TOKENS] {
        // At places of their own among others: backwards, from the end of the first nine.
        let rows: Vec<usize> = (0..tokens).map(|t| (MOST_TOKENS + 8 - t) % MOST_TOKENS).collect();
        let found = run(gpu, &case(name, format, &rows));
        for (place, &row) in rows.iter().enumerate().filter(|(_, row)| **row < expected.len()) {
            assert_eq!(found[place], expected[row], "{name}, {format}, row {row} at {place} of {tokens}");
        }
    }
}

#[test]
fn a_row_is_the_same_alone_and_among_others() {
    let Some(gpu) = common::gpu() else { return };
    for format in Format::ALL {
        KERNELS.into_iter().for_each(|name| check(&gpu, name, format));
    }
    // They share the text that rounds, which a software adapter takes long to compile.
    let Some(gpu) = common::gpu_at(Tier::INT8) else { return };
    check(&gpu, "matvec", Format::Q8_0);
    check(&gpu, "norm_matvec_swiglu", Format::Q4_0);
}

/// The formats whose products round activations at tier `int8`.
const ROUNDED: [Format; 2] = [Format::Q8_0, Format::Q4_0];

/// NMSE of a case, which a bound on what rounding adds would hide: of all rows together, as one whose gates are all far
/// below zero has outputs that f32 does not hold.
fn error(gpu: &Gpu, case: &Case) -> f64 {
    let mut memory = case.memory();
    case.kernel.reference(&mut memory);
    let bytes = run(gpu, case).concat();
    let found: Vec<f64> = bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect();
    common::nmse(&found, memory.read(case.outputs()[0]))
}

#[test]
fn what_8_bits_hold_is_multiplied_exactly() {
    let Some(gpu) = common::gpu_at(Tier::INT8) else { return };
    for (name, format) in KERNELS.into_iter().flat_map(|name| ROUNDED.map(|format| (name, format))) {
        let ones = || Fill::Values(vec![1.0; COLS]);
        let exact = error(&gpu, &case_of(name, format, &[0, 1], whole, ones()));
        assert!(exact <= 1e-11, "{name}, {format}: NMSE {exact:e}");
        let rounded = error(&gpu, &case_of(name, format, &[0, 1], any, ones()));
        assert!(rounded > 1e-7, "{name}, {format}: NMSE {rounded:e}, so nothing was rounded");
    }
}

#[test]
fn activations_are_rounded_to_the_nearest_integer_at_tier_int8_alone() {
    let Some(gpu) = common::gpu_at(Tier::INT8) else { return };
    let subgroup = gpu.at_tier(Tier::SUBGROUP).unwrap();
    for (name, format) in ["matvec", "matvec_swiglu"].into_iter().flat_map(|n| ROUNDED.map(|f| (n, f))) {
        let rows = |gpu: &Gpu, value| run(gpu, &case_of(name, format, &[0, 1], value, Fill::Zero));
        assert_eq!(rows(&gpu, nearly), rows(&gpu, whole), "{name}, {format}");
        assert_ne!(rows(&subgroup, nearly), rows(&subgroup, whole), "{name}, {format}");
    }
}

#[test]
fn a_row_is_the_same_without_subgroups_and_with_other_workgroups() {
    for mut gpu in common::gpus() {
        let kernel = case("norm_matvec", Format::Q8_0, &[0]).kernel;
        let values = kernel.tunables().remove(0).values;
        for (wg, apart) in [(values[0], 0), (values[values.len() - 1], 0), (values[values.len() - 1], 1)] {
            let choice = [("WG".to_owned(), wg), ("APART".to_owned(), apart)].into_iter().collect();
            tune(&mut gpu, &*kernel, &choice);
            check(&gpu, "norm_matvec", Format::Q8_0);
        }
    }
}
