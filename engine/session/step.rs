//! The buffers of one sequence and the steps that were built on them.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::gpu::{Bindings, BufferRange, Executor, Readback, Span};
use crate::graph::plan::{self, Plan};
use crate::graph::{Graph, Role};
use crate::kernels::rope;
use crate::model::LayerDims;
use crate::model::config::MAX_CONTEXT;
use crate::model::openelm::{Logits, StepShape};
use crate::session::load::Inner;
use crate::tensor::{TensorDesc, TensorId};

/// Steps that are kept before those of more than one token are built anew; a full chunk and a rest are two.
const KEPT: usize = 4;

/// What a step is built for: its tokens and the logits that it computes.
type Key = (usize, Logits);

/// State of a sequence on the device, with the steps built so far.
#[derive(Debug)]
pub(super) struct Steps {
    context: usize,
    ids: BufferRange,
    position: BufferRange,
    history: BufferRange,
    rope: BufferRange,
    caches: Vec<[BufferRange; 2]>,
    last_logits: BufferRange,
    all_logits: Option<BufferRange>,
    built: HashMap<Key, Executor>,
    /// The position that the device's buffer holds, where it is known.
    device_position: Option<usize>,
}

impl Steps {
    /// Allocates the state of a sequence of at most `context` tokens and builds the decode step.
    pub(super) fn new(model: &Inner, context: usize) -> Result<Self> {
        let (gpu, config) = (&model.gpu, &model.config);
        if context == 0 || context as u64 > MAX_CONTEXT {
            return Err(Error::Input(format!(
                "a context of {context} tokens is not within 1 to {MAX_CONTEXT}"
            )));
        }
        let kv_bytes = |heads: usize| model.kv.bytes((heads * context * config.head_dim) as u64);
        let cache = |(layer, dims): (usize, &LayerDims)| -> Result<_> {
            let [k, v] = ["k", "v"].map(|name| {
                gpu.storage(&format!("layer.{layer}/attn/cache.{name}"), kv_bytes(dims.kv_heads))
            });
            Ok([k?, v?])
        };
        let caches = config.layers.iter().enumerate().map(cache).collect::<Result<Vec<_>>>()?;
        let rope = gpu.storage("rope", (context * config.head_dim * 4) as u64)?;
        let table: Vec<f32> = rope::table(context, config.head_dim, f64::from(config.rope_theta))
            .into_iter()
            .map(|v| v as f32)
            .collect();
        gpu.write(&rope, 0, bytemuck::cast_slice(&table));
        let mut steps = Self {
            context,
            ids: gpu.storage("ids", model.chunk as u64 * 4)?,
            position: gpu.storage("position", 4)?,
            history: gpu.storage("history", (context as u64 + 1) * 4)?,
            rope,
            caches,
            last_logits: gpu.storage("logits", config.vocab_size as u64 * 4)?,
            all_logits: None,
            built: HashMap::new(),
            device_position: Some(0),
        };
        steps.build(model, (1, Logits::Last))?;
        gpu.check()?;
        Ok(steps)
    }

    pub(super) fn context(&self) -> usize {
        self.context
    }

    /// The logits of the last token, `[V]`.
    pub(super) fn last_logits(&self) -> &BufferRange {
        &self.last_logits
    }

    /// The logits of a step of `tokens` tokens, `[T, V]`.
    ///
    /// # Panics
    /// When no step computed all of its logits yet.
    pub(super) fn all_logits(&self, tokens: usize) -> BufferRange {
        let row = self.last_logits.bytes();
        self.all_logits.as_ref().expect("a step computed all logits").slice(0, row * tokens as u64)
    }

    /// Submits one step that appends `ids` at `position`. `ids` are not uploaded where they are
    /// `on_device` already. The argmax of the last logits, if they are computed, is copied to `token`.
    pub(super) fn run(
        &mut self,
        model: &Inner,
        position: usize,
        ids: &[u32],
        on_device: bool,
        logits: Logits,
        token: &Readback,
    ) -> Result<()> {
        let (gpu, key) = (&model.gpu, (ids.len(), logits));
        if !self.built.contains_key(&key) {
            self.build(model, key)?;
        }
        if !on_device {
            gpu.write(&self.ids, 0, bytemuck::cast_slice(ids));
        }
        if self.device_position != Some(position) {
            gpu.write(&self.position, 0, &(position as u32).to_le_bytes());
            self.device_position = Some(position);
        }
        if logits == Logits::Last {
            self.built[&key].run_and_copy(gpu, &self.ids.slice(0, 4), token);
            self.device_position = Some(position + ids.len());
        } else {
            self.built[&key].run(gpu);
        }
        gpu.check()
    }

