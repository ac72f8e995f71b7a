//! Every case of every kernel on the GPU against its f64 reference, at each tier of the adapter.
//!
//! Each tensor is bound at its exact size between two guard zones. Around inputs the zones hold NaN, so
//! that a read out of bounds spoils the output; around outputs they hold a pattern that must survive.
//! Kernels are compiled without run-time checks, so nothing hides such an access.
//! `SAMARA_KERNEL=name` and `SAMARA_CASE=part of a label` narrow the run.

mod common;

use samara::gpu::{Bindings, BufferRange, Executor, Gpu, pack_values, unpack_values};
use samara::kernels::{Access, Case, LIST};
use samara::tensor::TensorId;

const GUARD: usize = 256;

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

fn run(gpu: &Gpu, case: &Case) -> Result<(), String> {
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
            let whole = gpu.storage(&desc.name, (plane.len() + 2 * GUARD) as u64).unwrap();
            gpu.write(&whole, 0, &guards);
            gpu.write(&whole, GUARD as u64, plane);
            gpu.write(&whole, (GUARD + plane.len()) as u64, &guards);
            whole
        };
        planes.iter().map(upload).collect::<Vec<_>>()
    });
    let whole: Vec<Vec<BufferRange>> = buffers.collect();
    let inner = |range: &BufferRange| range.slice(GUARD as u64, range.bytes() - 2 * GUARD as u64);
    let bindings = Guarded(whole.iter().map(|planes| planes.iter().map(inner).collect()).collect());
    let executor =
        Executor::new(gpu, [("case", &*case.kernel)].into_iter(), &bindings).map_err(|e| e.to_string())?;
    executor.run(gpu);
    gpu.wait().map_err(|e| e.to_string())?;

    let mut expected = case.memory();
    case.kernel.reference(&mut expected);
    for id in case.outputs() {
        let desc = &case.tensors[id];
        let bytes = gpu.read(&whole[id.0 as usize][0]).map_err(|e| e.to_string())?;
        let (before, rest) = bytes.split_at(GUARD);
        let (data, after) = rest.split_at(rest.len() - GUARD);
        if before != guard(true) || after != guard(true) {
            return Err(format!("`{}`: bytes outside the tensor were written", desc.name));
        }
        let found = unpack_values(desc.dtype, data);
        let error = common::nmse(&found, expected.read(id));
        if error.is_nan() || error > case.tolerance {
            let worst = found
                .iter()
                .zip(expected.read(id))
                .position(|(y, r)| y.is_nan() || (y - r).abs() > r.abs() * 1e-3);
            let detail =
                worst.map(|i| format!("; first far value [{i}]: {} for {}", found[i], expected.read(id)[i]));
            return Err(format!(
                "`{}`: NMSE {error:e} > {:e} ({}){}",
                desc.name,
                case.tolerance,
                case.reason,
                detail.unwrap_or_default()
            ));
        }
    }
    Ok(())
}

#[test]
fn every_case_of_every_kernel_matches_its_reference() {
    let wanted = |name: &str, part: &str| std::env::var(name).map_or(true, |value| part.contains(&value));
    let mut failures = Vec::new();
    let mut ran = 0;
    for gpu in common::gpus() {
        for entry in LIST.iter().filter(|entry| wanted("SAMARA_KERNEL", entry.name)) {
            for case in (entry.cases)().iter().filter(|case| wanted("SAMARA_CASE", &case.label)) {
                ran += 1;
                if let Err(error) = run(&gpu, case) {
                    let (name, label, seed) = (entry.name, &case.label, case.seed);
                    failures.push(format!("{name} [{label}] tier {} seed {seed:#x}: {error}", gpu.tier()));
                }
            }
        }
    }
    eprintln!("{ran} cases ran");
    assert!(failures.is_empty(), "{} of {ran} cases failed:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn labels_are_unique_and_outputs_exist() {
    for entry in LIST {
        let cases = (entry.cases)();
        assert!(!cases.is_empty(), "{} has no case", entry.name);
        let mut labels: Vec<&str> = cases.iter().map(|case| case.label.as_str()).collect();
        labels.sort_unstable();
        assert!(labels.windows(2).all(|pair| pair[0] != pair[1]), "{}: a label stands twice", entry.name);
        for case in &cases {
            assert_eq!(case.kernel.name(), entry.name);
            assert!(!case.outputs().is_empty(), "{} [{}] writes nothing", entry.name, case.label);
        }
    }
}
