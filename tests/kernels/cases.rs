//! Every case of every kernel on the GPU against its f64 reference, at each tier of the adapter, between
//! guard zones. `samara kernel test` does the same from the command line.

use crate::common;
use crate::common::outputs::{run_for, tune};
use rayon::prelude::*;
use samara::gpu::Gpu;
use samara::instruments::check::{check, check_cases};
use samara::kernels::{Case, Choice, Entry, LIST, Tier};

#[test]
fn every_case_of_every_kernel_matches_its_reference() {
    // Most of the time goes into compiling, each tier on a processor of its own.
    let of_tier = |gpu: &Gpu| -> (usize, Vec<String>) {
        let checked = LIST.iter().map(|entry| check_cases(gpu, entry, |_| true, None).unwrap());
        checked.fold((0, Vec::new()), |(ran, mut failures), (cases, failed)| {
            failures.extend(failed.iter().map(ToString::to_string));
            (ran + cases, failures)
        })
    };
    let tiers: Vec<_> = common::gpus().par_iter().map(of_tier).collect();
    let ran: usize = tiers.iter().map(|(ran, _)| ran).sum();
    let failures: Vec<String> = tiers.into_iter().flat_map(|(_, failures)| failures).collect();
    eprintln!("{ran} cases ran");
    assert!(failures.is_empty(), "{} of {ran} cases failed:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn attention_is_right_in_every_tile() {
    let Some(mut gpu) = common::gpu() else { return };
    let entry = Entry::named("attention").unwrap();
    let chunk = |case: &Case| case.label.contains("fills the cache") && case.label.ends_with(", f16");
    let mut ran = 0;
    for case in entry.cases().into_iter().filter(chunk) {
        for choice in case.kernel.choices(gpu.tier()) {
            tune(&mut gpu, &*case.kernel, &choice);
            assert_eq!(check(&gpu, &case).unwrap(), None, "{} {choice}", case.label);
            ran += 1;
        }
    }
    assert_eq!(ran, 2 + 4 + 2, "head_dim 32, 64 and 128");
}

#[test]
fn the_likeliest_ids_are_exact_beside_those_that_stand_for_none() {
    let Some(gpu) = common::gpu() else { return };
    let entry = Entry::named("log_likelihood").unwrap();
    for case in entry.cases() {
        let mut memory = case.memory();
        case.kernel.reference(&mut memory);
        let ids = case.outputs()[1];
        let expected: Vec<u8> = memory.read(ids).iter().flat_map(|&id| (id as u32).to_le_bytes()).collect();
        assert_eq!(run_for(&gpu, &case, ids).concat(), expected, "{}", case.label);
    }
}

#[test]
fn labels_are_unique_and_outputs_exist() {
    for entry in LIST.iter() {
        let cases = entry.cases();
        assert!(!cases.is_empty(), "{} has no case", entry.name);
        let mut labels: Vec<&str> = cases.iter().map(|case| case.label.as_str()).collect();
        labels.sort_unstable();
        assert!(labels.windows(2).all(|pair| pair[0] != pair[1]), "{}: a label stands twice", entry.name);
        for case in &cases {
            assert_eq!(case.kernel.name(), entry.name);
            assert!(!case.outputs().is_empty(), "{} [{}] writes nothing", entry.name, case.label);
        }
    }
}

#[test]
fn tunables_are_overrides_that_can_be_chosen_and_only_from_their_list() {
    for case in LIST.iter().flat_map(|entry| entry.cases()) {
        let kernel = &*case.kernel;
        for tunable in kernel.tunables() {
            assert!(tunable.values.contains(&tunable.default), "{} [{}]", kernel.name(), case.label);
            let value_at = |tier, choice| {
                let overrides = kernel.dispatch(tier, &choice).overrides;
                overrides.into_iter().find(|(name, _)| *name == tunable.name).map(|(_, value)| value)
            };
            // What only some variants have is tuned for those.
            let has = |tier: &Tier| value_at(*tier, Choice::default()).is_some();
            let tier = Some(Tier::SUBGROUP).filter(has).unwrap_or(Tier::COOP);
            let value = |choice| value_at(tier, choice).unwrap();
            let choose = |value| [(tunable.name.to_owned(), value)].into_iter().collect::<Choice>();
            let defaults = || Choice::defaults(&kernel.tunables());
            let choices = kernel.choices(tier);
            for &chosen in &tunable.values {
                let runs = choices.contains(&choose(chosen).or(defaults()));
                let expected = if runs { chosen } else { tunable.default };
                assert_eq!(value(choose(chosen)), f64::from(expected), "{} [{}]", kernel.name(), case.label);
                assert!(
                    choices.iter().any(|choice| choice.of(&tunable) == chosen),
                    "{} [{}]: {}={chosen} runs with no other values",
                    kernel.name(),
                    case.label,
                    tunable.name
                );
            }
            assert!(choices.contains(&defaults()), "{} [{}]", kernel.name(), case.label);
            assert_eq!(value(choose(7)), f64::from(tunable.default), "7 is no value of any tunable");
            assert!(!kernel.shape().is_empty());
        }
    }
}
