//! A case on the device against its reference, between guard zones.
//!
//! Each tensor is bound at its exact size between two guard zones. Around inputs the zones hold NaN, so that
//! a read out of bounds spoils the output; around outputs they hold a pattern that must survive. Kernels are
//! compiled without run-time checks, so nothing hides such an access.

use std::fmt;

use super::ranges::{Planes, Ranges, pack};
use crate::error::{Error, Result};
use crate::gpu::{Bindings, BufferRange, Executor, Gpu, unpack_values};
use crate::kernels::{Access, Case, Entry, Tier};
use crate::tensor::TensorId;

/// Bytes of a guard zone: what adapters align a binding to.
const GUARD: usize = 256;

/// How an output differs from its reference.
pub(crate) type Mismatch = String;

/// Runs a case once and compares every output with the reference; `None` if they match.
///
/// # Errors
/// When the device fails or rejects the kernel.
pub fn check(gpu: &Gpu, case: &Case) -> Result<Option<Mismatch>> {
    Prepared::new(case).check(gpu)
}

/// A case that failed.
#[derive(Clone, Debug)]
pub struct Failed {
    /// The kernel.
    pub kernel: &'static str,
    /// The label of the case.
    pub label: String,
    /// Seed of its inputs.
    pub seed: u64,
    /// The tier at which it ran.
    pub tier: Tier,
    /// What is wrong.
    pub why: Mismatch,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, label, seed, tier, why } = self;
        write!(f, "{kernel} [{label}] tier {tier} seed {seed:#x}: {why}")
    }
}

/// Checks those cases of a kernel that `wanted` accepts and the device's tier runs; returns how many ran, and
/// those that failed.
///
/// A seed replaces that of every case.
///
/// # Errors
/// [`Error::Input`] when a file that replaces a shader is wrong: every case would fail alike.
pub fn check_cases(
    gpu: &Gpu,
    entry: &Entry,
    wanted: impl Fn(&Case) -> bool,
    seed: Option<u64>,
) -> Result<(usize, Vec<Failed>)> {
    let (mut ran, mut failed) = (0, Vec::new());
    let tier = gpu.tier();
    for mut case in entry.cases().into_iter().filter(|case| case.kernel.runs_on(tier) && wanted(case)) {
        ran += 1;
        case.seed = seed.unwrap_or(case.seed);
        let why = match check(gpu, &case) {
            Ok(None) => continue,
            Ok(Some(mismatch)) => mismatch,
            Err(error @ Error::Input(_)) => return Err(error),
            Err(error) => error.to_string(),
        };
        failed.push(Failed { kernel: entry.name, label: case.label, seed: case.seed, tier, why });
    }
    Ok((ran, failed))
}

/// A case with the bytes of its inputs and its expected outputs, for any number of runs.
#[derive(Debug)]
pub struct Prepared<'a> {
    case: &'a Case,
    pub(super) planes: Planes,
    expected: Vec<(TensorId, Vec<f64>)>,
}

impl<'a> Prepared<'a> {
    /// Makes the inputs and runs the reference.
    pub fn new(case: &'a Case) -> Self {
        let mut memory = case.memory();
        let planes = pack(case, &memory);
        case.kernel.reference(&mut memory);
        let expected = case.outputs().into_iter().map(|id| (id, memory.read(id).to_vec())).collect();
        Self { case, planes, expected }
    }

    /// Returns the case.
    pub fn case(&self) -> &'a Case {
        self.case
    }

    /// Runs the case once, as the device builds it now, and compares every output with the reference; `None`
    /// if they match.
    ///
    /// # Errors
    /// When the device fails or rejects the kernel.
    pub fn check(&self, gpu: &Gpu) -> Result<Option<Mismatch>> {
        let case = self.case;
        let whole = Ranges::new(&case.tensors, |id| {
            self.planes[id.0 as usize].iter().map(|plane| guarded(gpu, case, id, plane)).collect()
        })?;
        let bound = whole.map(|range| range.slice(GUARD as u64, range.bytes() - 2 * GUARD as u64));
        Executor::new(gpu, [("case", &*case.kernel)].into_iter(), &bound)?.run(gpu);
        gpu.wait()?;
        for (id, expected) in &self.expected {
            let bytes = gpu.read(&whole.ranges(*id)[0])?;
            if let Some(mismatch) = compare(case, gpu.tier(), *id, &bytes, expected) {
                return Ok(Some(mismatch));
            }
        }
        Ok(None)
    }
}

/// Uploads a plane between guard zones.
fn guarded(gpu: &Gpu, case: &Case, id: TensorId, plane: &[u8]) -> Result<BufferRange> {
    let access = case.access(id).unwrap_or(Access::Read);
    let whole = gpu.storage(&case.tensors[id].name, (plane.len() + 2 * GUARD) as u64)?;
    let guards = guard(access.writes());
    gpu.write(&whole, 0, &guards);
    if access == Access::Write {
        // An operand that is only written must not depend on its old contents.
        gpu.write(&whole, GUARD as u64, &vec![0xff; plane.len()]);
    } else {
        gpu.write(&whole, GUARD as u64, plane);
    }
    gpu.write(&whole, (GUARD + plane.len()) as u64, &guards);
    Ok(whole)
}

/// A guard zone: NaN in every float format, or bytes that no kernel writes.
fn guard(written: bool) -> [u8; GUARD] {
    [if written { 0xa5 } else { 0xff }; GUARD]
}

/// Compares the guarded bytes of an output with its reference.
fn compare(case: &Case, tier: Tier, id: TensorId, bytes: &[u8], expected: &[f64]) -> Option<Mismatch> {
    let desc = &case.tensors[id];
    let (before, rest) = bytes.split_at(GUARD);
    let (data, after) = rest.split_at(rest.len() - GUARD);
    if before != guard(true) || after != guard(true) {
        return Some(format!("`{}`: bytes outside the tensor were written", desc.name));
    }
    let found = unpack_values(desc, data);
    let error = nmse(&found, expected);
    let tolerance = case.tolerance_at(tier);
    if error <= tolerance {
        return None;
    }
    let far = |(y, r): (&f64, &f64)| y.is_nan() || (y - r).abs() > r.abs() * 1e-3;
    let worst = found.iter().zip(expected).position(far);
    let detail = worst.map(|i| format!("; first far value [{i}]: {} for {}", found[i], expected[i]));
    Some(format!(
        "`{}`: NMSE {error:.2e} > {tolerance:e} ({}){}",
        desc.name,
        case.reason,
        detail.unwrap_or_default()
    ))
}

/// Normalised mean squared error, sum((y - r)^2) / sum(r^2); 0 when both are all zero.
pub fn nmse(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let error: f64 = found.iter().zip(expected).map(|(y, r)| (y - r) * (y - r)).sum();
    let power: f64 = expected.iter().map(|r| r * r).sum();
    if error == 0.0 { 0.0 } else { error / power }
}
