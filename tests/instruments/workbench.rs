//! The workbench: nothing is timed before it is checked, and what is tuned changes speed alone.

use crate::common::{self, changed};
use samara::gpu::{Gpu, Tuned, Tuning};
use samara::instruments::check::{Prepared, check, nmse};
use samara::instruments::document::Ceilings;
use samara::instruments::versions::against;
use samara::instruments::workbench::{Rotation, time};
use samara::instruments::{steps, tune};
use samara::kernels::{Case, Entry, Shaders};
use samara::model::{Checkpoint, synth};
use samara::{Error, LoadOptions, Model};

/// Ceilings far above any adapter's.
const CEILINGS: Ceilings = Ceilings { copy_gb_s: 1e6, fma_gflop_s: 1e6, matrix_gflop_s: None };

fn case(kernel: &str, label: &str) -> Case {
    let entry = Entry::named(kernel).unwrap();
    let found = entry.cases().into_iter().find(|case| case.label.contains(label));
    found.unwrap_or_else(|| panic!("{kernel} has no case {label}"))
}

const SUM: &str = "a[id.x] + b[id.x]";

#[test]
fn a_row_follows_from_its_samples() {
    let Some(gpu) = common::gpu() else { return };
    let case = case("matvec", "270M qkv, T 1, 1152 x 1280, q8_0");
    let row = time(&gpu, &case, &CEILINGS, 5).unwrap().unwrap();
    let (ns, cost) = (row.ns.median(), case.cost());
    assert_eq!((row.ns.values().len(), row.kernel.as_str(), &row.case), (5, "matvec", &case.label));
    assert_eq!((row.bytes, row.flops), (cost.bytes(), cost.flops));
    assert!(
        (row.gb_s * ns - cost.bytes() as f64).abs() < 1.0
            && (row.gflop_s * ns - cost.flops as f64).abs() < 1.0
    );
    // At equal ceilings the operations, two per value of 8.5 bits, take longer than the bytes.
    assert_eq!(row.bound, "compute");
    assert!((row.share - row.gflop_s / CEILINGS.fma_gflop_s).abs() < 1e-9 && row.share < 1.0);
    assert!(row.copies as u64 * cost.read > 32 << 20, "{} copies", row.copies);
}

#[test]
fn a_case_that_is_off_is_not_timed() {
    let Some(mut gpu) = common::gpu() else { return };
    let case = case("add", "decode, T 1, D 1280");
    gpu.set_shaders(changed("add.wgsl", SUM, "a[id.x] - b[id.x]"));
    let mismatch = time(&gpu, &case, &CEILINGS, 5).unwrap().unwrap_err();
    assert!(mismatch.contains("`out`: NMSE"), "{mismatch}");
    // What is past the end of an input is NaN.
    gpu.set_shaders(changed("add.wgsl", SUM, "a[id.x] + b[id.x + 1u]"));
    let prepared = Prepared::new(&case);
    assert!(Rotation::new(&gpu, &prepared).unwrap().timer(&gpu).unwrap().is_err());
    gpu.set_shaders(Shaders::default());
    assert!(prepared.check(&gpu).unwrap().is_none());
}

#[test]
fn a_slower_version_is_found_slower_and_a_wrong_or_broken_one_is_reported() {
    let Some(mut gpu) = common::gpu() else { return };
    let case = case("add", "decode, T 1, D 3072");
    let slow = "a[id.x] + b[id.x];
        var x = a[id.x];
        for (var i = 0u; i < 1000u; i++) { x = sin(x) + b[id.x]; }
        if x.x == 1e30 { out[id.x] = x; }";
    let slow = changed("add.wgsl", &format!("{SUM};"), slow);
    let comparison = against(&mut gpu, &case, &slow, 5).unwrap().unwrap();
    assert!(comparison.differs() && comparison.ratios().median() > 1.5, "{comparison:?}");
    let wrong = changed("add.wgsl", SUM, "a[id.x] - b[id.x]");
    let mismatch = against(&mut gpu, &case, &wrong, 5).unwrap().unwrap_err();
    assert!(mismatch.starts_with("the changed version is wrong: `out`"), "{mismatch}");
    let broken = changed("add.wgsl", SUM, "a[id.x] + c[id.x]");
    match against(&mut gpu, &case, &broken, 5) {
        Err(Error::Input(message)) => assert!(message.contains("add.wgsl:20:"), "{message}"),
        other => panic!("{other:?}"),
    }
    assert!(check(&gpu, &case).unwrap().is_none(), "the built-in shader is back");
}

