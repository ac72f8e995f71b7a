//! q/k norm, RoPE and the write to the KV cache.

use crate::graph::{Graph, Op, kernel};
use crate::kernels::attention::Attention;
use crate::kernels::attention_decode::AttentionDecode;
use crate::kernels::kv_write::KvWrite;
use crate::kernels::qk_norm::QkNorm;
use crate::kernels::qk_norm_rope::QkNormRope;
use crate::kernels::rope::Rope;
use crate::kernels::{Kernel, KvCache, QkvProjection};
use crate::tensor::TensorId;

/// q/k norm, RoPE and cache write in one launch: q and k are read once and k goes straight to the cache.
pub(super) fn apply(graph: &mut Graph) {
    let mut index = 0;
    while index < graph.ops.len() {
        fuse_at(graph, index);
        index += 1;
    }
}

/// The operations between the qkv projection and attention, and their indices.
pub(super) struct Chain {
    pub(super) projection: QkvProjection,
    pub(super) kv: KvCache,
    /// The normalised queries and keys.
    normed: TensorId,
    query_heads: usize,
    /// Indices of norm, RoPE and write.
    pub(super) ops: [usize; 3],
    /// Index of the attention that reads their outputs.
    pub(super) attention: usize,
}

/// Returns the chain that begins at `index`, if one does.
pub(super) fn chain(graph: &Graph, index: usize) -> Option<Chain> {
    let &QkNorm { qkv, q_weight, k_weight, out: normed, query_heads, eps, .. } = kernel(&graph.ops[index])?;
    let (rope_index, &Rope { table, out, .. }) = graph.only_user(normed, index)?;
    let [_, write_index, attention] = graph.users(out)[..] else { return None };
    let kv = kernel::<KvWrite>(&graph.ops[write_index])?.kv;
    let projection = QkvProjection { qkv, q_weight, k_weight, table, eps };
    Some(Chain { projection, kv, normed, query_heads, ops: [index, rope_index, write_index], attention })
}

fn fuse_at(graph: &mut Graph, index: usize) -> Option<()> {
    let Chain { projection, kv, normed, query_heads, ops, attention } = chain(graph, index)?;
    let tensors = graph.tensors();
    let tokens = tensors[projection.qkv].shape.dims()[0];
    let columns = query_heads * tensors[projection.q_weight].shape.elements();
    let name = tensors[normed].name.replace("qk_norm", "q");
    let q = graph.activation(name, [tokens, columns]);
    graph.ops[attention].kernel = attend_to(graph, &graph.ops[attention], q)?;
    let label = graph.ops[index].label.clone() + "_rope";
    let fused = QkNormRope::new(graph.tensors(), projection, kv, q);
    graph.replace(&ops, Op { label, kernel: Box::new(fused) });
    Some(())
}

/// Returns the attention of `op` for other queries.
fn attend_to(graph: &Graph, op: &Op, q: TensorId) -> Option<Box<dyn Kernel>> {
    if let Some(decode) = kernel::<AttentionDecode>(op) {
        return Some(Box::new(decode.by(graph.tensors(), q)));
    }
    Some(Box::new(kernel::<Attention>(op)?.by(graph.tensors(), q)))
}
