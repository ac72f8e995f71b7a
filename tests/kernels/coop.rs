//! The tiles on matrix units, on adapters that have none: a file of `tests/emulate` replaces the one fragment
//! that names cooperative matrices, and all else runs as it is, for subgroups and matrices of any size. That the
//! real fragments are valid is what translation.rs checks; what a driver makes of them,
//! `samara kernel test --tier coop` checks on a GPU that has them.

use std::sync::{LazyLock, Mutex};

use crate::common;
use crate::common::outputs::{errors, run};
use crate::common::products::TILES;
use samara::gpu::Gpu;
use samara::instruments::check::check;
use samara::kernels::ProductCase;
use samara::kernels::{
    Case, Choice, Cost, Dispatch, Entry, Fill, Fragment, Kernel, MatrixShape, Memory, Operand, Tier, Tunable,
};
use samara::quant::Format;

/// The formats whose tiles run on matrix units.
const ROUNDED: [Format; 3] = [Format::F16, Format::Q8_0, Format::Q4_0];

/// Matrices and subgroups that a kernel is built for.
#[derive(Clone, Copy, Debug)]
struct Units {
    tier: Tier,
    lanes: u32,
}

/// One, two, four and eight subgroups in a workgroup of 128, for the one to four blocks of a tile.
const UNITS: [Units; 4] = [
    Units { tier: Tier::COOP, lanes: 64 },
    Units { tier: Tier::COOP, lanes: 128 },
    Units { tier: Tier::COOP_EIGHT, lanes: 32 },
    Units { tier: Tier::COOP_EIGHT, lanes: 16 },
];

/// A kernel at a tier with matrix units, on a device without.
#[derive(Debug)]
struct Emulated {
    kernel: Box<dyn Kernel>,
    units: Units,
    choice: Choice,
}

impl Emulated {
    fn new(kernel: Box<dyn Kernel>, units: Units) -> Self {
        Self { kernel, units, choice: Choice::default() }
    }
}

/// The text that replaces the fragment that names cooperative matrices.
fn emulation(path: &str, units: Units) -> &'static str {
    static TEXTS: Mutex<Vec<(String, &str)>> = Mutex::new(Vec::new());
    let mut texts = TEXTS.lock().unwrap();
    let key = format!("{path} {units:?}");
    if let Some((_, text)) = texts.iter().find(|(known, _)| *known == key) {
        return text;
    }
    let replaced = |text: String, from: &str, to: u32| {
        let (name, _) = from.split_once(" = ").unwrap();
        assert!(text.contains(from), "{from}");
        text.replace(from, &format!("{name} = {to}u;"))
    };
    let text = match path {
        "lib/coop_attention.wgsl" => include_str!("../emulate/coop_attention.wgsl").to_owned(),
        _ => {
            let side = if units.tier.coop == Some(MatrixShape::Eight) { 8 } else { 16 };
            replaced(include_str!("../emulate/coop.wgsl").to_owned(), "const SIDE = 16u;", side)
        }
    };
    let text = replaced(text, "const LANES = 64u;", units.lanes);
    texts.push((key, Box::leak(text.into_boxed_str())));
    texts[texts.len() - 1].1
}

impl Kernel for Emulated {
    fn name(&self) -> &'static str {
        self.kernel.name()
    }

    fn source(&self, _tier: Tier) -> Vec<Fragment> {
        let mut fragments = self.kernel.source(self.units.tier);
        let mut swapped = 0;
        for fragment in fragments.iter_mut().filter(|f| f.path.starts_with("lib/coop_")) {
            assert!(fragment.text.contains("enable wgpu_cooperative_matrix;"));
            fragment.text = emulation(fragment.path, self.units);
            swapped += 1;
        }
        let named = fragments.iter().any(|fragment| fragment.text.contains("coopMultiplyAdd"));
        assert!(swapped == 1 && !named, "one fragment names cooperative matrices");
        fragments
    }

    fn operands(&self) -> Vec<Operand> {
        self.kernel.operands()
    }

    fn shape(&self) -> String {
        self.kernel.shape()
    }

    fn tunables(&self) -> Vec<Tunable> {
        self.kernel.tunables()
    }

    fn dispatch(&self, _tier: Tier, _choice: &Choice) -> Dispatch {
        self.kernel.dispatch(self.units.tier, &self.choice)
    }

    fn rounding(&self, _tier: Tier) -> f64 {
        self.kernel.rounding(self.units.tier)
    }

    fn cost(&self, position: usize) -> Cost {
        self.kernel.cost(position)
    }

    fn reference(&self, memory: &mut Memory) {
        self.kernel.reference(memory);
    }
}

fn emulated(case: Case, units: Units) -> Case {
    Case { kernel: Box::new(Emulated::new(case.kernel, units)), ..case }
}

/// Whether a case runs on matrix units at a tier.
fn on_units(case: &Case, tier: Tier) -> bool {
    case.kernel.source(tier).iter().any(|fragment| fragment.path.starts_with("lib/coop_"))
}

