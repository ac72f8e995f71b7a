//! Every case of every kernel on the GPU against its f64 reference, at each tier of the adapter, between
//! guard zones. `samara kernel test` does the same from the command line.

use crate::common;
use crate::common::outputs::{run_for, tune};
use rayon::prelude::*;
use samara::gpu::Gpu;
use samara::instruments::check::{Prepared, check};
use samara::kernels::{Case, Choice, Entry, LIST, Tier};

/// Checks a case at every tier that gives it another text or dispatch than the ones before; returns how often it ran,
/// and what failed.
fn check_everywhere(gpus: &[Gpu], case: &Case) -> (usize, Vec<String>) {
    let prepared = Prepared::new(case);
    let (mut seen, mut failures) = (Vec::new(), Vec::new());
    for gpu in gpus.iter().filter(|gpu| case.kernel.runs_on(gpu.tier())) {
        let text = gpu.shaders().source(&case.kernel.source(gpu.tier())).text;
        let given = (text, gpu.dispatch(&*case.kernel));
        if seen.contains(&given) {
            continue;
        }
        seen.push(given);
        let why = prepared.check(gpu).unwrap_or_else(|error| Some(error.to_string()));
        let name =
            format!("{} [{}] tier {} seed {:#x}", case.kernel.name(), case.label, gpu.tier(), case.seed);
        failures.extend(why.map(|why| format!("{name}: {why}")));
    }
    (seen.len(), failures)
}

#[test]
fn every_case_of_every_kernel_matches_its_reference() {
    let gpus = common::gpus();
    if gpus.is_empty() {
        return;
    }
    let cases: Vec<Case> = LIST.iter().flat_map(|entry| entry.cases()).collect();
    // Most of the time goes into compiling.
    let checked: Vec<_> = cases.par_iter().map(|case| check_everywhere(&gpus, case)).collect();
    let ran: usize = checked.iter().map(|(ran, _)| ran).sum();
    let failures: Vec<String> = checked.into_iter().flat_map(|(_, failures)| failures).collect();
    eprintln!("{ran} dispatches ran");
    assert!(failures.is_empty(), "{} of {ran} failed:\n{}", failures.len(), failures.join("\n"));
    let least = cases.iter().filter(|case| case.kernel.runs_on(Tier::PLAIN)).count();
    assert!(ran >= least, "{ran} dispatches of {least} cases");
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
    let mut tuned = 0;
    for case in LIST.iter().flat_map(|entry| entry.cases()) {
        let kernel = &*case.kernel;
        for tunable in kernel.tunables() {
            tuned += 1;
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
    assert!(tuned > 0);
}
