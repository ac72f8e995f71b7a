//! Inspection of a model on its device: weights, memory, and the dispatches of a decode step.

use crate::graph::plan;
use crate::quant::Format;
use crate::session::model::Model;

/// A weight on the device.
#[derive(Clone, Debug)]
pub struct WeightReport {
    /// Published name.
    pub name: String,
    /// Rows; 1 for a norm.
    pub rows: usize,
    /// Values of a row.
    pub cols: usize,
    /// Format on the device.
    pub format: Format,
    /// Bytes on the device.
    pub bytes: u64,
    /// Number of buffers it is split over because of the adapter's binding limit.
    pub parts: usize,
}

/// One dispatch of a step.
#[derive(Clone, Debug)]
pub struct DispatchReport {
    /// Where in the model it is, `layer.3/attn/qkv`.
    pub label: String,
    /// The kernel.
    pub kernel: &'static str,
    /// Workgroups in x, y and z.
    pub grid: [u32; 3],
    /// Values of the kernel's tunables, `WG=64`.
    pub overrides: String,
    /// Bytes moved.
    pub bytes: u64,
    /// Floating-point operations.
    pub flops: u64,
}

/// What a model takes on its device, and the dispatches of a decode step.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// The weights.
    pub weights: Vec<WeightReport>,
    /// Bytes of all weights.
    pub weight_bytes: u64,
    /// Bytes of the KV cache of one session at the model's context length.
    pub cache_bytes: u64,
    /// Bytes of a decode step's activations.
    pub activation_bytes: u64,
    /// Tokens of a full prefill step.
    pub prefill_chunk: usize,
    /// Bytes of the activations of such a step.
    pub prefill_activation_bytes: u64,
    /// Bytes of one session's RoPE table, logits, ids, history and last-seen positions at the model's context length.
    pub state_bytes: u64,
    /// The dispatches of a decode step.
    pub dispatches: Vec<DispatchReport>,
}

impl Model {
    /// Reports weights, memory and the dispatches of a decode step at the model's context length.
    pub fn inspect(&self) -> Inspection {
        let model = self.loaded();
        let weights = model.layout.iter().map(|(name, layout)| WeightReport {
            name: name.to_owned(),
            rows: layout.rows,
            cols: layout.cols,
            format: layout.format,
            bytes: layout.bytes(),
            parts: layout.parts.len(),
        });
        let context = model.config.max_context_length;
        let graph = |tokens| model.step(model.shape(context, context - tokens, tokens)).graph;
        let prefill_chunk = model.chunk.min(context);
        let prefill_activation_bytes = plan::plan(&graph(prefill_chunk)).bytes();
        let graph = graph(1);
        let state = context * (model.config.head_dim + 1) + 2 * model.config.vocab_size + prefill_chunk;
        let dispatches = graph.ops().iter().map(|op| {
            let (dispatch, cost) = (model.gpu.dispatch(&*op.kernel), op.kernel.cost(context - 1));
            let overrides: Vec<String> =
                dispatch.overrides.iter().map(|(name, value)| format!("{name}={value}")).collect();
            DispatchReport {
                label: op.label.clone(),
                kernel: op.kernel.name(),
                grid: dispatch.grid,
                overrides: overrides.join(" "),
                bytes: cost.bytes(),
                flops: cost.flops,
            }
        });
        let kv_rows: usize = model.config.layers.iter().map(|l| 2 * l.kv_heads * context).sum();
        Inspection {
            weights: weights.collect(),
            weight_bytes: model.layout.bytes(),
            cache_bytes: model.kv.bytes(kv_rows, model.config.head_dim),
            activation_bytes: plan::plan(&graph).bytes(),
            prefill_chunk,
            prefill_activation_bytes,
            state_bytes: 4 * state as u64,
            dispatches: dispatches.collect(),
        }
    }
}
