//! Repeated measurements of one quantity.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Measurements of one quantity, in the order in which they were taken; at least one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "Stored", from = "Stored")]
pub struct Samples(Vec<f64>);

/// What is written: the median and the extremes beside the samples they follow from.
#[derive(Serialize, Deserialize)]
struct Stored {
    median: f64,
    min: f64,
    max: f64,
    samples: Vec<f64>,
}

impl Samples {
    /// Takes measurements.
    ///
    /// # Panics
    /// When there is none, or one is not finite.
    pub fn new(samples: Vec<f64>) -> Self {
        assert!(!samples.is_empty() && samples.iter().all(|v| v.is_finite()), "samples {samples:?}");
        Self(samples)
    }

    /// Returns the median.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
    }

    /// Returns the least.
    pub fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// Returns the largest.
    pub fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    /// Returns half the distance between the extremes: the number after ± in a table.
    pub fn spread(&self) -> f64 {
        (self.max() - self.min()) / 2.0
    }

    /// Returns the measurements.
    pub fn values(&self) -> &[f64] {
        &self.0
    }
}

impl From<Samples> for Stored {
    fn from(samples: Samples) -> Self {
        Self { median: samples.median(), min: samples.min(), max: samples.max(), samples: samples.0 }
    }
}

impl From<Stored> for Samples {
    fn from(stored: Stored) -> Self {
        // A damaged file may hold an empty list; the median replaces it.
        Self(if stored.samples.is_empty() { vec![stored.median] } else { stored.samples })
    }
}

impl fmt::Display for Samples {
    /// Writes `median ± spread` with the given precision.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let precision = f.precision().unwrap_or(2);
        write!(f, "{:.precision$} ± {:.precision$}", self.median(), self.spread())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spreads_are_those_of_the_sorted_samples() {
        let odd = Samples::new(vec![3.0, 1.0, 2.0]);
        assert_eq!((odd.median(), odd.min(), odd.max(), odd.spread()), (2.0, 1.0, 3.0, 1.0));
        let even = Samples::new(vec![4.0, 1.0, 2.0, 10.0]);
        assert_eq!((even.median(), even.spread()), (3.0, 4.5));
        assert_eq!(format!("{even:.1}"), "3.0 ± 4.5");
        assert_eq!(Samples::new(vec![7.0]).median(), 7.0);
    }

    #[test]
    fn what_is_written_reads_back() {
        let samples = Samples::new(vec![3.0, 1.0]);
        let text = serde_json::to_string(&samples).unwrap();
        assert_eq!(text, r#"{"median":2.0,"min":1.0,"max":3.0,"samples":[3.0,1.0]}"#);
        assert_eq!(serde_json::from_str::<Samples>(&text).unwrap(), samples);
    }
}
