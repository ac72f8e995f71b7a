//! One case on the device: checked, then timed.
//!
//! In a step a kernel reads its weights from device memory, because the data used between two runs of it is
//! larger than any cache; run repeatedly on one set, it would find them in the cache. So the inputs of a case
//! have several copies, used in rotation, which together exceed the last-level cache.
//! All copies share the outputs, and what is changed in place: as in a step, every dispatch waits for the
//! one before it at the barrier that their common output needs. With separate outputs, dispatches would
//! overlap, and each would seem to take less time than it does.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::check::{Mismatch, Prepared};
use super::document::{Ceilings, KernelRow};
use super::ranges::{Ranges, upload};
use super::samples::Samples;
use crate::error::{Error, Result};
use crate::gpu::{Bindings, Clock, Executor, Gpu};
use crate::kernels::{Access, Case, Tier};
use crate::tensor::TensorId;

/// Bytes to read before a copy is read again: beyond the largest caches of GPUs.
const CACHE_BYTES: u64 = 256 << 20;
/// The same for an adapter that is a program on the CPU.
const SOFTWARE_CACHE_BYTES: u64 = 32 << 20;
/// Most copies; activations of one token, which a step finds in the cache too, stay below the bytes above.
const MAX_COPIES: u64 = 256;
/// All copies may take that many times the bytes above, if a case reads little of what it binds.
const ROOM: u64 = 4;
/// A sample lasts about this long, in nanoseconds, unless that takes more dispatches than are allowed.
const SAMPLE_NS: f64 = 1e7;
const MAX_DISPATCHES: usize = 2048;
/// How long a case runs before it is timed: clocks of idle GPUs take a while to rise.
const WARM_UP: Duration = Duration::from_millis(100);

/// A case on the device, in several copies.
#[derive(Debug)]
pub struct Rotation<'a> {
    prepared: &'a Prepared<'a>,
    copies: Vec<Ranges>,
}

impl<'a> Rotation<'a> {
    /// Uploads the copies.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn new(gpu: &Gpu, prepared: &'a Prepared<'a>) -> Result<Self> {
        let (case, planes) = (prepared.case(), &prepared.planes);
        let mut copies = vec![Ranges::upload(gpu, &case.tensors, planes)?];
        let shared = |id: TensorId| case.access(id).is_none_or(Access::writes);
        for _ in 1..copies_for(gpu.summary().software, case, prepared) {
            copies.push(Ranges::new(&case.tensors, |id| match shared(id) {
                true => Ok(copies[0].ranges(id).to_vec()),
                false => upload(gpu, &case.tensors, planes, id),
            })?);
            // Gives the device time to take what was staged.
            gpu.flush()?;
        }
        Ok(Self { prepared, copies })
    }

    /// Checks the case as the device builds it now, with its shaders and tuned values, and returns its timer,
    /// or how its output is wrong.
    ///
    /// # Errors
    /// When the device fails or rejects the kernel.
    pub fn timer(&self, gpu: &Gpu) -> Result<std::result::Result<Timer, Mismatch>> {
        if let Some(mismatch) = self.prepared.check(gpu)? {
            return Ok(Err(mismatch));
        }
        let copies = self.copies.len();
        let wanted = match gpu.clock() {
            // This clock repeats what it times, so that has to be every copy.
            Clock::Wall => copies,
            _ => self.dispatches(gpu)?,
        };
        let timer = Timer { parts: self.parts(gpu, wanted)?, next: Cell::new(0), copies };
        let start = Instant::now();
        while start.elapsed() < WARM_UP {
            timer.sample(gpu)?;
        }
        Ok(Ok(timer))
    }

    /// Returns how many dispatches make a sample.
    fn dispatches(&self, gpu: &Gpu) -> Result<usize> {
        let one = self.over(gpu, self.copies.iter().take(1))?;
        one.run(gpu);
        let ns = one.elapsed(gpu)?.max(1.0);
        Ok((SAMPLE_NS / ns).ceil().clamp(1.0, MAX_DISPATCHES as f64) as usize)
    }

    /// Builds about `wanted` dispatches, as whole rounds over the copies; or, if one round is more than that,
    /// the round in parts of `wanted` dispatches.
    fn parts(&self, gpu: &Gpu, wanted: usize) -> Result<Vec<Executor>> {
        let copies = self.copies.len();
        if wanted < copies {
            return self.copies.chunks(wanted).map(|part| self.over(gpu, part.iter())).collect();
        }
        let times = (wanted / copies) * copies;
        Ok(vec![self.over(gpu, self.copies.iter().cycle().take(times))?])
    }

    fn over<'b>(&'b self, gpu: &Gpu, copies: impl Iterator<Item = &'b Ranges>) -> Result<Executor> {
        let case = self.prepared.case();
        Executor::over(gpu, &case.label, &*case.kernel, copies)
    }
}

