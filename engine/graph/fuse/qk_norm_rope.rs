//! q/k norm, RoPE and the write to the KV cache.

use crate::graph::{Graph, Op, kernel};
use crate::kernels::attention::Attention;
use crate::kernels::attention_decode::AttentionDecode;
use crate::kernels::kv_write::KvWrite;
use crate::kernels::qk_norm::QkNorm;
use crate::kernels::qk_norm_rope::QkNormRope;
use crate::kernels::rope::Rope;

/// q/k norm, RoPE and cache write in one launch: q and k are read once and k goes straight to the cache.
pub(super) fn apply(graph: &mut Graph) {
    let mut index = 0;
    while index < graph.ops.len() {
        fuse_at(graph, index);
        index += 1;
    }
}

/// What stands between the qkv projection and attention, and where.
pub(super) struct Chain {
    pub(super) norm: QkNorm,
    pub(super) rope: Rope,
    pub(super) write: KvWrite,
    /// Indices of these three.
    pub(super) ops: [usize; 3],
    /// Index of the attention that reads what they make.
    pub(super) attention: usize,
}

/// Returns the chain that begins at `index`, if one does.
pub(super) fn chain(graph: &Graph, index: usize) -> Option<Chain> {
    let norm = kernel::<QkNorm>(&graph.ops[index])?.clone();
    let (rope_index, rope) = graph.only_user::<Rope>(norm.out, index)?;
    let rope = rope.clone();
    let [_, write_index, attention] = graph.users(rope.out)[..] else { return None };
    let write = kernel::<KvWrite>(&graph.ops[write_index])?.clone();
    Some(Chain { norm, rope, write, ops: [index, rope_index, write_index], attention })
}

fn fuse_at(graph: &mut Graph, index: usize) -> Option<()> {
    let Chain { norm, rope, write, ops, attention } = chain(graph, index)?;
    let mix = &graph.ops[attention];
    let decode = kernel::<AttentionDecode>(mix).map(|mix| (mix.out, mix.packed));
    let out = decode.map(|(out, _)| out).or(kernel::<Attention>(mix).map(|mix| mix.out))?;

    let (tensors, heads) = (graph.tensors(), norm.query_heads);
    let (tokens, head_dim) = (tensors[norm.qkv].shape.dims()[0], tensors[norm.q_weight].shape.elements());
    let name = tensors[norm.out].name.replace("qk_norm", "q");
    let q = graph.activation(name, [tokens, heads * head_dim]);
    let tensors = graph.tensors();
    let fused = QkNormRope::new(
        tensors,
        norm.qkv,
        norm.q_weight,
        norm.k_weight,
        rope.table,
        rope.position,
        q,
        write.k_cache,
        write.v_cache,
        norm.eps,
    );
    let (k, v, position) = (write.k_cache, write.v_cache, write.position);
    graph.ops[attention].kernel = if let Some((_, packed)) = decode {
        let kernel = AttentionDecode::new(tensors, q, k, v, position, out, heads);
        Box::new(kernel.with_packed(packed))
    } else {
        Box::new(Attention::new(tensors, q, k, v, position, out, heads))
    };
    let label = graph.ops[index].label.clone() + "_rope";
    graph.replace(&ops, Op { label, kernel: Box::new(fused) });
    Some(())
}
