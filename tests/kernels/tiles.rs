//! Products in tiles: of every shape of the published sizes, for every number of tokens that fills or breaks a tile,
//! and in every tile that can be chosen.
//!
//! A software adapter multiplies no whole layer in time, and is slow to compile. So each kernel that stands in a fused
//! step and each `K` of the four sizes is checked with the last rows of its weight, a whole tile of 64 and what the last
//! one holds, in every format; [`TOKENS`] past 64 are left out but of each fourth `K` of a kernel and of its largest.
//! `cargo test --release --test kernels -- --ignored tiles` thins out nothing, takes whole weights and the kernels that
//! no rule fuses too: on a GPU. Those are left to their own cases here.

use std::collections::BTreeSet;

use crate::common;
use crate::common::outputs::{run, tune};
use crate::common::products::{TILES, any, product, seeded};
use rayon::prelude::*;
use samara::gpu::{Gpu, Tuning};
use samara::instruments::check::Prepared;
use samara::kernels::ProductCase;
use samara::kernels::{Case, Choice, Fill, Tier};
use samara::model::Size;
use samara::model::config::Config;
use samara::quant::Format;

/// Few tokens, and numbers around those of a group, two and a tile, and a large chunk.
const TOKENS: [usize; 8] = [2, 3, 7, 16, 17, 64, 127, 512];

/// Rows of the largest tile.
const TILE: usize = 64;

const SIZES: [Size; 4] = [Size::M270, Size::M450, Size::B1_1, Size::B3];

