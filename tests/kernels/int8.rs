//! Tiles of products in integers of 8 bits: what they round, and that nothing else is lost.

use crate::common;
use crate::common::outputs::{errors, run, tune};
use crate::common::products::{INTEGERS, TILES, Value, any, nearly, product, seeded, whole};
use samara::gpu::Gpu;
use samara::kernels::{Case, Fill, Tier};
use samara::quant::Format;

/// Rows that do not fill a tile, and columns that end with half of what is staged at once.
const SIZES: [usize; 2] = [70, 160];

fn case(name: &str, format: Format, tokens: &[usize], value: Value) -> Case {
    seeded(product(name, format, tokens, SIZES, value).gains(Fill::Values(vec![1.0; SIZES[1]])))
}

/// A token more than a tile of one group.
const TOKENS: [usize; 9] = [0, 1, 2, 3, 4, 5, 6, 7, 8];

#[test]
fn what_8_bits_hold_is_multiplied_exactly() {
    let Some(gpu) = common::gpu_at(Tier::INT8) else { return };
    // Kernels use the formats alternately: a software adapter compiles each kernel for seconds.
    for (name, format) in TILES.into_iter().zip(INTEGERS.into_iter().cycle()) {
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
    for (name, format) in ["matmul", "matmul_swiglu"].into_iter().zip(INTEGERS) {
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
