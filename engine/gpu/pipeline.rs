//! Compiling kernels, each once and several at the same time.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::gpu::compiled::{Pipeline, PipelineKey, Slot, locked};
use crate::gpu::kept::Kept;
use crate::kernels::{Access, Choice, Dispatch, Kernel};
use crate::translate::Module;

/// A kernel that needs a pipeline: how it is dispatched, and how many planes its weights have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    pub(super) kernel: &'a dyn Kernel,
    pub(super) dispatch: &'a Dispatch,
    pub(super) planes: usize,
}

impl Gpu {
    /// Returns the dispatch of a kernel on this device, with tuned values if there are any.
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

    /// Returns how many pipelines were compiled.
    pub fn compiled(&self) -> usize {
        self.pipelines.compiled.load(Ordering::Relaxed)
    }

    /// Compiles the pipelines of kernels, each with the number of planes that its weights have, so that steps are
    /// built without waiting for them. Building a step reports what the driver rejects.
    pub(crate) fn compile_ahead<'a>(&self, kernels: impl Iterator<Item = (&'a dyn Kernel, usize)>) {
        let kernels: Vec<_> =
            kernels.map(|(kernel, planes)| (kernel, self.dispatch(kernel), planes)).collect();
        let calls = kernels.iter().map(|(kernel, dispatch, planes)| Call {
            kernel: *kernel,
            dispatch,
            planes: *planes,
        });
        let _ = self.pipelines(&calls.collect::<Vec<_>>());
    }

    /// Returns the pipeline of each call. Missing ones are compiled in parallel, each once.
    ///
    /// # Errors
    /// When the driver rejects one, or a file that replaces a shader is wrong; of several errors the first
    /// call's.
    pub(super) fn pipelines(&self, calls: &[Call<'_>]) -> Result<Vec<Arc<Pipeline>>> {
        let slots: Vec<Slot> = calls.iter().map(|call| self.pipelines.slot(self.key(call))).collect();
        let mut seen = HashSet::new();
        let mut distinct: Vec<_> = calls.iter().zip(&slots).collect();
        distinct.retain(|(_, slot)| seen.insert(Arc::as_ptr(slot)));
        let filled: Vec<Result<()>> =
            distinct.into_par_iter().map(|(call, slot)| self.fill(call, slot)).collect();
        filled.into_iter().collect::<Result<()>>()?;
        Ok(slots.iter().map(|slot| locked(slot).clone().expect("every slot was filled")).collect())
    }

    fn key(&self, call: &Call<'_>) -> PipelineKey {
        let Call { kernel, dispatch, planes } = *call;
        let text = self.shaders().source(&kernel.source(self.tier())).text;
        let overrides = dispatch.overrides.iter().map(|&(name, value)| (name, value.to_bits())).collect();
        PipelineKey { text, overrides, planes }
    }

    /// Compiles a pipeline if it is not there yet.
    fn fill(&self, call: &Call<'_>, slot: &Slot) -> Result<()> {
        let mut pipeline = locked(slot);
        if pipeline.is_none() {
            *pipeline = Some(Arc::new(self.compile(call)?));
            self.pipelines.compiled.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Saves what the driver compiled, if there is something new.
    pub(crate) fn save_pipelines(&self) {
        if let Some(kept) = &self.pipelines.kept {
            kept.save();
        }
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

    fn compile(&self, call: &Call<'_>) -> Result<Pipeline> {
        let Call { kernel, dispatch, planes } = *call;
        let (name, fragments) = (kernel.name(), kernel.source(self.tier()));
        let source = self.shaders().source(&fragments);
        if self.shaders().change(&fragments) {
            // Only this check reports mistakes with their file and line.
            let module = Module::new(&source, self.tier())?;
            check_bindings(kernel, &module)?;
            module.specialise(&dispatch.overrides)?;
        }
        let layouts = self.layouts(kernel, planes);
        let pipeline = self.create(name, &source.text, &dispatch.overrides, &layouts)?;
        Ok(Pipeline { pipeline, layouts })
    }

    fn create(
        &self,
        name: &str,
        text: &str,
        overrides: &[(&str, f64)],
        layouts: &[wgpu::BindGroupLayout],
    ) -> Result<wgpu::ComputePipeline> {
        let filters =
            [wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Validation];
        let scopes = filters.map(|filter| self.device.push_error_scope(filter));
        let start = Instant::now();
        let module =
            wgpu::ShaderModuleDescriptor { label: Some(name), source: wgpu::ShaderSource::Wgsl(text.into()) };
        // SAFETY: no kernel reads or writes out of bounds, loops without end or divides by zero: constructors assert
        // every shape from which a shader computes an index, and shaders clamp or range-check what the device computes
        // (ids, positions). tests/kernels/cases.rs checks this on every case, between guard zones of NaN around inputs
        // and of a pattern around outputs. A file that replaces a shader is the user's responsibility, like any program
        // that they run.
        let module = unsafe {
            self.device.create_shader_module_trusted(module, wgpu::ShaderRuntimeChecks::unchecked())
        };
        let read = start.elapsed();
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
            cache: self.pipelines.kept.as_ref().map(Kept::cache),
        });
        self.pipelines.kept.iter().for_each(Kept::note);
        tracing::debug!("compiled `{name}` in {:?}, {read:?} of it to read WGSL", start.elapsed());
        // Every scope is popped, the last pushed first, and the first error reported.
        let errors = scopes.into_iter().rev().map(|scope| pollster::block_on(scope.pop()));
        if let Some(error) = errors.fold(None, |first, error| first.or(error)) {
            return Err(Error::Gpu(format!("kernel `{name}` was rejected: {error}")));
        }
        Ok(pipeline)
    }
}

/// Rejects a shader that does not bind the params and every operand with its access; the planes of a
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
