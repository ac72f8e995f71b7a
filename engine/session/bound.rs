//! The buffers of a graph's tensors.

use crate::error::Result;
use crate::gpu::{Bindings, BufferRange, Executor};
use crate::graph::plan;
use crate::graph::{Graph, Role};
use crate::model::openelm::StepGraph;
use crate::session::model::Loaded;
use crate::tensor::{TensorDesc, TensorId};

/// The planes of each tensor of a step's graph, indexed by tensor id.
pub(super) struct Bound(Vec<Vec<BufferRange>>);

impl Bound {
    /// Allocates a step's activations and binds them and the model's weights. The caller binds the state with
    /// [`set`](Self::set).
    pub(super) fn new(model: &Loaded, step: &StepGraph) -> Result<Self> {
        let mut bound = Self::activations(model, &step.graph)?;
        for part in &step.weights {
            let planes = model.weights[&(part.name.clone(), part.part)].clone();
            bound.0[part.tensor.0 as usize] = planes;
        }
        Ok(bound)
    }

    /// Allocates the slots of a graph's plan and assigns each activation a range of its slot.
    fn activations(model: &Loaded, graph: &Graph) -> Result<Self> {
        let plan = plan::plan(graph);
        let slot = |(index, &bytes): (usize, &u64)| model.gpu.storage(&format!("activation.{index}"), bytes);
        let slots = plan.slots.iter().enumerate().map(slot).collect::<Result<Vec<_>>>()?;
        let range = |(id, desc): (TensorId, &TensorDesc)| {
            let slot = plan.slot[id.0 as usize].filter(|_| graph.role(id) == Role::Activation);
            slot.map(|slot| slots[slot].slice(0, plan::bytes(desc))).into_iter().collect()
        };
        Ok(Self(graph.tensors().iter().map(range).collect()))
    }

    /// Binds a tensor to the start of a range.
    ///
    /// # Panics
    /// When the range is too small.
    pub(super) fn set(&mut self, step: &StepGraph, tensor: TensorId, range: &BufferRange) {
        let bytes = plan::bytes(&step.graph.tensors()[tensor]);
        self.0[tensor.0 as usize] = vec![range.slice(0, bytes)];
    }

    /// Builds pipelines and bind groups of the step.
    pub(super) fn executor(&self, model: &Loaded, step: &StepGraph) -> Result<Executor> {
        let kernels = step.graph.ops().iter().map(|op| (op.label.as_str(), &*op.kernel));
        Executor::new(&model.gpu, kernels, self)
    }
}

impl Bindings for Bound {
    fn ranges(&self, tensor: TensorId) -> &[BufferRange] {
        &self.0[tensor.0 as usize]
    }
}
