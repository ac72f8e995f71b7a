//! A document as a list of measurements, each with a name and a unit that match it with one of another run.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use serde::Serialize;

use crate::instruments::document::{
    Ablation, AblationRow, Bench, Document, Environment, KernelRow, Kernels, Profile, Subject,
};
use crate::instruments::names;
use crate::instruments::samples::Samples;

/// What a sample counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Unit {
    /// Tokens per second.
    #[serde(rename = "tok/s")]
    TokensPerSecond,
    /// Milliseconds until the first token.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Nanoseconds of dispatches.
    #[serde(rename = "ns")]
    Nanoseconds,
}

impl Unit {
    /// Returns whether more of it is faster.
    pub(crate) fn more_is_faster(self) -> bool {
        self == Self::TokensPerSecond
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::TokensPerSecond => "tok/s",
            Self::Milliseconds => "ms",
            Self::Nanoseconds => "ns",
        })
    }
}

/// A name and a unit, by which the rows of two runs are matched.
pub(super) type MeasurementKey = (String, Unit);

/// A document as a list of measurements.
pub(super) struct Run<'a> {
    pub(super) kind: &'static str,
    /// The subject of the whole document, if the names do not say it.
    pub(super) subject: Option<&'a Subject>,
    measurements: Vec<(&'a Environment, MeasurementKey, Samples)>,
}

impl<'a> Run<'a> {
    pub(super) fn of(document: &'a Document) -> Self {
        match document {
            Document::Bench(bench) => Self::of_bench(bench),
            Document::Profile(profile) => Self::of_profile(profile),
            Document::Ablation(ablation) => Self::of_ablation(ablation),
            Document::Kernels(kernels) => Self::of_kernels(kernels),
        }
    }

    fn of_bench(bench: &'a Bench) -> Self {
        let mut measurements = Vec::new();
        for row in &bench.rows {
            let name = format!("{}, {}", names::subject(&row.subject), row.test);
            let first = (format!("{name}: first token"), Unit::Milliseconds);
            measurements.push((&row.environment, (name, Unit::TokensPerSecond), row.tok_s.clone()));
            measurements.push((&row.environment, first, row.first_token_ms.clone()));
        }
        Self { kind: "bench", subject: None, measurements }
    }

    /// The time of each step as a whole and of its dispatches, and in it that of each kernel and shape.
    fn of_profile(profile: &'a Profile) -> Self {
        let mut totals = Totals::default();
        for step in &profile.steps {
            let name = format!("{} of {} @ {}", step.name, step.tokens, step.position);
            totals.add(format!("{name}: wall clock"), &step.wall_ns);
            for dispatch in &step.dispatches {
                totals.add(name.clone(), &dispatch.ns);
                totals.add(format!("{name}: {}, {}", dispatch.kernel, dispatch.shape), &dispatch.ns);
            }
        }
        let take = |(name, ns)| (&profile.environment, (name, Unit::Nanoseconds), Samples::new(ns));
        let measurements = totals.sums.into_iter().map(take).collect();
        Self { kind: "profile", subject: Some(&profile.subject), measurements }
    }

    fn of_ablation(ablation: &'a Ablation) -> Self {
        let take = |row: &AblationRow| {
            let decode = format!("{}, tg{}", row.name, ablation.generated);
            let prefill = format!("{}, pp{}", row.name, ablation.prompt);
            [(decode, row.decode_tok_s.clone()), (prefill, row.prefill_tok_s.clone())]
                .map(|(name, samples)| (&ablation.environment, (name, Unit::TokensPerSecond), samples))
        };
        let measurements = ablation.rows.iter().flat_map(take).collect();
        Self { kind: "ablation", subject: Some(&ablation.subject), measurements }
    }

    fn of_kernels(kernels: &'a Kernels) -> Self {
        let take = |row: &KernelRow| {
            let key = (format!("{}, {}", row.kernel, row.case), Unit::Nanoseconds);
            (&kernels.environment, key, row.ns.clone())
        };
        Self { kind: "kernels", subject: None, measurements: kernels.rows.iter().map(take).collect() }
    }

    /// Returns every value of each fact about the environments that should be the same in two runs.
    pub(super) fn facts(&self) -> BTreeMap<&'static str, BTreeSet<String>> {
        let mut values: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
        for (environment, ..) in &self.measurements {
            let facts = names::facts(environment);
            let program = |name: &str| matches!(name, "samara" | "commit");
            for (name, value) in facts.into_iter().filter(|(name, _)| !program(name)) {
                values.entry(name).or_default().insert(value);
            }
        }
        values
    }

    pub(super) fn platforms(&self) -> BTreeSet<String> {
        self.measurements.iter().map(|(environment, ..)| platform(environment)).collect()
    }

    /// Returns the measurements under unique names.
    pub(super) fn measurements(self, with_platform: bool) -> Vec<(MeasurementKey, Samples)> {
        let mut seen: HashMap<MeasurementKey, usize> = HashMap::new();
        let name = |(environment, (name, unit), samples): (&Environment, MeasurementKey, Samples)| {
            let name = if with_platform { format!("{}: {name}", platform(environment)) } else { name };
            let count = seen.entry((name.clone(), unit)).or_default();
            *count += 1;
            let name = if *count > 1 { format!("{name} (number {count})") } else { name };
            ((name, unit), samples)
        };
        self.measurements.into_iter().map(name).collect()
    }
}

/// Returns the name of an adapter at a backend and tier; a document may have several.
fn platform(environment: &Environment) -> String {
    format!("{} ({}, {})", environment.adapter, environment.backend, environment.tier)
}

/// Sums of samples by name, in the order in which the names first appeared.
#[derive(Default)]
struct Totals {
    sums: Vec<(String, Vec<f64>)>,
    index: HashMap<String, usize>,
}

impl Totals {
    /// Adds samples to a sum, repetition by repetition.
    fn add(&mut self, name: String, samples: &Samples) {
        let values = samples.values();
        let Some(&index) = self.index.get(&name) else {
            self.index.insert(name.clone(), self.sums.len());
            return self.sums.push((name, values.to_vec()));
        };
        let sum = &mut self.sums[index].1;
        // Only repetitions that every dispatch has add up to a whole.
        sum.truncate(values.len());
        sum.iter_mut().zip(values).for_each(|(sum, value)| *sum = (*sum + value).min(f64::MAX));
    }
}
