//! Two runs side by side: what became faster or slower beyond the spread of either.
//!
//! A change counts when the medians differ by more than a threshold and no sample of one run lies within
//! the range of the other. What only one run measured is listed, but is neither faster nor slower.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::error::{Error, Result};
use crate::instruments::document::{
    Ablation, AblationRow, Bench, Document, Environment, KernelRow, Kernels, Profile, Subject,
};
use crate::instruments::names;
use crate::instruments::samples::Samples;

/// A share of the earlier median that a change has to exceed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold(f64);

impl FromStr for Threshold {
    type Err = Error;

    /// Reads a percentage, `5%`, or a fraction below 1, `0.05`; a bare `5` could mean either.
    fn from_str(text: &str) -> Result<Self> {
        let share = match text.strip_suffix('%') {
            Some(percent) => percent.trim_end().parse().ok().map(|percent: f64| percent / 100.0),
            None => text.parse().ok().filter(|share: &f64| *share < 1.0),
        };
        share.filter(|share| (0.0..=1.0).contains(share)).map(Self).ok_or_else(|| {
            Error::Input(format!(
                "threshold `{text}` is neither a percentage from 0% to 100%, like 5%, nor a fraction below 1, like 0.05"
            ))
        })
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Rounded, so that 0.07 is 7% and not 7.000000000000001%.
        write!(f, "{}%", (self.0 * 1e6).round() / 1e4)
    }
}

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
    pub fn more_is_faster(self) -> bool {
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

/// The verdict on a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Slower beyond the threshold and the spread of both runs.
    Slower,
    /// Faster beyond the threshold and the spread of both runs.
    Faster,
    /// Neither.
    Same,
    /// Only the first run measured it.
    OnlyA,
    /// Only the second run measured it.
    OnlyB,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Slower => "slower",
            Self::Faster => "faster",
            Self::Same => "same",
            Self::OnlyA => "only in A",
            Self::OnlyB => "only in B",
        })
    }
}

/// One measurement of one or both runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// What its samples count.
    pub unit: Unit,
    /// The verdict.
    pub verdict: Verdict,
    /// Difference of the medians as a share of A's; none where one is missing or A's is zero.
    pub change: Option<f64>,
    /// Samples of the first run.
    pub a: Option<Samples>,
    /// Samples of the second run.
    pub b: Option<Samples>,
}

/// Two runs of one instrument, measurement by measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The instrument's kind of document.
    pub kind: &'static str,
    /// What a change has to exceed, as a share of A's median.
    #[serde(serialize_with = "share")]
    pub threshold: Threshold,
    /// One sentence for each difference in how the two runs were measured.
    pub warnings: Vec<String>,
    /// In the order of A, then what only B measured.
    pub rows: Vec<Row>,
}

fn share<S: Serializer>(threshold: &Threshold, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_f64(threshold.0)
}

impl Comparison {
    /// Returns how many measurements have this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.rows.iter().filter(|row| row.verdict == verdict).count()
    }
}

/// Compares the second run with the first.
///
/// Rows are matched by what they measure. Adapter, backend and tier are part of that only if a run has
/// several of them: two runs of one adapter each may be of different GPUs.
///
/// # Errors
/// [`Error::Input`] when the documents are of different kinds or share no measurement.
pub fn compare(a: &Document, b: &Document, threshold: Threshold) -> Result<Comparison> {
    let (a, b) = (Run::of(a), Run::of(b));
    if a.kind != b.kind {
        return Err(Error::Input(format!(
            "documents of the kinds `{}` and `{}` have nothing to compare",
            a.kind, b.kind
        )));
    }
    let warnings = warnings(&a, &b);
    let kind = a.kind;
    let with_place = [&a, &b].iter().any(|run| run.places().len() > 1);
    let rows = rows(a.measurements(with_place), b.measurements(with_place), threshold);
    if !rows.iter().any(|row| row.a.is_some() && row.b.is_some()) {
        return Err(Error::Input(format!("the two {kind} documents have no measurement in common")));
    }
    Ok(Comparison { kind, threshold, warnings, rows })
}

/// A name and a unit, by which the rows of two runs are matched.
type Key = (String, Unit);