#[test]
fn operations_of_a_model_are_cases_that_hold_only_their_own_tensors() {
    let Some(gpu) = common::gpu() else { return };
    let checkpoint = Checkpoint::source("synthetic:micro").unwrap();
    let options = LoadOptions { prefill_chunk: Some(128), ..LoadOptions::default() };
    let cases = steps::cases(&checkpoint, &gpu, &options, 130).unwrap();
    let names: Vec<&str> = cases.iter().map(|case| case.kernel.name()).collect();
    for name in [
        "embed",
        "norm_matvec",
        "qk_norm_rope_attention",
        "qk_norm_rope",
        "norm_matmul",
        "norm_matmul_swiglu",
        "matmul_add",
        "argmax",
    ] {
        assert!(names.contains(&name), "no {name} among {names:?}");
    }
    let shapes: Vec<String> = cases.iter().map(|case| case.kernel.shape()).collect();
    // A full chunk, and the rest of the prompt.
    assert!(shapes.iter().any(|s| s.starts_with("T 128,")) && shapes.iter().any(|s| s.starts_with("T 2,")));
    for case in &cases {
        let memory = case.memory();
        let held = case.tensors.iter().filter(|(id, _)| !memory.read(*id).is_empty()).count();
        assert_eq!(held, case.kernel.operands().len(), "{}", case.label);
        assert_eq!(check(&gpu, case).unwrap(), None, "{} [{}]", case.kernel.name(), case.label);
    }
    let long = steps::cases(&checkpoint, &gpu, &options, 1 << 20).unwrap_err().to_string();
    assert!(long.contains("1048576 tokens exceeds the context"), "{long}");
}

#[test]
fn a_search_tries_every_value_and_leaves_the_device_untuned() {
    let Some(mut gpu) = common::gpu() else { return };
    let case = case("add", "decode, T 1, D 1280");
    let mut tried = 0;
    let found = tune::tune(&mut gpu, &case, 5, || tried += 1).unwrap().unwrap();
    assert_eq!((tried, tune::trials(&case, gpu.tier())), (5, 5));
    assert_eq!((found.default.to_string().as_str(), found.shape.as_str()), ("WG=64", "1280"));
    let (best, comparison) = found.best.as_ref().unwrap();
    assert!(["WG=32", "WG=128", "WG=256"].contains(&best.to_string().as_str()), "{best}");
    assert_eq!((comparison.first.values().len(), found.dropped.len()), (5, 0));
    assert!(gpu.tuning().is_empty());
    let mut tuning = Tuning::default();
    found.apply(&mut tuning);
    assert_eq!(tuning.len(), usize::from(found.wins()));
    gpu.set_tuning(tuning);
    let expected = if found.wins() { best } else { &found.default };
    let overrides = gpu.dispatch(&*case.kernel).overrides;
    assert_eq!(expected.to_string(), format!("WG={}", overrides[0].1));
}

#[test]
fn tuned_values_change_overrides_and_no_logits() {
    let Some(gpu) = common::gpu() else { return };
    let checkpoint = Checkpoint::source("synthetic:micro").unwrap();
    // More tokens than go row by row on any adapter.
    let options = || LoadOptions { prefill_chunk: Some(65), ..LoadOptions::default() };
    let cases = steps::cases(&checkpoint, &gpu, &options(), 70).unwrap();
    let ids = synth::prompt(checkpoint.config().vocab_size, 70);
    let logits = |gpu: Gpu| {
        let model = Model::from_checkpoint(&checkpoint, gpu, options()).unwrap();
        let mut session = model.session(None).unwrap();
        session.prefill(&ids).unwrap();
        session.prefill(&ids[1..2]).unwrap();
        session.next_logits().unwrap().into_iter().map(f64::from).collect::<Vec<f64>>()
    };
    let open = || {
        let mut gpu = Gpu::open(None, None).unwrap();
        gpu.set_tuning(Tuning::default());
        gpu
    };
    let expected = logits(open());
    let mut random = 1u64;
    // tests/kernels checks that no tile changes a row; a software adapter compiles each for seconds.
    for _ in 0..2 {
        let mut tuning = Tuning::default();
        for case in &cases {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let choices = case.kernel.choices(gpu.tier());
            let choice = &choices[(random >> 33) as usize % choices.len()];
            let source = Shaders::default().source(&case.kernel.source(gpu.tier()));
            tuning.insert(Tuned::new(&*case.kernel, gpu.tier(), &source, choice));
        }
        let mut tuned = open();
        let overrides =
            |gpu: &Gpu| cases.iter().map(|c| gpu.dispatch(&*c.kernel).overrides).collect::<Vec<_>>();
        let before = overrides(&tuned);
        tuned.set_tuning(tuning);
        assert_ne!(overrides(&tuned), before);
        let error = nmse(&logits(tuned), &expected);
        assert!(error <= 1e-6, "NMSE {error:e}");
    }
}
