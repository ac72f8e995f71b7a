//! Two runs side by side: what became faster or slower beyond the spread of either.
//!
//! A change counts when the medians differ by more than a threshold and no sample of one run lies within
//! the range of the other. What only one run measured is listed, but is neither faster nor slower.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::error::{Error, Result};
use crate::instruments::document::Document;
pub use crate::instruments::measurements::Unit;
use crate::instruments::measurements::{MeasurementKey, Run};
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
    let with_platform = [&a, &b].iter().any(|run| run.platforms().len() > 1);
    let rows = rows(a.measurements(with_platform), b.measurements(with_platform), threshold);
    if !rows.iter().any(|row| row.a.is_some() && row.b.is_some()) {
        return Err(Error::Input(format!("the two {kind} documents have no measurement in common")));
    }
    Ok(Comparison { kind, threshold, warnings, rows })
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
fn rows(
    a: Vec<(MeasurementKey, Samples)>,
    b: Vec<(MeasurementKey, Samples)>,
    threshold: Threshold,
) -> Vec<Row> {
    let order: Vec<MeasurementKey> = b.iter().map(|(key, _)| key.clone()).collect();
    let mut b: HashMap<MeasurementKey, Samples> = b.into_iter().collect();
    let mut rows: Vec<Row> = a
        .into_iter()
        .map(|(key, a)| (b.remove(&key), key, a))
        .map(|(b, key, a)| row(key, Some(a), b, threshold))
        .collect();
    let left = order.into_iter().filter_map(|key| Some((b.remove(&key)?, key)));
    rows.extend(left.map(|(b, key)| row(key, None, Some(b), threshold)));
    rows
}

fn row((name, unit): MeasurementKey, a: Option<Samples>, b: Option<Samples>, threshold: Threshold) -> Row {
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