/// A device that has what the emulation takes: one for all tests, because compiling takes the time. A software
/// adapter needs some 3 s for a kernel with matrices of 16 x 16 and 10 s with those of 8 x 8.
fn gpu() -> Option<&'static Gpu> {
    static GPU: LazyLock<Option<Gpu>> = LazyLock::new(|| common::gpu_at(Tier::SUBGROUP));
    if GPU.is_none() {
        common::skipped("no adapter with subgroups and f16");
    }
    GPU.as_ref()
}

/// The cases of a kernel that run on matrix units.
fn cases(name: &str) -> impl Iterator<Item = Case> {
    let entry = Entry::named(name).unwrap();
    let cases: Vec<Case> = entry.cases().into_iter().filter(|case| on_units(case, Tier::COOP)).collect();
    assert!(!cases.is_empty(), "{name} has no case on matrix units");
    cases.into_iter()
}

fn assert_right(case: Case, units: Units) {
    let case = emulated(case, units);
    assert_eq!(
        check(gpu().unwrap(), &case).unwrap(),
        None,
        "{} [{}] {units:?}",
        case.kernel.name(),
        case.label
    );
}

#[test]
fn tiles_on_matrix_units_match_their_references() {
    if gpu().is_none() {
        return;
    }
    // A ragged case of every kernel, with one format after another.
    for (name, format) in TILES.into_iter().zip(ROUNDED.into_iter().cycle()) {
        let wanted =
            |case: &Case| case.label.contains("past a tile") && case.label.ends_with(&format!(", {format}"));
        let mut found: Vec<Case> = cases(name).filter(wanted).collect();
        assert_eq!(found.len(), 1, "{name}, {format}");
        assert_right(found.remove(0), UNITS[0]);
    }
}

#[test]
#[ignore = "an hour on a software adapter: cargo test --release --test kernels -- --ignored coop"]
fn every_case_on_matrix_units_matches_its_reference() {
    if gpu().is_none() {
        return;
    }
    for units in UNITS {
        TILES.into_iter().flat_map(cases).for_each(|case| assert_right(case, units));
    }
}

/// Checks the selected cases of attention, in workgroups of every size; returns how many.
fn assert_attention_right(units: Units, wanted: impl Fn(&Case) -> bool) -> usize {
    let mut ran = 0;
    for invocations in [128, 256] {
        let choice: Choice = [("INVOCATIONS".to_owned(), invocations)].into_iter().collect();
        for case in cases("attention").filter(&wanted) {
            let whole = choice.clone().or(Choice::defaults(&case.kernel.tunables()));
            assert!(case.kernel.choices(units.tier).contains(&whole), "{choice}");
            let kernel = Emulated { choice: choice.clone(), ..Emulated::new(case.kernel, units) };
            let case = Case { kernel: Box::new(kernel), ..case };
            assert_eq!(check(gpu().unwrap(), &case).unwrap(), None, "{} {choice} {units:?}", case.label);
            ran += 1;
        }
    }
    ran
}

#[test]
fn attention_on_matrix_units_matches_its_reference() {
    if gpu().is_none() {
        return;
    }
    // Ends of the cache, more keys than a tile has, what is not to be touched, and what f16 does not hold.
    let few = ["fills the cache", "cache, T 127", "NaN past the step", "hundreds", "2^-64"];
    let wanted = |case: &Case| few.iter().any(|part| case.label.contains(part));
    assert_eq!(assert_attention_right(UNITS[0], wanted), 2 * (2 * (2 + 2 + 1 + 1) + 1));
}

#[test]
#[ignore = "minutes on a software adapter: cargo test --release --test kernels -- --ignored every_case_of_attention"]
fn every_case_of_attention_on_matrix_units_matches_its_reference() {
    if gpu().is_none() {
        return;
    }
    for units in UNITS.into_iter().filter(|units| units.tier == Tier::COOP) {
        assert_attention_right(units, |_| true);
    }
}

#[test]
fn attention_has_matrix_units_where_what_is_cached_is_rounded() {
    let entry = Entry::named("attention").unwrap();
    for case in entry.cases() {
        let has = !case.label.ends_with("f32") && !case.label.contains("Dh 32");
        assert_eq!(on_units(&case, Tier::COOP), has, "{}", case.label);
        assert_eq!(case.kernel.rounding(Tier::COOP) > 0.0, has, "{}", case.label);
        for tier in [Tier::SUBGROUP, Tier::COOP_EIGHT, Tier::INT8] {
            assert!(!on_units(&case, tier) && case.kernel.rounding(tier) == 0.0, "{}, {tier}", case.label);
        }
    }
}

