//! The forward pass of OpenELM as a graph of primitive operations.
//!
//! ```text
//! x = E[ids]
//! for each layer:
//!     qkv = rms_norm(x) Wqkv^T            rows: q heads, k heads, v heads
//!     q, k = rope(qk_norm(q, k));         k, v to the cache
//!     x = x + attention(q, cache) Wout^T  grouped queries, causal
//!     x = x + swiglu(rms_norm(x) W1^T) W2^T
//! logits = rms_norm(x) E^T                the head is the embedding
//! ```
//! Heads and FFN width differ from layer to layer. Sources: arXiv 2404.14619, apple/corenet.

use std::ops::Range;

use crate::graph::{Graph, Role};
use crate::kernels::KvCache;
use crate::kernels::add::Add;
use crate::kernels::argmax::Argmax;
use crate::kernels::attention::Attention;
use crate::kernels::attention_decode::AttentionDecode;
use crate::kernels::attention_merge::AttentionMerge;
use crate::kernels::draw::Options;
use crate::kernels::embed::Embed;
use crate::kernels::kv_write::KvWrite;
use crate::kernels::last_rows::LastRows;
use crate::kernels::log_likelihood::{self, LogLikelihood};
use crate::kernels::product::{Epilogue, Product, Prologue};
use crate::kernels::qk_norm::QkNorm;
use crate::kernels::rms_norm::RmsNorm;
use crate::kernels::rope::Rope;
use crate::kernels::sample::{self, Sample};
use crate::kernels::swiglu::Swiglu;
use crate::kernels::token::TokenState;
use crate::model::layout::Layout;
use crate::model::shape::{Logits, Sampling, StepShape};
use crate::model::{Config, LayerDims, names};
use crate::tensor::{DType, Shape, TensorId};

/// A weight tensor of the graph: a row range of a named weight.
#[derive(Clone, Debug)]
pub struct WeightPart {
    /// The tensor in the graph.
    pub tensor: TensorId,
    /// Published name of the whole weight.
    pub name: String,
    /// Index in the layout's list of row ranges.
    pub part: usize,
}

/// The graph of one step, with the tensors that outlive it.
#[derive(Debug)]
pub struct StepGraph {
    /// The operations.
    pub graph: Graph,
    /// Token ids, `[T]` u32.
    pub ids: TensorId,
    /// Tokens cached before the step, `[1]` u32; a step that chooses by its last row advances it. Of a batch the
    /// (position, slot) of each row, `[T, 2]` u32.
    pub position: TensorId,
    /// The token at each position, as the steps found it, `[S + 1]` u32: at `p` the one whose key and value are cached,
    /// or will be, at `p`.
    pub history: TensorId,
    /// Sampling options, `[16]` u32, of a batch those of each row, `[T, 16]`.
    pub options: TensorId,
    /// 1 + the newest position of each id, or 0, `[V]` u32, of a batch `[slots, V]`.
    pub last_seen: TensorId,
    /// The token chosen for each row of logits, `[T]` u32.
    pub drawn: TensorId,
    /// RoPE table, `[S, Dh]` f32: cosines, then sines.
    pub rope: TensorId,
    /// K and V cache of each layer, `[Hkv, S, Dh]`, of a batch `[slots, Hkv, S, Dh]`.
    pub caches: Vec<[TensorId; 2]>,
    /// Logits, `[R, V]` f32 with `R` from 1 to `T`.
    pub logits: Option<TensorId>,
    /// The token of each row of logits to score if none is chosen, `[R]` u32.
    pub targets: TensorId,
    /// Log-probabilities for each row of logits: of its token, then of the likeliest, `[R, 1 + TOP]` f32.
    pub scores: TensorId,
    /// The likeliest tokens of each row of logits, `[R, TOP]` u32.
    pub likeliest: TensorId,
    /// Every weight part that an operation binds.
    pub weights: Vec<WeightPart>,
}

/// Returns a graph that draws a token from the logits of the last step. It is no step itself: the position has to be
/// one less than that of the token.
pub fn drawing(config: &Config, layout: &Layout, context: usize) -> StepGraph {
    // Of the shape, only the context and the sampling matter: no cache is touched.
    let shape = StepShape { sampling: Some(Sampling::Random), ..StepShape::greedy(1, context, DType::F16) };
    let mut builder = Builder::new(config, layout, shape);
    let logits = builder.logits(1);
    builder.choose(logits);
    builder.step
}

