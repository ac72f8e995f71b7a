//! Runs a list of kernels: everything is built once, then only replayed.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::gpu::buffer::{BufferRange, Readback};
use crate::gpu::pipeline::Pipeline;
use crate::kernels::{Access, Kernel};
use crate::tensor::TensorId;

/// Workgroups of a dispatch in one dimension, WebGPU's default limit.
const MAX_GROUPS: u32 = 65535;

/// Where tensors live: the planes of a tensor, one range for anything but a quantized weight.
pub trait Bindings {
    /// Returns the ranges that hold a tensor.
    fn ranges(&self, tensor: TensorId) -> &[BufferRange];
}

/// Kernels with their pipelines, parameters and bind groups, ready to be recorded any number of times.
#[derive(Debug)]
pub struct Executor {
    steps: Vec<Step>,
}

#[derive(Debug)]
struct Step {
    pipeline: Arc<Pipeline>,
    groups: Vec<wgpu::BindGroup>,
    grid: [u32; 3],
}

impl Executor {
    /// Builds the steps of a list of labelled kernels.
    ///
    /// # Errors
    /// When the driver refuses a kernel or the device is out of memory.
    pub fn new<'a>(
        gpu: &Gpu,
        kernels: impl Iterator<Item = (&'a str, &'a dyn Kernel)>,
        bindings: &impl Bindings,
    ) -> Result<Self> {
        let kernels: Vec<(&str, &dyn Kernel)> = kernels.collect();
        let params = params_arena(gpu, &kernels);
        let steps = kernels
            .iter()
            .zip(&params)
            .map(|(&(label, kernel), params)| Step::new(gpu, label, kernel, params, bindings))
            .collect::<Result<Vec<_>>>()?;
        gpu.check()?;
        Ok(Self { steps })
    }

    /// Records every step into one compute pass.
    fn record(&self, encoder: &mut wgpu::CommandEncoder) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        for step in &self.steps {
            pass.set_pipeline(&step.pipeline.pipeline);
            for (index, group) in (0u32..).zip(&step.groups) {
                pass.set_bind_group(index, group, &[]);
            }
            let [x, y, z] = step.grid;
            pass.dispatch_workgroups(x, y, z);
        }
    }

    /// Submits every step once and does not wait.
    pub fn run(&self, gpu: &Gpu) {
        self.submit(gpu, |_| ());
    }

    /// Submits every step once with a copy of `range` to `readback` behind them, and does not wait.
    pub fn run_and_copy(&self, gpu: &Gpu, range: &BufferRange, readback: &Readback) {
        self.submit(gpu, |encoder| readback.copy(encoder, range));
    }

    fn submit(&self, gpu: &Gpu, then: impl FnOnce(&mut wgpu::CommandEncoder)) {
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        self.record(&mut encoder);
        then(&mut encoder);
        gpu.queue.submit([encoder.finish()]);
    }
}

impl Step {
    fn new(
        gpu: &Gpu,
        label: &str,
        kernel: &dyn Kernel,
        params: &BufferRange,
        bindings: &impl Bindings,
    ) -> Result<Self> {
        let grid = kernel.dispatch(gpu.tier()).grid;
        if let Some(groups) = grid.iter().find(|&&groups| groups > MAX_GROUPS) {
            return Err(Error::Unsupported(format!(
                "`{label}` takes {groups} workgroups in one dimension; a dispatch has at most {MAX_GROUPS}"
            )));
        }
        let pipeline = gpu.pipeline(kernel)?;
        let mut resources: [Vec<&BufferRange>; 2] = [vec![params], vec![]];
        for operand in kernel.operands() {
            let group = usize::from(operand.access == Access::Weight);
            resources[group].extend(bindings.ranges(operand.tensor));
        }
        let groups = pipeline.layouts.iter().zip(&resources).map(|(layout, ranges)| {
            let entries: Vec<wgpu::BindGroupEntry<'_>> = (0u32..)
                .zip(ranges)
                .map(|(binding, range)| wgpu::BindGroupEntry { binding, resource: range.binding() })
                .collect();
            let descriptor = wgpu::BindGroupDescriptor { label: Some(label), layout, entries: &entries };
            gpu.device.create_bind_group(&descriptor)
        });
        let groups = groups.collect();
        Ok(Self { pipeline, groups, grid })
    }
}

/// Writes the parameters of every kernel into one uniform buffer and returns the part of each.
fn params_arena(gpu: &Gpu, kernels: &[(&str, &dyn Kernel)]) -> Vec<BufferRange> {
    let align = u64::from(gpu.device.limits().min_uniform_buffer_offset_alignment);
    let mut bytes: Vec<u8> = Vec::new();
    let mut places = Vec::new();
    for (_, kernel) in kernels {
        let params = kernel.dispatch(gpu.tier()).params;
        bytes.resize((bytes.len() as u64).next_multiple_of(align) as usize, 0);
        places.push((bytes.len() as u64, params.len() as u64));
        bytes.extend(params);
    }
    let buffer = gpu.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("params"),
        size: (bytes.len() as u64).next_multiple_of(16),
        usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    gpu.queue.write_buffer(&buffer, 0, &bytes);
    places.into_iter().map(|(offset, bytes)| BufferRange { buffer: buffer.clone(), offset, bytes }).collect()
}