    /// Runs one step that appends `ids` at `position` and returns when each of its dispatches ran.
    pub(super) fn spans(&mut self, model: &Inner, position: usize, ids: &[u32]) -> Result<Vec<Span>> {
        let (gpu, key) = (&model.gpu, (ids.len(), Logits::Last));
        if !self.built.contains_key(&key) {
            self.build(model, key)?;
        }
        // The clock may repeat the dispatch that advances the position.
        self.device_position = None;
        self.built[&key].spans(gpu, || {
            gpu.write(&self.ids, 0, bytemuck::cast_slice(ids));
            gpu.write(&self.position, 0, &(position as u32).to_le_bytes());
        })
    }

    /// Builds graph, plan, buffers and bind groups of a step.
    fn build(&mut self, model: &Inner, key: Key) -> Result<()> {
        let (tokens, logits) = key;
        let gpu = &model.gpu;
        if logits == Logits::All && self.all_logits.is_none() {
            let bytes = self.last_logits.bytes() * model.chunk.min(self.context) as u64;
            self.all_logits = Some(gpu.storage("logits of a chunk", bytes)?);
        }
        if self.built.len() > KEPT {
            self.built.retain(|&(tokens, _), _| tokens == 1);
        }
        let step = model.step(StepShape {
            tokens,
            context: self.context,
            kv: model.kv.dtype(),
            logits,
            batch: None,
        });
        let plan = plan::plan(&step.graph);
        let mut bound = Bound::activations(model, &step.graph, &plan)?;
        for part in &step.weights {
            bound.set(part.tensor, model.weights[&(part.name.clone(), part.part)].clone());
        }
        bound.set(step.ids, vec![self.ids.slice(0, tokens as u64 * 4)]);
        bound.set(step.position, vec![self.position.clone()]);
        bound.set(step.history, vec![self.history.clone()]);
        bound.set(step.rope, vec![self.rope.clone()]);
        for (tensors, buffers) in step.caches.iter().zip(&self.caches) {
            tensors.iter().zip(buffers).for_each(|(&tensor, buffer)| bound.set(tensor, vec![buffer.clone()]));
        }
        if let Some(tensor) = step.logits {
            let all = logits == Logits::All;
            bound.set(tensor, vec![if all { self.all_logits(tokens) } else { self.last_logits.clone() }]);
        }
        let kernels = step.graph.ops().iter().map(|op| (op.label.as_str(), &*op.kernel));
        self.built.insert(key, Executor::new(gpu, kernels, &bound)?);
        Ok(())
    }
}

/// The buffers of a graph's tensors.
struct Bound(Vec<Vec<BufferRange>>);

impl Bound {
    /// Allocates the slots of a plan and gives every activation its part of one.
    fn activations(model: &Inner, graph: &Graph, plan: &Plan) -> Result<Self> {
        let slot = |(index, &bytes): (usize, &u64)| model.gpu.storage(&format!("activation.{index}"), bytes);
        let slots = plan.slots.iter().enumerate().map(slot).collect::<Result<Vec<_>>>()?;
        let range = |(id, desc): (TensorId, &TensorDesc)| {
            let slot = plan.slot[id.0 as usize].filter(|_| graph.role(id) == Role::Activation);
            slot.map(|slot| slots[slot].slice(0, plan::bytes(desc))).into_iter().collect()
        };
        Ok(Self(graph.tensors().iter().map(range).collect()))
    }

    fn set(&mut self, tensor: TensorId, ranges: Vec<BufferRange>) {
        self.0[tensor.0 as usize] = ranges;
    }
}

impl Bindings for Bound {
    fn ranges(&self, tensor: TensorId) -> &[BufferRange] {
        &self.0[tensor.0 as usize]
    }
}