/// Returns a graph that scores a target by the logits of the last step. It is no step itself.
pub fn scoring(config: &Config, layout: &Layout) -> StepGraph {
    let shape = StepShape { sampling: None, scored: true, ..StepShape::greedy(1, 1, DType::F16) };
    let mut builder = Builder::new(config, layout, shape);
    let logits = builder.logits(1);
    builder.choose(logits);
    builder.step
}

/// Returns the graph of one step.
pub fn step(config: &Config, layout: &Layout, shape: StepShape) -> StepGraph {
    Builder::new(config, layout, shape).build()
}

struct Builder<'a> {
    config: &'a Config,
    layout: &'a Layout,
    shape: StepShape,
    step: StepGraph,
}

impl<'a> Builder<'a> {
    fn new(config: &'a Config, layout: &'a Layout, shape: StepShape) -> Self {
        let mut graph = Graph::default();
        let ids = graph.tensor("ids", [shape.tokens], DType::U32, Role::State);
        let position: Shape = if shape.batch.is_some() { [shape.tokens, 2].into() } else { [1].into() };
        let position = graph.tensor("position", position, DType::U32, Role::State);
        let history = graph.tensor("history", [shape.context + 1], DType::U32, Role::State);
        let (options, last_seen): (Shape, Shape) = match shape.batch {
            Some(slots) => ([shape.tokens, Options::WORDS].into(), [slots, config.vocab_size].into()),
            None => ([Options::WORDS].into(), [config.vocab_size].into()),
        };
        let options = graph.tensor("options", options, DType::U32, Role::State);
        let last_seen = graph.tensor("last_seen", last_seen, DType::U32, Role::State);
        let drawn = graph.tensor("drawn", [shape.tokens], DType::U32, Role::State);
        let rope = graph.tensor("rope", [shape.context, config.head_dim], DType::F32, Role::State);
        let rows = shape.logits.rows(shape.tokens).max(1);
        let targets = graph.tensor("targets", [rows], DType::U32, Role::State);
        let scores = graph.tensor("scores", [rows, 1 + log_likelihood::TOP], DType::F32, Role::State);
        let likeliest = graph.tensor("likeliest", [rows, log_likelihood::TOP], DType::U32, Role::State);
        let step = StepGraph {
            graph,
            ids,
            position,
            history,
            options,
            last_seen,
            drawn,
            rope,
            caches: Vec::new(),
            logits: None,
            targets,
            scores,
            likeliest,
            weights: Vec::new(),
        };
        Self { config, layout, shape, step }
    }

    fn build(mut self) -> StepGraph {
        let mut x = self.embed();
        for layer in 0..self.config.layers.len() {
            let q = self.project(layer, x);
            if self.shape.logits == Logits::None && layer + 1 == self.config.layers.len() {
                // Only the cache is needed, and it is written.
                return self.step;
            }
            x = self.attend(layer, x, q);
            x = self.ffn(layer, x);
        }
        self.head(x);
        self.step
    }

    fn embed(&mut self) -> TensorId {
        let (tokens, vocab) = (self.shape.tokens, self.config.vocab_size);
        let x = self.step.graph.activation("x", [tokens, self.config.model_dim]);
        for (weight, rows) in self.weight(names::EMBEDDING) {
            let kernel = Embed::new(self.step.graph.tensors(), self.step.ids, weight, x, rows.start, vocab);
            self.step.graph.push("embed", kernel);
        }
        x
    }

    /// Norm, qkv projection, q/k norm, RoPE and the write of k and v to the cache; returns `[T, (H +
    /// Hkv) * Dh]` with the q heads first.
    fn project(&mut self, layer: usize, x: TensorId) -> TensorId {
        let (tokens, head_dim) = (self.shape.tokens, self.config.head_dim);
        let LayerDims { query_heads, kv_heads, .. } = self.config.layers[layer];
        let at = |name: &str| format!("layer.{layer}/attn/{name}");

        let normed = self.norm(&at("norm"), x, &names::attn_norm(layer), tokens);
        let qkv = self.matmul(&at("qkv"), normed, &names::qkv_proj(layer));

        let q_weight = self.vector(&names::q_norm(layer));
        let k_weight = self.vector(&names::k_norm(layer));
        let (rope, position, eps) = (self.step.rope, self.step.position, self.config.norm_eps);
        let graph = &mut self.step.graph;
        let qk = [tokens, (query_heads + kv_heads) * head_dim];
        let normed = graph.activation(at("qk_norm"), qk);
        let kernel = QkNorm::new(graph.tensors(), qkv, q_weight, k_weight, normed, query_heads, eps);
        graph.push(at("qk_norm"), kernel);

        let rotated = graph.activation(at("rope"), qk);
        let kernel = Rope::new(graph.tensors(), normed, rope, position, rotated);
        graph.push(at("rope"), kernel);

        let (context, dtype) = (self.shape.context, self.shape.kv);
        let cache: Shape = match self.shape.batch {
            Some(slots) => [slots, kv_heads, context, head_dim].into(),
            None => [kv_heads, context, head_dim].into(),
        };
        let [k, v] = ["k", "v"]
            .map(|name| graph.tensor(at(&format!("cache.{name}")), cache.clone(), dtype, Role::State));
        let kernel = KvWrite::new(graph.tensors(), rotated, qkv, KvCache { k, v, position }, query_heads);
        graph.push(at("kv_write"), kernel);
        self.step.caches.push([k, v]);
        rotated
    }

