//! The ceilings of an adapter: bytes moved and operations done per second, measured by samara's own kernels.
//!
//! The copy goes through buffers far larger than any cache, the multiply-adds run from registers. Both are
//! checked first ([`check`]), on their smallest cases, and the best of several runs counts.

use super::check::check;
use super::document::Ceilings;
use super::ranges::{Ranges, pack};
use crate::error::{Error, Result};
use crate::gpu::{Executor, Gpu};
use crate::kernels::matrix_multiply_add::MatrixMultiplyAdd;
use crate::kernels::multiply_add::MultiplyAdd;
use crate::kernels::stream_copy::StreamCopy;
use crate::kernels::{Case, CaseBuilder, Entry, Fill, Kernel, MatrixShape, Tier};
use crate::tensor::{DType, Tensors};

/// Runs of which the best counts.
const RUNS: usize = 5;
/// A run lasts at least this long, in nanoseconds, unless the adapter is software.
const LEAST_NS: f64 = 5e6;
/// Bytes of each side of the copy: beyond the largest caches of GPUs (256 MiB), and of CPUs.
const COPY_BYTES: u64 = 512 << 20;
const SOFTWARE_COPY_BYTES: u64 = 128 << 20;

/// Measures the ceilings of an adapter.
///
/// # Errors
/// When a kernel's output differs from its reference, the device fails, or its clock does not advance.
pub fn measure(gpu: &Gpu) -> Result<Ceilings> {
    Ok(Ceilings { copy_gb_s: copy(gpu)?, fma_gflop_s: multiply_adds(gpu)?, matrix_gflop_s: matrix(gpu)? })
}

fn copy(gpu: &Gpu) -> Result<f64> {
    checked(gpu, "stream_copy")?;
    let summary = gpu.summary();
    let most = if summary.software { SOFTWARE_COPY_BYTES } else { COPY_BYTES };
    let limit = summary.max_binding_bytes.min(summary.max_buffer_bytes);
    let elements = (most.min(limit) / 4) as usize;
    let mut tensors = Tensors::default();
    let x = tensors.add("x", [elements], DType::F32);
    let out = tensors.add("out", [elements], DType::F32);
    let kernel = StreamCopy::new(&tensors, x, out);
    let ranges = Ranges::new(&tensors, |id| Ok(vec![gpu.storage(&tensors[id].name, 4 * elements as u64)?]))?;
    // New memory may be one zero page until something is written: both sides are written first.
    let back = StreamCopy::new(&tensors, out, x);
    Executor::new(gpu, [("ceiling", &kernel as &dyn Kernel), ("ceiling", &back)].into_iter(), &ranges)?
        .run(gpu);
    best(gpu, &kernel, &ranges, kernel.cost(0).bytes())
}

fn multiply_adds(gpu: &Gpu) -> Result<f64> {
    checked(gpu, "multiply_add")?;
    let invocations = if gpu.summary().software { 1 << 12 } else { 1 << 18 };
    longest(gpu, |rounds| {
        let mut case = CaseBuilder::new("ceiling");
        let x = case.tensor("x", [invocations, 16], DType::F32, Fill::Uniform(1.0));
        let y = case.tensor("y", [4], DType::F32, Fill::Values(vec![0.5, -0.75, 0.25, 0.875]));
        let out = case.tensor("out", [invocations, 4], DType::F32, Fill::Zero);
        let kernel = MultiplyAdd::new(&case.tensors, x, y, out, rounds);
        case.build(kernel, 0.0, "checked on smaller cases")
    })
}

/// Measures matrix units of 16 x 16 on a separate device, because that of a model may lack their tier.
fn matrix(gpu: &Gpu) -> Result<Option<f64>> {
    if gpu.summary().matrix_units != Some(MatrixShape::Sixteen) {
        return Ok(None);
    }
    let gpu = &gpu.at_tier(Tier::COOP)?;
    checked(gpu, "matrix_multiply_add")?;
    let rate = longest(gpu, |rounds| {
        let mut case = CaseBuilder::new("ceiling");
        let a = case.tensor("a", [16, 32], DType::F16, Fill::Uniform(1.0));
        let b = case.tensor("b", [16, 32], DType::F16, Fill::Uniform(1.0));
        let out = case.tensor("out", [1 << 13, 32, 32], DType::F32, Fill::Zero);
        let kernel = MatrixMultiplyAdd::new(&case.tensors, a, b, out, rounds);
        case.build(kernel, 0.0, "checked on smaller cases")
    });
    rate.map(Some)
}

/// Returns an error when a case of a kernel differs from its reference.
fn checked(gpu: &Gpu, name: &str) -> Result<()> {
    let entry = Entry::named(name).expect("a kernel of the list");
    for case in entry.cases().iter().filter(|case| !case.bench) {
        if let Some(mismatch) = check(gpu, case)? {
            return Err(Error::Gpu(format!(
                "adapter `{}`: `{name}` is wrong, so nothing is measured with it: {mismatch}",
                gpu.summary().name
            )));
        }
    }
    Ok(())
}

/// Lengthens a case until it takes long enough, then returns its operations per nanosecond.
fn longest(gpu: &Gpu, case: impl Fn(usize) -> Case) -> Result<f64> {
    let mut rounds = 64;
    loop {
        let case = case(rounds);
        let ranges = Ranges::upload(gpu, &case.tensors, &pack(&case, &case.memory()))?;
        let rate = best(gpu, &*case.kernel, &ranges, case.cost().flops)?;
        if case.cost().flops as f64 / rate >= LEAST_NS || rounds >= 1 << 18 {
            return Ok(rate);
        }
        rounds *= 4;
    }
}

/// Returns how much of `amount` a kernel processes per nanosecond, in the best of several runs.
fn best(gpu: &Gpu, kernel: &dyn Kernel, ranges: &Ranges, amount: u64) -> Result<f64> {
    let executor = Executor::new(gpu, [("ceiling", kernel)].into_iter(), ranges)?;
    executor.run(gpu);
    let times = (0..RUNS).map(|_| executor.elapsed(gpu)).collect::<Result<Vec<f64>>>()?;
    let least = times.into_iter().fold(f64::INFINITY, f64::min);
    if least > 0.0 {
        return Ok(amount as f64 / least);
    }
    Err(Error::Gpu(format!("adapter `{}`: its clock does not advance while it works", gpu.summary().name)))
}