/// A kernel, the rows of its weight and `K`.
type Product = (&'static str, usize, usize);

/// The products of a prompt at a size, as the rules fuse them.
fn products(size: Size) -> BTreeSet<Product> {
    let config = Config::published(size);
    let dim = config.model_dim;
    let layers = config.layers.iter().flat_map(|layer| {
        let (mixed, ffn) = (layer.query_heads * config.head_dim, layer.ffn_dim);
        [
            ("norm_matmul", layer.qkv_rows(config.head_dim), dim),
            ("matmul_add", dim, mixed),
            ("norm_matmul_swiglu", 2 * ffn, dim),
            ("matmul_add", dim, ffn),
        ]
    });
    layers.chain([("norm_matmul", config.vocab_size, dim)]).collect()
}

/// The same where no rule fuses a product, but its gate.
fn unfused((name, rows, cols): Product) -> Product {
    let name = if name.ends_with("swiglu") { "matmul_swiglu" } else { "matmul" };
    (name, rows, cols)
}

/// A product of random values; of a gated one, half of the rows are gates.
fn random((name, rows, cols): Product, format: Format, tokens: usize) -> Case {
    let outputs = if name.ends_with("swiglu") { rows / 2 } else { rows };
    let case = ProductCase::new(name, "", format, [tokens, outputs, cols]).x(Fill::Uniform(1.0));
    case.residual(Fill::Uniform(1.0)).weight(Fill::Uniform(0.1)).build()
}

/// Checks cases, several at a time. A software adapter compiles and runs what one device was given one after another:
/// each thread has a device. Neighbours should need the same pipelines.
fn check(gpu: &Gpu, cases: impl Iterator<Item = Case>) {
    let cases: Vec<Case> = cases.collect();
    let share = cases.len().div_ceil(rayon::current_num_threads().min(4));
    let on_device = |cases: &[Case]| -> Vec<String> {
        let gpu = gpu.at_tier(gpu.tier()).unwrap();
        let failed = |case: &Case| {
            let mismatch = Prepared::new(case).check(&gpu).unwrap()?;
            Some(format!("{} [{}]: {mismatch}", case.kernel.name(), case.label))
        };
        cases.iter().filter_map(failed).collect()
    };
    let failed: Vec<String> = cases.par_chunks(share).flat_map_iter(on_device).collect();
    eprintln!("{} cases ran", cases.len());
    assert!(failed.is_empty(), "{} of {} cases failed:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

/// The last rows of a weight: a whole tile, where there is one, and what the last one holds.
fn last_rows((name, rows, cols): Product) -> Product {
    (name, rows.min(TILE + rows % TILE), cols)
}

#[test]
fn the_last_rows_of_every_shape_match_their_reference() {
    let Some(gpu) = common::gpu() else { return };
    let products: BTreeSet<Product> = SIZES.into_iter().flat_map(products).map(last_rows).collect();
    let names: BTreeSet<&str> = products.iter().map(|(name, ..)| *name).collect();
    assert_eq!(names.len(), 3);
    for name in names {
        let of_name: Vec<Product> = products.iter().filter(|product| product.0 == name).copied().collect();
        let last = of_name.len() - 1;
        let tokens = |n: usize| {
            TOKENS.into_iter().filter(move |&tokens| tokens <= 64 || n.is_multiple_of(4) || n == last)
        };
        let shapes: Vec<_> = of_name
            .iter()
            .enumerate()
            .flat_map(|(n, &product)| tokens(n).map(move |t| (product, t)))
            .collect();
        let of_format = |format| shapes.iter().map(move |&(product, tokens)| random(product, format, tokens));
        check(&gpu, Format::ALL.into_iter().flat_map(of_format));
    }
}

#[test]
#[ignore = "the f64 references of whole layers take hours of a processor: for a GPU"]
fn every_whole_shape_matches_its_reference() {
    let Some(gpu) = common::gpu() else { return };
    let fused = SIZES.into_iter().flat_map(products);
    for product in fused.flat_map(|product| [product, unfused(product)]).collect::<BTreeSet<_>>() {
        for format in Format::ALL {
            eprintln!("{product:?}, {format}");
            check(&gpu, TOKENS.into_iter().map(|tokens| random(product, format, tokens)));
        }
    }
}

/// Rows that fill a tile of 64 and not the next one, and columns that are staged by 64 too.
const SHAPE: [usize; 2] = [74, 320];

/// A kernel on some rows, which follow from their numbers alone.
fn numbered(name: &str, format: Format, rows: &[usize]) -> Case {
    seeded(product(name, format, rows, SHAPE, any))
}

/// The first rows, each alone, as the defaults compute it.
fn alone(gpu: &Gpu, name: &str, format: Format) -> Vec<Vec<u8>> {
    let rows: Vec<Vec<u8>> = (0..3).map(|row| run(gpu, &numbered(name, format, &[row])).remove(0)).collect();
    assert!(rows.windows(2).all(|pair| pair[0] != pair[1]), "rows differ");
    rows
}

/// Runs rows backwards, so that the first three stand last, and compares these with what they are alone.
fn same_among(gpu: &Gpu, name: &str, format: Format, tokens: usize, expected: &[Vec<u8>], what: &str) {
    let rows: Vec<usize> = (0..tokens).rev().collect();
    let found = run(gpu, &numbered(name, format, &rows));
    for (row, expected) in expected.iter().enumerate().take(tokens) {
        assert_eq!(&found[tokens - 1 - row], expected, "{name}, {format}, row {row} of {tokens}{what}");
    }
}

/// What is staged differs by format, what is read and stored by kernel: each with one of the other.
fn kernels_and_formats() -> impl Iterator<Item = (&'static str, Format)> {
    TILES.into_iter().zip(Format::ALL)
}

#[test]
fn a_row_is_the_same_alone_and_among_others() {
    let Some(gpu) = common::gpu() else { return };
    for (name, format) in kernels_and_formats() {
        let expected = alone(&gpu, name, format);
        for tokens in TOKENS {
            same_among(&gpu, name, format, tokens, &expected, "");
        }
    }
}

#[test]
fn a_row_is_the_same_in_every_tile_that_can_be_chosen() {
    let Some(mut gpu) = common::gpu() else { return };
    for (name, format) in kernels_and_formats() {
        gpu.set_tuning(Tuning::default());
        let expected = alone(&gpu, name, format);
        // More than a tile of 64 holds.
        let tokens = 67;
        let kernel = numbered(name, format, &vec![0; tokens]).kernel;
        let choices = kernel.choices(gpu.tier());
        assert_eq!(choices.len(), 5 * 2);
        for choice in choices {
            tune(&mut gpu, &*kernel, &choice);
            same_among(&gpu, name, format, tokens, &expected, &format!(", {choice}"));
        }
    }
}

#[test]
fn tiles_are_offered_where_they_are_taken_as_they_are() {
    let tiers = [
        (Format::F32, Tier::PLAIN, &["GROUPS", "ROWS"][..]),
        (Format::Q8_0, Tier::COOP, &["GROUPS", "ROWS", "WG"]),
    ];
    for (format, tier, names) in tiers {
        let kernel = random(("matmul", 4096, 1280), format, 512).kernel;
        for choice in Choice::all(&kernel.tunables()) {
            let overrides = kernel.dispatch(tier, &choice).overrides;
            let value = |name| overrides.iter().find(|(found, _)| *found == name).unwrap().1 as u32;
            let taken: Choice = names.iter().map(|&name| (name.to_owned(), value(name))).collect();
            assert_eq!(kernel.choices(tier).contains(&choice), taken == choice, "{tier}, {choice}");
        }
    }
}

#[test]
fn defaults_are_as_large_as_leaves_workgroups_enough() {
    let tile = |tokens, rows| {
        let kernel = random(("matmul", rows, 64), Format::F32, tokens).kernel;
        kernel.tunables().iter().map(|tunable| tunable.default).collect::<Vec<_>>()
    };
    assert_eq!(tile(2, 1152), [1, 32]);
    assert_eq!(tile(17, 1152), [3, 32]);
    assert_eq!(tile(32, 32000), [4, 64]);
    assert_eq!(tile(128, 1152), [4, 32]);
    assert_eq!(tile(512, 1152), [4, 64]);
    assert_eq!(tile(512, 2304), [8, 64]);
}