    /// Attention over the cache, output projection and residual add.
    fn attend(&mut self, layer: usize, x: TensorId, q: TensorId) -> TensorId {
        let heads = self.config.layers[layer].query_heads;
        let at = |name: &str| format!("layer.{layer}/attn/{name}");
        let [k, v] = self.step.caches[layer];
        let kv = KvCache { k, v, position: self.step.position };
        let StepShape { tokens, packed, splits, .. } = self.shape;
        let head_dim = self.config.head_dim;
        let graph = &mut self.step.graph;
        let mixed = graph.activation(at("mix"), [tokens, heads * head_dim]);
        if self.shape.attends_in_tiles() {
            graph.push(at("mix"), Attention::new(graph.tensors(), q, kv, mixed, heads));
        } else if splits == 1 {
            let kernel = AttentionDecode::new(graph.tensors(), q, kv, mixed, heads);
            graph.push(at("mix"), kernel.with_packed(packed));
        } else {
            let parts = graph.activation(at("mix_parts"), [tokens, heads, splits, head_dim + 4]);
            let kernel = AttentionDecode::new(graph.tensors(), q, kv, parts, heads);
            graph.push(at("mix"), kernel.with_packed(packed));
            graph.push(at("merge"), AttentionMerge::new(graph.tensors(), parts, mixed));
        }
        let (x, mixed) = if self.shape.drops_rows() && layer + 1 == self.config.layers.len() {
            // Keys and values of every row are cached; only the last row goes on.
            self.last_rows(&at("last"), x, mixed)
        } else {
            (x, mixed)
        };
        let out = self.matmul(&at("out"), mixed, &names::out_proj(layer));
        self.add(&at("add"), x, out)
    }

    fn last_rows(&mut self, label: &str, x: TensorId, y: TensorId) -> (TensorId, TensorId) {
        let graph = &mut self.step.graph;
        let [out_x, out_y] = [x, y].map(|id| graph.activation(label, [1, graph.tensors()[id].shape.last()]));
        let kernel = LastRows::new(graph.tensors(), [x, y], [out_x, out_y]);
        graph.push(label, kernel);
        (out_x, out_y)
    }

    /// Norm, gate and up projections, their product, down projection and residual add.
    fn ffn(&mut self, layer: usize, x: TensorId) -> TensorId {
        let at = |name: &str| format!("layer.{layer}/ffn/{name}");
        let rows = self.rows(x);
        let normed = self.norm(&at("norm"), x, &names::ffn_norm(layer), rows);
        let gate_up = self.matmul(&at("gate_up"), normed, &names::proj_1(layer));
        let graph = &mut self.step.graph;
        let product = graph.activation(at("swiglu"), [rows, self.config.layers[layer].ffn_dim]);
        let kernel = Swiglu::new(graph.tensors(), gate_up, product);
        graph.push(at("swiglu"), kernel);
        let down = self.matmul(&at("down"), product, &names::proj_2(layer));
        self.add(&at("add"), x, down)
    }

    fn head(&mut self, x: TensorId) {
        let rows = self.shape.logits.rows(self.shape.tokens);
        let normed = self.norm("head/norm", x, names::NORM, rows);
        let logits = self.logits(rows);
        self.matmul_into("head/logits", normed, names::EMBEDDING, logits);
        self.choose(logits);
    }

    fn logits(&mut self, rows: usize) -> TensorId {
        let shape = [rows, self.config.vocab_size];
        let logits = self.step.graph.tensor("logits", shape, DType::F32, Role::State);
        self.step.logits = Some(logits);
        logits
    }

