//! Compiled kernels: one pipeline for each distinct text and set of overrides.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::kernels::{Access, Choice, Dispatch, Kernel};
use crate::translate::Module;

/// A compiled kernel with the layouts of its bind groups.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) layouts: Vec<wgpu::BindGroupLayout>,
}

/// What makes two pipelines the same: the text and the overrides' bits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    text: String,
    overrides: Vec<(&'static str, u64)>,
    planes: usize,
}

/// The pipelines compiled so far.
#[derive(Debug, Default)]
pub(crate) struct Pipelines(Mutex<HashMap<Key, Arc<Pipeline>>>);

impl Gpu {
    /// Returns the dispatch of a kernel on this device, with tuned values where there are some.
    pub fn dispatch(&self, kernel: &dyn Kernel) -> Dispatch {
        let source = || self.shaders().source(&kernel.source(self.tier()));
        let tuned = self.tuning().choice(kernel, self.tier(), source);
        kernel.dispatch(self.tier(), &tuned.or(self.suited(kernel)))
    }

    /// Returns the values with which a kernel runs on this device without tuning.
    pub fn untuned(&self, kernel: &dyn Kernel) -> Choice {
        let tunables = kernel.tunables();
        let suited = self.suited(kernel);
        tunables.iter().map(|tunable| (tunable.name.to_owned(), suited.of(tunable))).collect()
    }

    fn suited(&self, kernel: &dyn Kernel) -> Choice {
        match self.summary().subgroup_sizes {
            Some((least, most)) if self.tier().subgroup && least == most => kernel.suited_to(least),
            _ => Choice::default(),
        }
    }

    /// Returns the pipeline of a kernel whose weights have `planes` planes, compiled on first use.
    ///
    /// # Errors
    /// When the driver refuses it, or a file that replaces a shader is wrong.
    pub(super) fn pipeline(
        &self,
        kernel: &dyn Kernel,
        dispatch: &Dispatch,
        planes: usize,
    ) -> Result<Arc<Pipeline>> {
        let fragments = kernel.source(self.tier());
        let source = self.shaders().source(&fragments);
        let overrides = &dispatch.overrides;
        let bits = overrides.iter().map(|&(name, value)| (name, value.to_bits())).collect();
        let key = Key { text: source.text.clone(), overrides: bits, planes };
        let mut compiled = self.pipelines.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = compiled.get(&key) {
            return Ok(Arc::clone(pipeline));
        }
        if self.shaders().change(&fragments) {
            // Only here are mistakes shown on their line of their file.
            let module = Module::new(&source, self.tier())?;
            check_bindings(kernel, &module)?;
            module.specialise(overrides)?;
        }
        let layouts = self.layouts(kernel, planes);
        let pipeline = Arc::new(self.compile(kernel.name(), &source.text, overrides, layouts)?);
        compiled.insert(key, Arc::clone(&pipeline));
        Ok(pipeline)
    }

    /// Returns the layouts of a kernel's bind groups: params and operands, then the planes of weights.
    fn layouts(&self, kernel: &dyn Kernel, planes: usize) -> Vec<wgpu::BindGroupLayout> {
        let storage = |read_only| wgpu::BufferBindingType::Storage { read_only };
        let operands = kernel.operands();
        let plain = operands.iter().filter(|operand| operand.access != Access::Weight);
        let first = std::iter::once(wgpu::BufferBindingType::Uniform);
        let first: Vec<_> = first.chain(plain.map(|operand| storage(!operand.access.writes()))).collect();
        let second = vec![storage(true); planes];
        let groups = [first, second].into_iter().filter(|group| !group.is_empty());
        groups.map(|group| self.layout(kernel.name(), group)).collect()
    }

    fn layout(&self, name: &str, types: Vec<wgpu::BufferBindingType>) -> wgpu::BindGroupLayout {
        let entry = |(binding, ty)| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
            count: None,
        };
        let entries: Vec<_> = (0u32..).zip(types).map(entry).collect();
        let descriptor = wgpu::BindGroupLayoutDescriptor { label: Some(name), entries: &entries };
        self.device.create_bind_group_layout(&descriptor)
    }

    fn compile(
        &self,
        name: &str,
        text: &str,
        overrides: &[(&str, f64)],
        layouts: Vec<wgpu::BindGroupLayout>,
    ) -> Result<Pipeline> {
        let filters =
            [wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Validation];
        let scopes = filters.map(|filter| self.device.push_error_scope(filter));
        let module =
            wgpu::ShaderModuleDescriptor { label: Some(name), source: wgpu::ShaderSource::Wgsl(text.into()) };
        // SAFETY: no kernel reads or writes out of bounds, loops without end or divides by zero: constructors
        // assert every shape from which a shader computes an index, and shaders clamp or range-check what
        // the device makes up (ids, positions). tests/kernels.rs checks this on every case, between guard
        // zones of NaN around inputs and of a pattern around outputs. A file that the user puts in the
        // place of a shader is the user's to vouch for, as any program that they run.
        let module = unsafe {
            self.device.create_shader_module_trusted(module, wgpu::ShaderRuntimeChecks::unchecked())
        };
        let groups: Vec<_> = layouts.iter().map(Some).collect();
        let layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(name),
            bind_group_layouts: &groups,
            ..Default::default()
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(name),
            layout: Some(&layout),
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
        Ok(Pipeline { pipeline, layouts })
    }
}

/// Refuses a shader that does not bind the params and every operand with its access; the planes of a
/// weight belong to its format.
fn check_bindings(kernel: &dyn Kernel, module: &Module) -> Result<()> {
    let operands = kernel.operands();
    let plain = operands.iter().filter(|operand| operand.access != Access::Weight);
    let expected: Vec<_> = std::iter::once(false).chain(plain.map(|o| o.access.writes())).collect();
    let found: Vec<_> = module.bindings().iter().filter(|b| b.group == 0).map(|b| b.writes).collect();
    if found == expected {
        return Ok(());
    }
    let shown = |writes: &[bool]| {
        let names: Vec<&str> = writes.iter().map(|&w| if w { "read_write" } else { "read" }).collect();
        names.join(", ")
    };
    Err(Error::Input(format!(
        "kernel `{}` binds in group 0, params first: {}; the shader declares {}",
        kernel.name(),
        shown(&expected),
        shown(&found)
    )))
}
