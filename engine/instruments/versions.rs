//! Two versions of a kernel on the same inputs: both checked, then timed interleaved.
//!
//! A GPU that warms up or is shared drifts, so versions timed one after the other would differ by when
//! they ran. Interleaved pair by pair, both see the same drift.

use super::check::{Mismatch, Prepared};
use super::samples::Samples;
use super::workbench::{Rotation, Timer};
use crate::error::Result;
use crate::gpu::{Gpu, Tuning};
use crate::kernels::{Case, Shaders};

/// Nanoseconds of one dispatch of two versions, interleaved.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Of the first version.
    pub first: Samples,
    /// Of the second, as many.
    pub second: Samples,
}

impl Comparison {
    /// Times two versions, interleaved.
    ///
    /// # Errors
    /// When the device fails, or its clock does not advance.
    pub fn measure(gpu: &Gpu, first: &Timer, second: &Timer, pairs: usize) -> Result<Self> {
        let (mut firsts, mut seconds) = (Vec::new(), Vec::new());
        for _ in 0..pairs.max(1) {
            firsts.push(first.sample(gpu)?);
            seconds.push(second.sample(gpu)?);
        }
        Ok(Self { first: Samples::new(firsts), second: Samples::new(seconds) })
    }

    /// Returns the time of the second version as a share of the first's, pair by pair.
    pub fn ratios(&self) -> Samples {
        let pairs = self.first.values().iter().zip(self.second.values());
        Samples::new(pairs.map(|(first, second)| second / first).collect())
    }

    /// Returns whether the versions differ beyond the spread: every time of one is below every time of the
    /// other.
    pub fn differs(&self) -> bool {
        self.first.max() < self.second.min() || self.second.max() < self.first.min()
    }
}

/// Checks and times a case with the built-in shaders and with changed ones, or returns which version is wrong
/// and how.
///
/// Tuned values are left out: they were found for one text and would favour it. The device keeps the
/// built-in shaders.
///
/// # Errors
/// When the device fails, or a changed shader is wrong.
pub fn against(
    gpu: &mut Gpu,
    case: &Case,
    changed: &Shaders,
    pairs: usize,
) -> Result<std::result::Result<Comparison, Mismatch>> {
    let prepared = Prepared::new(case);
    let rotation = Rotation::new(gpu, &prepared)?;
    gpu.set_tuning(Tuning::default());
    gpu.set_shaders(changed.clone());
    let second = rotation.timer(gpu);
    gpu.set_shaders(Shaders::default());
    // A mistake in a file is reported before the built-in version is built.
    let second = second?;
    Ok(match (rotation.timer(gpu)?, second) {
        (Ok(first), Ok(second)) => Ok(Comparison::measure(gpu, &first, &second, pairs)?),
        (Err(mismatch), _) => Err(format!("the built-in version is wrong: {mismatch}")),
        (_, Err(mismatch)) => Err(format!("the changed version is wrong: {mismatch}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comparison(first: [f64; 3], second: [f64; 3]) -> Comparison {
        Comparison { first: Samples::new(first.to_vec()), second: Samples::new(second.to_vec()) }
    }

    #[test]
    fn ratios_are_taken_pair_by_pair() {
        let ratios = comparison([100.0, 200.0, 400.0], [50.0, 150.0, 100.0]).ratios();
        assert_eq!(ratios.values(), [0.5, 0.75, 0.25]);
        assert_eq!(ratios.median(), 0.5);
    }

    #[test]
    fn versions_differ_only_when_no_times_overlap() {
        assert!(comparison([10.0, 11.0, 12.0], [8.0, 9.0, 9.9]).differs());
        assert!(comparison([8.0, 9.0, 9.9], [10.0, 11.0, 12.0]).differs());
        assert!(!comparison([10.0, 11.0, 12.0], [8.0, 9.0, 10.1]).differs());
        assert!(!comparison([10.0, 11.0, 12.0], [10.0, 11.0, 12.0]).differs());
    }
}