    /// Chooses tokens from the logits, and scores them or the targets.
    fn choose(&mut self, logits: TensorId) {
        let (rows, tokens) = (self.step.graph.tensors()[logits].shape.dims()[0], self.shape.tokens);
        let StepGraph {
            ids, position, history, options, last_seen, drawn, targets, scores, likeliest, ..
        } = self.step;
        let graph = &mut self.step.graph;
        let last = self.shape.logits == Logits::Last;
        let state = TokenState { ids, position, out: if last { history } else { drawn } };
        match self.shape.sampling {
            None => {}
            Some(Sampling::Greedy) => {
                let tensors = graph.tensors();
                let kernel = if last {
                    Argmax::last(tensors, logits, state, tokens)
                } else {
                    Argmax::rows(tensors, logits, state)
                };
                graph.push("head/argmax", kernel);
            }
            Some(Sampling::Random) => {
                let shape = sample::scratch_shape(if last { 1 } else { rows }, self.config.vocab_size);
                let scratch = graph.tensor("head/keys", shape, DType::U32, Role::Activation);
                let of = sample::Binds { logits, options, last_seen, state, scratch };
                let tensors = graph.tensors();
                let kernel = if last { Sample::last(tensors, of, tokens) } else { Sample::rows(tensors, of) };
                graph.push("head/sample", kernel);
            }
        }
        let scored = match self.shape.sampling {
            None => targets,
            Some(_) if last => ids,
            Some(_) => drawn,
        };
        if self.shape.scored {
            let kernel = LogLikelihood::new(graph.tensors(), logits, scored, scores, likeliest);
            graph.push("head/log_likelihood", kernel);
        }
    }

    /// RMSNorm of the last `rows` rows of `x`.
    fn norm(&mut self, label: &str, x: TensorId, name: &str, rows: usize) -> TensorId {
        let weight = self.vector(name);
        let graph = &mut self.step.graph;
        let out = graph.activation(label, [rows, self.config.model_dim]);
        let kernel = RmsNorm::new(graph.tensors(), x, weight, out, self.config.norm_eps);
        graph.push(label, kernel);
        out
    }

    fn add(&mut self, label: &str, a: TensorId, b: TensorId) -> TensorId {
        let graph = &mut self.step.graph;
        let out = graph.activation(label, graph.tensors()[a].shape.clone());
        let kernel = Add::new(graph.tensors(), a, b, out);
        graph.push(label, kernel);
        out
    }

    /// `x W^T` into a new activation.
    fn matmul(&mut self, label: &str, x: TensorId, name: &str) -> TensorId {
        let rows = self.layout[name].parts.last().expect("a weight has a part").end;
        let tokens = self.rows(x);
        let out = self.step.graph.activation(label, [tokens, rows]);
        self.matmul_into(label, x, name, out);
        out
    }

    /// `x W^T`, one operation for each part of the weight.
    fn matmul_into(&mut self, label: &str, x: TensorId, name: &str, out: TensorId) {
        let path = self.shape.product(self.rows(x));
        for (weight, rows) in self.weight(name) {
            let graph = &mut self.step.graph;
            let choices = (Prologue::Plain, path, Epilogue::Store);
            graph.push(label, Product::new(graph.tensors(), choices, [x, weight, out], rows.start));
        }
    }

    /// The rows of an activation.
    fn rows(&self, x: TensorId) -> usize {
        self.step.graph.tensors()[x].shape.dims()[0]
    }

    /// The tensors of a matrix, one for each part, with the rows that it holds.
    fn weight(&mut self, name: &str) -> Vec<(TensorId, Range<usize>)> {
        let layout = self.layout;
        let weight = &layout[name];
        let mut tensors = Vec::new();
        for (part, rows) in weight.parts.iter().enumerate() {
            let shape = [rows.len(), weight.cols].into();
            tensors.push((self.part(name, part, shape, weight.format.dtype()), rows.clone()));
        }
        tensors
    }

    /// The tensor of a norm's weight.
    fn vector(&mut self, name: &str) -> TensorId {
        let cols = self.layout[name].cols;
        self.part(name, 0, [cols].into(), DType::F32)
    }

    /// The tensor of a part of a weight, the same one at every use: the head is the embedding.
    fn part(&mut self, name: &str, part: usize, shape: Shape, dtype: DType) -> TensorId {
        let known = self.step.weights.iter().find(|weight| weight.name == name && weight.part == part);
        if let Some(weight) = known {
            return weight.tensor;
        }
        let tensor = self.step.graph.tensor(name, shape, dtype, Role::Weight);
        self.step.weights.push(WeightPart { tensor, name: name.to_owned(), part });
        tensor
    }
}