/// Returns how many copies of its inputs a case needs.
fn copies_for(software: bool, case: &Case, prepared: &Prepared<'_>) -> u64 {
    let enough = if software { SOFTWARE_CACHE_BYTES } else { CACHE_BYTES };
    let bound: usize = prepared.planes.iter().flatten().map(Vec::len).sum();
    let (read, bound) = (case.cost().read.max(1), (bound as u64).max(1));
    (enough / read + 1).min(ROOM * enough / bound).clamp(2, MAX_COPIES)
}

/// A case that was checked and is ready to be timed.
#[derive(Debug)]
pub struct Timer {
    parts: Vec<Executor>,
    next: Cell<usize>,
    copies: usize,
}

impl Timer {
    /// Returns the nanoseconds of one dispatch: the mean of about [`Self::dispatches`] of them.
    ///
    /// # Errors
    /// When the device fails, or its clock does not advance.
    pub fn sample(&self, gpu: &Gpu) -> Result<f64> {
        let part = &self.parts[self.next.replace((self.next.get() + 1) % self.parts.len())];
        match part.elapsed(gpu)? {
            ns if ns > 0.0 => Ok(ns / part.len() as f64),
            _ => Err(Error::Gpu(format!(
                "adapter `{}`: by its clock {} dispatches take no time",
                gpu.summary().name,
                part.len()
            ))),
        }
    }

    /// Takes some samples, at least one.
    ///
    /// # Errors
    /// As [`Self::sample`].
    pub fn samples(&self, gpu: &Gpu, count: usize) -> Result<Samples> {
        Ok(Samples::new((0..count.max(1)).map(|_| self.sample(gpu)).collect::<Result<_>>()?))
    }

    /// Returns the number of dispatches that a sample is the mean of; the last part of the copies may be
    /// smaller.
    pub fn dispatches(&self) -> usize {
        self.parts[0].len()
    }

    /// Returns the number of copies of the inputs.
    pub fn copies(&self) -> usize {
        self.copies
    }
}

/// Checks a case and times it, or returns how its output is wrong.
///
/// # Errors
/// When the device fails, is out of memory or rejects the kernel.
pub fn time(
    gpu: &Gpu,
    case: &Case,
    ceilings: &Ceilings,
    samples: usize,
) -> Result<std::result::Result<KernelRow, Mismatch>> {
    let prepared = Prepared::new(case);
    match Rotation::new(gpu, &prepared)?.timer(gpu)? {
        Ok(timer) => Ok(Ok(row(case, ceilings, timer.samples(gpu, samples)?, timer.copies()))),
        Err(mismatch) => Ok(Err(mismatch)),
    }
}

/// Combines times with what the case has to move and compute.
fn row(case: &Case, ceilings: &Ceilings, ns: Samples, copies: usize) -> KernelRow {
    let (kernel, cost, median) = (&*case.kernel, case.cost(), ns.median());
    let mut ceilings = *ceilings;
    if !kernel.runs_on(Tier::SUBGROUP) {
        // It computes on matrix units.
        ceilings.fma_gflop_s = ceilings.matrix_gflop_s.unwrap_or(ceilings.fma_gflop_s);
    }
    let (least, by_memory) = ceilings.bound(cost.bytes(), cost.flops);
    KernelRow {
        kernel: kernel.name().to_owned(),
        case: case.label.clone(),
        shape: kernel.shape(),
        ns,
        bytes: cost.bytes(),
        flops: cost.flops,
        gb_s: cost.bytes() as f64 / median,
        gflop_s: cost.flops as f64 / median,
        bound: if by_memory { "memory" } else { "compute" }.to_owned(),
        share: least / median,
        copies,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::LIST;

    #[test]
    fn copies_exceed_the_cache_unless_they_would_be_too_many_or_too_large() {
        let benched = LIST.iter().flat_map(|entry| entry.cases()).filter(|case| case.bench);
        let mut exceeding = 0;
        for case in
            benched.filter(|case| ["add", "embed", "matvec", "kv_write"].contains(&case.kernel.name()))
        {
            let prepared = Prepared::new(&case);
            let bound: usize = prepared.planes.iter().flatten().map(Vec::len).sum();
            for (software, enough) in [(false, CACHE_BYTES), (true, SOFTWARE_CACHE_BYTES)] {
                let copies = copies_for(software, &case, &prepared);
                let (exceeds, most) = (copies * case.cost().read > enough, copies == MAX_COPIES);
                let full = (copies + 1) * bound as u64 > ROOM * enough;
                assert!(copies >= 2 && (exceeds || most || full), "{}: {copies} copies", case.label);
                assert!(copies == 2 || copies * bound as u64 <= ROOM * enough, "{}", case.label);
                exceeding += usize::from(exceeds);
            }
        }
        assert!(exceeding > 20, "{exceeding} cases are gone through beyond the cache");
    }
}
