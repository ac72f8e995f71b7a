//! RMSNorms: counts those of a graph, and replaces them by the elementary kernels that naive code launches.
//!
//! The OpenELM paper (arXiv 2404.14619) finds that the model loses much of its speed in an RMSNorm that issues
//! many small launches. With the chain of kernels in place of one, that can be measured on any GPU.

use crate::graph::{Graph, Op, kernel};
use crate::kernels::add_rms_norm::AddRmsNorm;
use crate::kernels::multiply::Multiply;
use crate::kernels::product::{Product, Prologue};
use crate::kernels::qk_norm::QkNorm;
use crate::kernels::qk_norm_rope::QkNormRope;
use crate::kernels::qk_norm_rope_attention::QkNormRopeAttention;
use crate::kernels::rms_norm::RmsNorm;
use crate::kernels::row_mean::RowMean;
use crate::kernels::unary::{Operation, Unary};
use crate::kernels::{Kernel, Window};
use crate::tensor::TensorId;

impl Graph {
    /// Returns the number of RMSNorms: 4 L + 1 in a step that ends with logits, with any rules.
    pub fn norms(&self) -> usize {
        self.ops.iter().map(norms).sum()
    }

    /// Returns the number of operations that compute nothing but norms.
    pub fn norm_ops(&self) -> usize {
        self.ops.iter().filter(|op| is_norm_only(op)).count()
    }
}

/// Returns the number of norms of an operation. A chain counts by its mean; queries and keys have a norm
/// each. Every part of a split weight computes the norm that is fused into it, so only the first part counts.
fn norms(op: &Op) -> usize {
    let first = |product: &Product| product.prologue != Prologue::Plain && product.row0 == 0;
    let one = is::<RmsNorm>(op) || is::<AddRmsNorm>(op) || is::<RowMean>(op);
    let two = is::<QkNorm>(op) || is::<QkNormRope>(op) || is::<QkNormRopeAttention>(op);
    usize::from(one || kernel::<Product>(op).is_some_and(first)) + 2 * usize::from(two)
}

fn is_norm_only(op: &Op) -> bool {
    let link = is::<Unary>(op) || is::<RowMean>(op) || is::<Multiply>(op);
    link || is::<RmsNorm>(op) || is::<QkNorm>(op)
}

fn is<K: Kernel>(op: &Op) -> bool {
    kernel::<K>(op).is_some()
}

/// Replaces each RMSNorm by six elementary operations, and each norm of queries and keys by twice six.
pub(super) fn unfuse(graph: &mut Graph) {
    for op in std::mem::take(&mut graph.ops) {
        if let Some(norm) = kernel::<RmsNorm>(&op) {
            rms_norm(graph, &op.label, norm);
        } else if let Some(norm) = kernel::<QkNorm>(&op) {
            qk_norm(graph, &op.label, norm);
        } else {
            graph.ops.push(op);
        }
    }
}

fn rms_norm(graph: &mut Graph, label: &str, norm: &RmsNorm) {
    let tensors = graph.tensors();
    let out = Window::whole(tensors, norm.out);
    let tokens = tensors[norm.x].shape.dims()[0];
    let x = Window::new(tensors, norm.x, tokens - out.rows..tokens, 0..out.cols);
    chain(graph, label, x, norm.weight, out, norm.eps);
}

fn qk_norm(graph: &mut Graph, label: &str, norm: &QkNorm) {
    let Window { rows, cols, .. } = Window::whole(graph.tensors(), norm.out);
    let queries = norm.query_heads * graph.tensors()[norm.q_weight].shape.elements();
    for (name, weight, heads) in
        [("q_norm", norm.q_weight, 0..queries), ("k_norm", norm.k_weight, queries..cols)]
    {
        let x = Window::new(graph.tensors(), norm.qkv, 0..rows, heads.clone());
        let out = Window::new(graph.tensors(), norm.out, 0..rows, heads);
        chain(graph, &label.replace("qk_norm", name), x, weight, out, norm.eps);
    }
}

/// `out = x * rsqrt(mean(x * x) + eps) * weight`, operation by operation, over each run of as many values as
/// the weight has.
fn chain(graph: &mut Graph, label: &str, x: Window, weight: TensorId, out: Window, eps: f32) {
    let (rows, cols) = (x.rows, x.cols);
    let runs = cols / graph.tensors()[weight].shape.elements();
    let at = |name: &str| format!("{label}/{name}");
    let squares = graph.activation(at("square"), [rows, cols]);
    let means = graph.activation(at("mean"), [rows, runs]);
    let sums = graph.activation(at("add_eps"), [rows, runs]);
    let scales = graph.activation(at("rsqrt"), [rows, runs]);
    let scaled = graph.activation(at("scale"), [rows, cols]);

    let whole = |graph: &Graph, tensor| Window::whole(graph.tensors(), tensor);
    let square = Unary::new(graph.tensors(), x.clone(), squares, Operation::Square);
    graph.push(at("square"), square);
    graph.push(at("mean"), RowMean::new(graph.tensors(), squares, means));
    let add_eps = Unary::new(graph.tensors(), whole(graph, means), sums, Operation::Add(eps));
    graph.push(at("add_eps"), add_eps);
    let rsqrt = Unary::new(graph.tensors(), whole(graph, sums), scales, Operation::Rsqrt);
    graph.push(at("rsqrt"), rsqrt);
    let scale = Multiply::new(graph.tensors(), x, scales, whole(graph, scaled));
    graph.push(at("scale"), scale);
    let product = Multiply::new(graph.tensors(), whole(graph, scaled), weight, out);
    graph.push(at("weight"), product);
}
