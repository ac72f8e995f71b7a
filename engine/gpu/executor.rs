//! Runs a list of kernels: everything is built once, then only replayed.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::gpu::buffer::{BufferRange, Readback};
use crate::gpu::compiled::Pipeline;
use crate::gpu::counters::Counters;
use crate::gpu::device::{Gpu, Submission};
use crate::gpu::pipeline::Call;
use crate::kernels::{Access, Dispatch, Kernel};
use crate::tensor::TensorId;

/// Workgroups of a dispatch in one dimension, WebGPU's default limit.
const MAX_GROUPS: u32 = 65535;

/// Where tensors are stored: the planes of a tensor, one range for anything but a quantized weight.
pub trait Bindings {
    /// Returns the ranges that hold a tensor.
    fn ranges(&self, tensor: TensorId) -> &[BufferRange];
}

/// Kernels with their pipelines, parameters and bind groups, ready to be recorded any number of times.
#[derive(Debug)]
pub struct Executor {
    pub(super) steps: Vec<Recorded>,
}

/// A dispatch to record any number of times: a pipeline with all that it binds.
#[derive(Debug)]
pub(super) struct Recorded {
    pipeline: Arc<Pipeline>,
    groups: Vec<wgpu::BindGroup>,
    grid: [u32; 3],
}

impl Executor {
    /// Builds the steps of a list of labelled kernels.
    ///
    /// # Errors
    /// When the driver rejects a kernel or the device is out of memory.
    pub fn new<'a>(
        gpu: &Gpu,
        kernels: impl Iterator<Item = (&'a str, &'a dyn Kernel)>,
        bindings: &impl Bindings,
    ) -> Result<Self> {
        Self::build(gpu, kernels.map(|(label, kernel)| (label, kernel, bindings)).collect())
    }

    /// Builds one step of a kernel for each of several bindings of its tensors.
    ///
    /// # Errors
    /// When the driver rejects the kernel or the device is out of memory.
    pub fn over<'a, B: Bindings + 'a>(
        gpu: &Gpu,
        label: &'a str,
        kernel: &'a dyn Kernel,
        bindings: impl Iterator<Item = &'a B>,
    ) -> Result<Self> {
        Self::build(gpu, bindings.map(|bindings| (label, kernel, bindings)).collect())
    }

    fn build(gpu: &Gpu, kernels: Vec<(&str, &dyn Kernel, &impl Bindings)>) -> Result<Self> {
        let dispatches: Vec<Dispatch> = kernels.iter().map(|(_, kernel, _)| gpu.dispatch(*kernel)).collect();
        let params = params_arena(gpu, &dispatches);
        let resources: Vec<[Vec<&BufferRange>; 2]> = kernels
            .iter()
            .zip(&params)
            .map(|((_, kernel, bindings), params)| resources(*kernel, params, *bindings))
            .collect();
        let calls = kernels.iter().zip(&dispatches).zip(&resources);
        let calls: Vec<Call<'_>> = calls
            .map(|(((label, kernel, _), dispatch), [_, planes])| {
                check_grid(label, dispatch.grid)?;
                Ok(Call { kernel: *kernel, dispatch, planes: planes.len() })
            })
            .collect::<Result<_>>()?;
        let pipelines = gpu.pipelines(&calls)?;
        let steps = kernels.iter().zip(&dispatches).zip(pipelines).zip(&resources);
        let steps = steps.map(|((((label, ..), dispatch), pipeline), resources)| {
            Recorded::new(gpu, label, pipeline, dispatch.grid, resources)
        });
        let steps = steps.collect();
        gpu.check()?;
        Ok(Self { steps })
    }

    /// Records every step into one compute pass.
    fn record(&self, encoder: &mut wgpu::CommandEncoder) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        self.steps.iter().for_each(|step| step.record(&mut pass));
    }

    /// Returns the number of steps.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Returns whether there is no step.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Submits every step once and does not wait.
    pub fn run(&self, gpu: &Gpu) -> Submission {
        self.submit(gpu, 1, |_| ())
    }

    /// Submits every step `rounds` times, each round in a separate pass, then a copy of `ranges`, one after
    /// another, to `readback`; does not wait.
    pub(crate) fn run_and_copy(
        &self,
        gpu: &Gpu,
        rounds: usize,
        ranges: &[&BufferRange],
        readback: &Readback,
    ) -> Submission {
        self.submit(gpu, rounds, |encoder| readback.copy(encoder, ranges))
    }

    fn submit(&self, gpu: &Gpu, rounds: usize, then: impl FnOnce(&mut wgpu::CommandEncoder)) -> Submission {
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        (0..rounds).for_each(|_| self.record(&mut encoder));
        then(&mut encoder);
        gpu.submit(encoder, Counters::submission(rounds, rounds * self.len()))
    }
}

impl Recorded {
    fn new(
        gpu: &Gpu,
        label: &str,
        pipeline: Arc<Pipeline>,
        grid: [u32; 3],
        resources: &[Vec<&BufferRange>; 2],
    ) -> Self {
        let groups = pipeline.layouts.iter().zip(resources).map(|(layout, ranges)| {
            let entries: Vec<wgpu::BindGroupEntry<'_>> = (0u32..)
                .zip(ranges)
                .map(|(binding, range)| wgpu::BindGroupEntry { binding, resource: range.binding() })
                .collect();
            let descriptor = wgpu::BindGroupDescriptor { label: Some(label), layout, entries: &entries };
            gpu.device.create_bind_group(&descriptor)
        });
        let groups = groups.collect();
        Self { pipeline, groups, grid }
    }

    pub(super) fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline.pipeline);
        for (index, group) in (0u32..).zip(&self.groups) {
            pass.set_bind_group(index, group, &[]);
        }
        let [x, y, z] = self.grid;
        pass.dispatch_workgroups(x, y, z);
    }
}

/// Returns what a kernel binds: params and operands, then the planes of weights.
fn resources<'a>(
    kernel: &dyn Kernel,
    params: &'a BufferRange,
    bindings: &'a impl Bindings,
) -> [Vec<&'a BufferRange>; 2] {
    let mut resources = [vec![params], vec![]];
    for operand in kernel.operands() {
        let group = usize::from(operand.access == Access::Weight);
        resources[group].extend(bindings.ranges(operand.tensor));
    }
    resources
}

fn check_grid(label: &str, grid: [u32; 3]) -> Result<()> {
    match grid.into_iter().find(|&groups| groups > MAX_GROUPS) {
        None => Ok(()),
        Some(groups) => Err(Error::Unsupported(format!(
            "`{label}` takes {groups} workgroups in one dimension; a dispatch has at most {MAX_GROUPS}"
        ))),
    }
}

/// Writes the parameters of every kernel into one uniform buffer and returns the part of each.
fn params_arena(gpu: &Gpu, dispatches: &[Dispatch]) -> Vec<BufferRange> {
    let align = u64::from(gpu.device.limits().min_uniform_buffer_offset_alignment);
    let mut bytes: Vec<u8> = Vec::new();
    let mut ranges = Vec::new();
    for Dispatch { params, .. } in dispatches {
        bytes.resize((bytes.len() as u64).next_multiple_of(align) as usize, 0);
        ranges.push((bytes.len() as u64, params.len() as u64));
        bytes.extend(params);
    }
    let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
    bytes.resize(bytes.len().next_multiple_of(16), 0);
    let arena = gpu.buffer("params", bytes.len() as u64, usage);
    gpu.write(&arena, 0, &bytes);
    ranges.into_iter().map(|(offset, bytes)| arena.slice(offset, bytes)).collect()
}
