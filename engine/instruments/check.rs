//! A case on the device against its reference, between guard zones.
//!
//! Each tensor is bound at its exact size between two guard zones. Around inputs the zones hold NaN, so that
//! a read out of bounds spoils the output; around outputs they hold a pattern that must survive. Kernels are
//! compiled without run-time checks, so nothing hides such an access.

use crate::error::Result;
use crate::gpu::{Bindings, BufferRange, Executor, Gpu, pack_values, unpack_values};
use crate::kernels::{Access, Case};
use crate::tensor::TensorId;

/// Bytes of a guard zone: what adapters align a binding to.
const GUARD: usize = 256;

/// How an output differs from its reference, or what else went wrong in a case.
pub type Mismatch = String;

/// The guarded buffers of a case.
struct Guarded(Vec<Vec<BufferRange>>);

impl Bindings for Guarded {
    fn ranges(&self, tensor: TensorId) -> &[BufferRange] {
        &self.0[tensor.0 as usize]
    }
}

/// A guard zone: NaN in every float format, or bytes that no kernel writes.
fn guard(written: bool) -> [u8; GUARD] {
    [if written { 0xa5 } else { 0xff }; GUARD]
}

/// Runs a case once and compares every output with the reference; `None` when all is well.
///
/// # Errors
/// When the device fails or refuses the kernel.
pub fn check(gpu: &Gpu, case: &Case) -> Result<Option<Mismatch>> {
    let input = case.memory();
    let operands = case.kernel.operands();
    let access = |id: TensorId| operands.iter().find(|o| o.tensor == id).map_or(Access::Read, |o| o.access);
    let buffers = case.tensors.iter().map(|(id, desc)| {
        let mut planes = pack_values(desc, input.read(id));
        if access(id) == Access::Write {
            // What a kernel calls written must not depend on what was there.
            planes.iter_mut().for_each(|plane| plane.fill(0xff));
        }
        let guards = guard(access(id).writes());
        let upload = |plane: &Vec<u8>| {
            let whole = gpu.storage(&desc.name, (plane.len() + 2 * GUARD) as u64)?;
            gpu.write(&whole, 0, &guards);
            gpu.write(&whole, GUARD as u64, plane);
            gpu.write(&whole, (GUARD + plane.len()) as u64, &guards);
            Ok(whole)
        };
        planes.iter().map(upload).collect::<Result<Vec<_>>>()
    });
    let whole: Vec<Vec<BufferRange>> = buffers.collect::<Result<_>>()?;
    let inner = |range: &BufferRange| range.slice(GUARD as u64, range.bytes() - 2 * GUARD as u64);
    let bindings = Guarded(whole.iter().map(|planes| planes.iter().map(inner).collect()).collect());
    let executor = Executor::new(gpu, [("case", &*case.kernel)].into_iter(), &bindings)?;
    executor.run(gpu);
    gpu.wait()?;

    let mut expected = case.memory();
    case.kernel.reference(&mut expected);
    for id in case.outputs() {
        let bytes = gpu.read(&whole[id.0 as usize][0])?;
        if let Some(mismatch) = compare(case, id, &bytes, expected.read(id)) {
            return Ok(Some(mismatch));
        }
    }
    Ok(None)
}

/// Compares the guarded bytes of an output with its reference.
fn compare(case: &Case, id: TensorId, bytes: &[u8], expected: &[f64]) -> Option<Mismatch> {
    let desc = &case.tensors[id];
    let (before, rest) = bytes.split_at(GUARD);
    let (data, after) = rest.split_at(rest.len() - GUARD);
    if before != guard(true) || after != guard(true) {
        return Some(format!("`{}`: bytes outside the tensor were written", desc.name));
    }
    let found = unpack_values(desc.dtype, data);
    let error = nmse(&found, expected);
    if error <= case.tolerance {
        return None;
    }
    let far = |(y, r): (&f64, &f64)| y.is_nan() || (y - r).abs() > r.abs() * 1e-3;
    let worst = found.iter().zip(expected).position(far);
    let detail = worst.map(|i| format!("; first far value [{i}]: {} for {}", found[i], expected[i]));
    Some(format!(
        "`{}`: NMSE {error:e} > {:e} ({}){}",
        desc.name,
        case.tolerance,
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
