//! The search for the fastest values of a kernel's tunables, shape by shape.
//!
//! Every candidate is built as the engine builds it, checked against the reference, and timed. The best one
//! is then timed interleaved with the default, and counts only if it is faster beyond the spread: one lucky
//! run is not enough.

use std::collections::BTreeSet;

use super::check::{Mismatch, Prepared};
use super::versions::Comparison;
use super::workbench::{Rotation, Timer};
use crate::error::Result;
use crate::gpu::{Gpu, Tuned, Tuning};
use crate::kernels::{Case, Choice, Kernel, Source, Tier};
use crate::translate::Module;

/// WebGPU's default limits, with which devices are opened.
const MAX_INVOCATIONS: u32 = 256;
const MAX_GROUPS: u32 = 65535;

/// Samples of a candidate before the best one is compared with the default.
const SCREENING: usize = 3;

/// What a search found for one kernel and shape.
#[derive(Clone, Debug)]
pub struct Found {
    /// The kernel.
    pub kernel: String,
    /// Its sizes and formats.
    pub shape: String,
    /// The values without tuning.
    pub default: Choice,
    /// The fastest other values, timed interleaved with the default; `None` when no other values passed.
    pub best: Option<(Choice, Comparison)>,
    /// Values that were rejected or gave a wrong result, and why.
    pub dropped: Vec<(Choice, String)>,
    tuned: Tuned,
}

impl Found {
    /// Returns whether the best values are faster than the default beyond the spread.
    pub fn wins(&self) -> bool {
        let faster = |c: &Comparison| c.differs() && c.second.median() < c.first.median();
        self.best.as_ref().is_some_and(|(_, comparison)| faster(comparison))
    }

    /// Keeps the best values if they win, else removes those kept before.
    pub fn apply(&self, tuning: &mut Tuning) {
        if self.wins() { tuning.insert(self.tuned.clone()) } else { tuning.remove(&self.tuned) }
    }
}

/// Searches the values of a case's tunables, or returns how its output is wrong with the default.
///
/// `tried` is called for each candidate and for the last comparison: [`trials`] times at most. The device is
/// left without tuned values.
///
/// # Errors
/// When the device fails, or a file that replaces a shader is wrong.
pub fn tune(
    gpu: &mut Gpu,
    case: &Case,
    samples: usize,
    mut tried: impl FnMut(),
) -> Result<std::result::Result<Found, Mismatch>> {
    let kernel = &*case.kernel;
    let source = gpu.shaders().source(&kernel.source(gpu.tier()));
    let (mut fitting, mut dropped) = candidates(gpu, kernel, &source)?;
    let default = gpu.untuned(kernel);
    fitting.retain(|choice| *choice != default);

    let prepared = Prepared::new(case);
    let rotation = Rotation::new(gpu, &prepared)?;
    let reference = match build(gpu, &rotation, kernel, &source, &default)? {
        Ok(timer) => timer,
        Err(mismatch) => return Ok(Err(mismatch)),
    };
    tried();
    let mut timers = Vec::new();
    for choice in fitting {
        match build(gpu, &rotation, kernel, &source, &choice) {
            Ok(Ok(timer)) => timers.push((choice, timer)),
            Ok(Err(mismatch)) => dropped.push((choice, mismatch)),
            Err(refused) => dropped.push((choice, refused.to_string())),
        }
        tried();
    }
    // A candidate may have been rejected because the device was lost.
    gpu.check()?;
    let best = match fastest(gpu, timers)? {
        Some((choice, timer)) => Some((choice, Comparison::measure(gpu, &reference, &timer, samples)?)),
        None => None,
    };
    tried();
    let tuned = Tuned::new(kernel, gpu.tier(), &source, best.as_ref().map_or(&default, |(choice, _)| choice));
    let (kernel, shape) = (kernel.name().to_owned(), kernel.shape());
    Ok(Ok(Found { kernel, shape, default, best, dropped, tuned }))
}

/// Builds a case with some values, as the engine does where they were tuned.
fn build(
    gpu: &mut Gpu,
    rotation: &Rotation<'_>,
    kernel: &dyn Kernel,
    source: &Source,
    choice: &Choice,
) -> Result<std::result::Result<Timer, Mismatch>> {
    let mut tuning = Tuning::default();
    tuning.insert(Tuned::new(kernel, gpu.tier(), source, choice));
    gpu.set_tuning(tuning);
    let timer = rotation.timer(gpu);
    gpu.set_tuning(Tuning::default());
    timer
}

/// Returns the most calls that [`tune`] makes to `tried` for a case at a tier.
pub fn trials(case: &Case, tier: Tier) -> usize {
    case.kernel.choices(tier).len() + 1
}

/// Returns one of each kernel and shape, the first, without those that have nothing to tune.
pub fn tunable<T>(all: Vec<T>, kernel: impl Fn(&T) -> &dyn Kernel) -> Vec<T> {
    let mut seen = BTreeSet::new();
    let mut new = |item: &T| {
        let kernel = kernel(item);
        !kernel.tunables().is_empty() && seen.insert((kernel.name(), kernel.shape()))
    };
    all.into_iter().filter(|item| new(item)).collect()
}

/// Choices by whether their dispatch fits the device, and why the others do not.
type Candidates = (Vec<Choice>, Vec<(Choice, String)>);