/// A document as a list of measurements.
struct Run<'a> {
    kind: &'static str,
    /// What the whole document is about, if that is not part of the names.
    subject: Option<&'a Subject>,
    measurements: Vec<(&'a Environment, Key, Samples)>,
}

impl<'a> Run<'a> {
    fn of(document: &'a Document) -> Self {
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
    fn facts(&self) -> BTreeMap<&'static str, BTreeSet<String>> {
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

    fn places(&self) -> BTreeSet<String> {
        self.measurements.iter().map(|(environment, ..)| place(environment)).collect()
    }

    /// Returns the measurements under names that are all different.
    fn measurements(self, with_place: bool) -> Vec<(Key, Samples)> {
        let mut seen: HashMap<Key, usize> = HashMap::new();
        let name = |(environment, (name, unit), samples): (&Environment, Key, Samples)| {
            let name = if with_place { format!("{}: {name}", place(environment)) } else { name };
            let count = seen.entry((name.clone(), unit)).or_default();
            *count += 1;
            let name = if *count > 1 { format!("{name} (number {count})") } else { name };
            ((name, unit), samples)
        };
        self.measurements.into_iter().map(name).collect()
    }
}

/// Returns the name of an adapter at a backend and tier; a document may have several.
fn place(environment: &Environment) -> String {
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
        // Only repetitions that every dispatch has add up to a time of the whole.
        sum.truncate(values.len());
        sum.iter_mut().zip(values).for_each(|(sum, value)| *sum = (*sum + value).min(f64::MAX));
    }
}

/// Returns how environments and models differ, except for the version of the program.
fn warnings(a: &Run, b: &Run) -> Vec<String> {
    let mut warnings = Vec::new();
    let (left, right) = (a.facts(), b.facts());
    let differ = |(name, left): (&&str, &BTreeSet<String>)| {
        let right = right.get(*name).filter(|right| *right != left)?;
        let list = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(" and ");
        Some(format!("{name} `{}` against `{}`", list(left), list(right)))
    };
    let different: Vec<String> = left.iter().filter_map(differ).collect();
    if !different.is_empty() {
        warnings.push(format!("A and B were not measured alike: {}", different.join(", ")));
    }
    if let (Some(a), Some(b)) = (a.subject.map(names::subject), b.subject.map(names::subject))
        && a != b
    {
        warnings.push(format!("A and B did not measure the same: `{a}` against `{b}`"));
    }
    warnings
}

/// Matches measurements by their keys.
fn rows(a: Vec<(Key, Samples)>, b: Vec<(Key, Samples)>, threshold: Threshold) -> Vec<Row> {
    let order: Vec<Key> = b.iter().map(|(key, _)| key.clone()).collect();
    let mut b: HashMap<Key, Samples> = b.into_iter().collect();
    let mut rows: Vec<Row> = a
        .into_iter()
        .map(|(key, a)| (b.remove(&key), key, a))
        .map(|(b, key, a)| row(key, Some(a), b, threshold))
        .collect();
    let left = order.into_iter().filter_map(|key| Some((b.remove(&key)?, key)));
    rows.extend(left.map(|(b, key)| row(key, None, Some(b), threshold)));
    rows
}

fn row((name, unit): Key, a: Option<Samples>, b: Option<Samples>, threshold: Threshold) -> Row {
    let (verdict, change) = match (&a, &b) {
        (Some(a), Some(b)) => judge(a, b, unit, threshold),
        (Some(_), None) => (Verdict::OnlyA, None),
        _ => (Verdict::OnlyB, None),
    };
    Row { name, unit, verdict, change, a, b }
}

/// Returns the verdict on a measurement and by what share its median changed.
fn judge(a: &Samples, b: &Samples, unit: Unit, threshold: Threshold) -> (Verdict, Option<f64>) {
    let difference = b.median() - a.median();
    let apart = a.max() < b.min() || b.max() < a.min();
    let verdict = if !apart || difference.abs() <= threshold.0 * a.median().abs() {
        Verdict::Same
    } else if (difference > 0.0) == unit.more_is_faster() {
        Verdict::Faster
    } else {
        Verdict::Slower
    };
    (verdict, (a.median() != 0.0).then(|| difference / a.median()))
}
