//! Compiled kernels: one pipeline for each distinct source and set of overrides.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::kernels::{self, Kernel};

/// A compiled kernel with the layouts of its bind groups.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) layouts: Vec<wgpu::BindGroupLayout>,
}

/// What makes two pipelines the same: the paths of the fragments and the overrides' bits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    paths: Vec<&'static str>,
    overrides: Vec<(&'static str, u64)>,
}

/// The pipelines compiled so far.
#[derive(Debug, Default)]
pub(crate) struct Pipelines(Mutex<HashMap<Key, Arc<Pipeline>>>);

impl Gpu {
    /// Returns the pipeline of a kernel, compiled on first use.
    ///
    /// # Errors
    /// When the driver refuses it.
    pub(crate) fn pipeline(&self, kernel: &dyn Kernel) -> Result<Arc<Pipeline>> {
        let fragments = kernel.source(self.tier());
        let overrides = kernel.dispatch(self.tier()).overrides;
        let key = Key {
            paths: fragments.iter().map(|fragment| fragment.path).collect(),
            overrides: overrides.iter().map(|&(name, value)| (name, value.to_bits())).collect(),
        };
        let mut compiled = self.pipelines.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = compiled.get(&key) {
            return Ok(Arc::clone(pipeline));
        }
        let grouped = kernel.operands().iter().any(|o| o.access == kernels::Access::Weight);
        let pipeline =
            Arc::new(self.compile(kernel.name(), &kernels::join(&fragments), &overrides, grouped)?);
        compiled.insert(key, Arc::clone(&pipeline));
        Ok(pipeline)
    }

    fn compile(&self, name: &str, text: &str, overrides: &[(&str, f64)], weights: bool) -> Result<Pipeline> {
        let filters =
            [wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Validation];
        let scopes = filters.map(|filter| self.device.push_error_scope(filter));
        let module =
            wgpu::ShaderModuleDescriptor { label: Some(name), source: wgpu::ShaderSource::Wgsl(text.into()) };
        // SAFETY: no kernel reads or writes out of bounds, loops without end or divides by zero: constructors
        // assert every shape from which a shader computes an index, and shaders clamp or range-check what
        // the device makes up (ids, positions). tests/kernels.rs checks this on every case, between guard
        // zones of NaN around inputs and of a pattern around outputs.
        let module = unsafe {
            self.device.create_shader_module_trusted(module, wgpu::ShaderRuntimeChecks::unchecked())
        };
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(name),
            layout: None,
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: overrides,
                // Kernels write workgroup memory before they read it; zeroing it costs a barrier.
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        // Every scope is popped, the last pushed first, and the first error told.
        let errors = scopes.into_iter().rev().map(|scope| pollster::block_on(scope.pop()));
        if let Some(error) = errors.fold(None, |first, error| first.or(error)) {
            return Err(Error::Gpu(format!("kernel `{name}` was refused: {error}")));
        }
        let groups = if weights { 2 } else { 1 };
        let layouts = (0..groups).map(|group| pipeline.get_bind_group_layout(group)).collect();
        Ok(Pipeline { pipeline, layouts })
    }
}