fn candidates(gpu: &Gpu, kernel: &dyn Kernel, source: &Source) -> Result<Candidates> {
    let module = Module::new(source, gpu.tier())?;
    let (mut fitting, mut dropped) = (Vec::new(), Vec::new());
    for choice in kernel.choices(gpu.tier()) {
        match misfit(gpu, kernel, gpu.tier(), &module, &choice) {
            None => fitting.push(choice),
            Some(why) => dropped.push((choice, why)),
        }
    }
    Ok((fitting, dropped))
}

/// Returns why a device cannot run a kernel with some values.
fn misfit(gpu: &Gpu, kernel: &dyn Kernel, tier: Tier, module: &Module, choice: &Choice) -> Option<String> {
    let dispatch = kernel.dispatch(tier, choice);
    let footprint = match module.specialise(&dispatch.overrides).and_then(|module| module.footprint()) {
        Ok(footprint) => footprint,
        Err(error) => return Some(error.to_string()),
    };
    let past = |what: &str, found: u32, most: u32| {
        (found > most).then(|| format!("{found} {what}, the adapter has {most}"))
    };
    let summary = gpu.summary();
    let bytes = summary.workgroup_memory_bytes.min(tier.workgroup_bytes());
    past("invocations", footprint.invocations, summary.max_invocations.min(MAX_INVOCATIONS))
        .or_else(|| past("bytes of workgroup memory", footprint.workgroup_bytes, bytes))
        .or_else(|| past("workgroups", dispatch.grid.into_iter().max().unwrap_or(0), MAX_GROUPS))
}

/// Times candidates and returns the one with the least median.
fn fastest(gpu: &Gpu, timers: Vec<(Choice, Timer)>) -> Result<Option<(Choice, Timer)>> {
    let mut best: Option<(f64, Choice, Timer)> = None;
    for (choice, timer) in timers {
        let time = timer.samples(gpu, SCREENING)?.median();
        if best.as_ref().is_none_or(|(least, ..)| time < *least) {
            best = Some((time, choice, timer));
        }
    }
    Ok(best.map(|(_, choice, timer)| (choice, timer)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instruments::samples::Samples;
    use crate::kernels::{LIST, Shaders, Tunable};

    fn cases() -> Vec<Case> {
        LIST.iter().flat_map(|entry| entry.cases()).collect()
    }

    /// What a search found when the best values took these times, and the default 10 to 12.
    fn found(best: [f64; 3]) -> (Case, Found) {
        let case = cases().into_iter().find(|case| case.kernel.name() == "add").unwrap();
        let source = Shaders::default().source(&case.kernel.source(Tier::PLAIN));
        let choice: Choice = [("WG".to_owned(), 128)].into_iter().collect();
        let times = |times: [f64; 3]| Samples::new(times.to_vec());
        let comparison = Comparison { first: times([10.0, 11.0, 12.0]), second: times(best) };
        let found = Found {
            kernel: "add".to_owned(),
            shape: case.kernel.shape(),
            default: Choice::defaults(&case.kernel.tunables()),
            tuned: Tuned::new(&*case.kernel, Tier::PLAIN, &source, &choice),
            best: Some((choice, comparison)),
            dropped: Vec::new(),
        };
        (case, found)
    }

    #[test]
    fn only_what_is_faster_beyond_the_spread_is_kept() {
        let mut tuning = Tuning::default();
        let kept = |tuning: &Tuning, case: &Case| {
            let source = || Shaders::default().source(&case.kernel.source(Tier::PLAIN));
            tuning.choice(&*case.kernel, Tier::PLAIN, source).to_string()
        };
        for (best, expected) in [
            ([9.0, 8.0, 9.9], "WG=128"),
            // Not faster any more: what was kept before goes.
            ([9.0, 8.0, 10.1], ""),
            ([1.0, 1.0, 1.0], "WG=128"),
            ([13.0, 14.0, 15.0], ""),
        ] {
            let (case, found) = found(best);
            found.apply(&mut tuning);
            assert_eq!(kept(&tuning, &case), expected, "{best:?}");
            assert_eq!(found.wins(), !expected.is_empty());
        }
    }

    #[test]
    fn each_kernel_and_shape_is_tuned_once_and_none_that_has_no_tunable() {
        let cases = tunable(cases(), |case| &*case.kernel);
        let keys: BTreeSet<_> = cases.iter().map(|case| (case.kernel.name(), case.kernel.shape())).collect();
        assert_eq!(keys.len(), cases.len());
        assert!(keys.contains(&("matvec", "1152 x 1280, q8_0".to_owned())));
        assert!(cases.iter().all(|case| !case.kernel.tunables().is_empty()));
    }

    #[test]
    fn choices_are_every_value_of_each_tunable_with_every_other() {
        let tunable = |name, values: &[u32]| Tunable { name, default: 1, values: values.to_vec() };
        let choices = Choice::all(&[tunable("A", &[1, 2]), tunable("B", &[1, 3, 5])]);
        let shown: Vec<String> = choices.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["A=1 B=1", "A=1 B=3", "A=1 B=5", "A=2 B=1", "A=2 B=3", "A=2 B=5"]);
        assert_eq!(Choice::all(&[]), [Choice::default()]);
    }
}