#[test]
fn tiles_of_every_size_match_their_references() {
    let Some(gpu) = gpu() else { return };
    // More subgroups than blocks, as many, fewer, and a single one.
    let [coop, one, ..] = UNITS;
    let tiles = [(4, 32, 256), (4, 64, 128), (8, 32, 128), (8, 64, 128)].map(|tile| (coop, tile));
    for (units, (groups, rows, wg)) in tiles.into_iter().chain([(one, (8, 64, 128))]) {
        // Two tiles of 64 tokens and of 64 rows, both ragged, and more columns than either.
        let case = norm_case(Format::Q8_0, [70, 101, 160], Fill::Uniform(1.0));
        let values = [("GROUPS", groups), ("ROWS", rows), ("WG", wg)];
        let choice: Choice = values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let whole = choice.clone().or(Choice::defaults(&case.kernel.tunables()));
        assert!(case.kernel.choices(units.tier).contains(&whole), "{choice}");
        let kernel = Emulated { choice: choice.clone(), ..Emulated::new(case.kernel, units) };
        let case = Case { kernel: Box::new(kernel), ..case };
        assert_eq!(check(gpu, &case).unwrap(), None, "{choice}, {units:?}");
    }
}

fn norm_case(format: Format, sizes: [usize; 3], x: Fill) -> Case {
    ProductCase::new("norm_matmul", "", format, sizes).x(x).build()
}

fn plain_case(format: Format, sizes: [usize; 3], x: Fill) -> Case {
    ProductCase::new("matmul", "", format, sizes).x(x).weight(Fill::Uniform(0.1)).build()
}

/// What 11 bits hold: integers up to 1024 times a power of two, and more of them than a value has.
fn whole(token: usize, column: usize) -> f64 {
    f64::from((token * 8191 + column * 77) as i32 % 2047 - 1023) * f64::from(column as i32 % 5 - 2).exp2()
}

fn values([tokens, cols]: [usize; 2], value: impl Fn(usize, usize) -> f64) -> Fill {
    Fill::Values((0..tokens).flat_map(|t| (0..cols).map(move |c| (t, c))).map(|(t, c)| value(t, c)).collect())
}

#[test]
fn what_11_bits_hold_is_multiplied_exactly_and_the_rest_is_rounded() {
    let Some(gpu) = gpu() else { return };
    // Weights of f16 are taken unchanged.
    let sizes = [17, 33, 96];
    let errors = |value: fn(usize, usize) -> f64| {
        errors(gpu, &emulated(plain_case(Format::F16, sizes, values([17, 96], value)), UNITS[0]))
    };
    let exact = errors(whole);
    assert!(exact.iter().all(|error| *error <= 1e-12), "{exact:?}");
    let rounded = errors(|t, c| whole(t, c) + 0.3 * f64::from(c as i32 % 5 - 2).exp2());
    assert!(rounded.iter().all(|error| *error > 1e-10), "nothing was rounded: {rounded:?}");
}

#[test]
fn activations_beyond_f16_neither_overflow_nor_vanish() {
    let Some(gpu) = gpu() else { return };
    // From 2^-60 to 2^42, each token its own, between tokens that f16 holds; and one with both ends in it.
    let magnitude = |t: usize, c: usize| match t % 4 {
        0 => f64::from(t as i32 * 17 / 10 - 60).exp2(),
        1 if t == 5 => f64::from(c as i32 % 2 * 40 - 20).exp2(),
        _ => 1.0,
    };
    let [coop, _, eight, _] = UNITS;
    for (format, units) in [(Format::F16, coop), (Format::Q8_0, coop), (Format::Q4_0, eight)] {
        let fill = || values([61, 160], |t, c| whole(t, c) / 1024.0 * 1.1 * magnitude(t, c));
        let plain = emulated(plain_case(format, [61, 40, 160], fill()), units);
        let bound = plain.tolerance_at(units.tier);
        let found = errors(gpu, &plain);
        assert!(found.iter().all(|error| *error <= bound), "{format}, {units:?}: {found:?}");
        if format == Format::Q8_0 {
            let found = errors(gpu, &emulated(norm_case(format, [61, 40, 160], fill()), units));
            assert!(found.iter().all(|error| *error <= bound), "norm, {units:?}: {found:?}");
        }
    }
}

#[test]
fn a_token_is_the_same_whatever_is_beyond_f16_beside_it() {
    let Some(gpu) = gpu() else { return };
    let outputs =
        |fill: Fill| run(gpu, &emulated(plain_case(Format::Q4_0, [2, 32, 64], fill), UNITS[0])).remove(0);
    let beside =
        |factor: f64| outputs(values([2, 64], |t, c| whole(t, c) * if t == 1 { factor } else { 1.1 }));
    assert_eq!(beside(1.0), beside(1e9));
}

#[test]
fn weights_of_f32_and_bf16_keep_their_tiles() {
    for format in Format::ALL {
        let case = norm_case(format, [16, 16, 32], Fill::Uniform(1.0));
        for tier in [Tier::COOP, Tier::COOP_EIGHT] {
            assert_eq!(on_units(&case, tier), ROUNDED.contains(&format), "{format}, {tier}");
            assert_eq!(case.kernel.rounding(tier) > 0.0, ROUNDED.contains(&format), "{format}, {tier}");
        }
        assert!(!on_units(&case, Tier::SUBGROUP) && case.kernel.rounding(Tier::SUBGROUP) == 0.0);
    }
}
