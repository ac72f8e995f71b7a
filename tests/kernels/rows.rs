//! What is computed for one token does not depend on how many others are computed with it, nor on what they
//! hold: bit for bit. Speculation and batches return the text of plain decoding because of that.

use crate::common;
use crate::common::outputs::{floats, run, tune};
use crate::common::products::{INTEGERS, ROWS, Value, any, nearly, product, seeded, whole};
use samara::gpu::Gpu;
use samara::kernels::{Case, Fill, MOST_TOKENS, Tier};
use samara::quant::Format;

/// Rows that do not fill the last workgroup, and more columns than one takes at once.
const SIZES: [usize; 2] = [6, 1056];

/// A kernel on some rows out of as many as can be.
fn case(name: &str, format: Format, rows: &[usize], value: Value) -> Case {
    seeded(product(name, format, rows, SIZES, value))
}

/// The same with every gain 1.
fn exact(name: &str, format: Format, rows: &[usize], value: Value) -> Case {
    seeded(product(name, format, rows, SIZES, value).gains(Fill::Values(vec![1.0; SIZES[1]])))
}

fn check(gpu: &Gpu, name: &str, format: Format) {
    let alone = |row: usize| run(gpu, &case(name, format, &[row], any)).remove(0);
    let expected: Vec<Vec<u8>> = (0..9).map(alone).collect();
    assert!(expected.windows(2).all(|pair| pair[0] != pair[1]), "rows differ");
    for tokens in [2, 3, 4, 5, 7, 8, 9, MOST_TOKENS] {
        // At other positions among others: backwards, from the end of the first nine.
        let rows: Vec<usize> = (0..tokens).map(|t| (MOST_TOKENS + 8 - t) % MOST_TOKENS).collect();
        let found = run(gpu, &case(name, format, &rows, any));
        for (place, &row) in rows.iter().enumerate().filter(|(_, row)| **row < expected.len()) {
            assert_eq!(found[place], expected[row], "{name}, {format}, row {row} at {place} of {tokens}");
        }
    }
}

#[test]
fn a_row_is_the_same_alone_and_among_others() {
    let Some(gpu) = common::gpu() else { return };
    for format in Format::ALL {
        ROWS.into_iter().for_each(|name| check(&gpu, name, format));
    }
    // They share the text that rounds, which a software adapter takes long to compile.
    let Some(gpu) = common::gpu_at(Tier::INT8) else { return };
    check(&gpu, "matvec", Format::Q8_0);
    check(&gpu, "norm_matvec_swiglu", Format::Q4_0);
}

/// NMSE of a case, which a bound on what rounding adds would hide: of all rows together, as one whose gates are all far
/// below zero has outputs that f32 does not hold.
fn error(gpu: &Gpu, case: &Case) -> f64 {
    let mut memory = case.memory();
    case.kernel.reference(&mut memory);
    common::nmse(&floats(&run(gpu, case).concat()), memory.read(case.outputs()[0]))
}

#[test]
fn what_8_bits_hold_is_multiplied_exactly() {
    let Some(gpu) = common::gpu_at(Tier::INT8) else { return };
    for (name, format) in ROWS.into_iter().flat_map(|name| INTEGERS.map(|format| (name, format))) {
        let held = error(&gpu, &exact(name, format, &[0, 1], whole));
        assert!(held <= 1e-11, "{name}, {format}: NMSE {held:e}");
        let rounded = error(&gpu, &exact(name, format, &[0, 1], any));
        assert!(rounded > 1e-7, "{name}, {format}: NMSE {rounded:e}, so nothing was rounded");
    }
}

#[test]
fn activations_are_rounded_to_the_nearest_integer_at_tier_int8_alone() {
    let Some(gpu) = common::gpu_at(Tier::INT8) else { return };
    let subgroup = gpu.at_tier(Tier::SUBGROUP).unwrap();
    for (name, format) in ["matvec", "matvec_swiglu"].into_iter().flat_map(|n| INTEGERS.map(|f| (n, f))) {
        let rows = |gpu: &Gpu, value| run(gpu, &case(name, format, &[0, 1], value));
        assert_eq!(rows(&gpu, nearly), rows(&gpu, whole), "{name}, {format}");
        assert_ne!(rows(&subgroup, nearly), rows(&subgroup, whole), "{name}, {format}");
    }
}

#[test]
fn a_row_is_the_same_without_subgroups_and_with_other_workgroups() {
    for mut gpu in common::gpus() {
        let kernel = case("norm_matvec", Format::Q8_0, &[0], any).kernel;
        let values = kernel.tunables().remove(0).values;
        for (wg, apart) in [(values[0], 0), (values[values.len() - 1], 0), (values[values.len() - 1], 1)] {
            let choice = [("WG".to_owned(), wg), ("APART".to_owned(), apart)].into_iter().collect();
            tune(&mut gpu, &*kernel, &choice);
            check(&gpu, "norm_matvec", Format::Q8_0);
        }
    }
}
