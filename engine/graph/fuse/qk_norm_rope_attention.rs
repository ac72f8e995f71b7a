//! q/k norm, RoPE, the write to the KV cache and attention of a few rows.

use super::qk_norm_rope::{Chain, chain};
use crate::graph::{Graph, Op, kernel};
use crate::kernels::attention_decode::AttentionDecode;
use crate::kernels::qk_norm_rope_attention::QkNormRopeAttention;

/// Everything between the qkv projection and the output projection of a decode step in one launch: queries
/// are not stored, and the step's own keys and values are not read back from the cache. Rows that see each
/// other's keys are left unfused, because no workgroup can read what another one appends to the cache.
pub(super) fn apply(graph: &mut Graph) {
    let mut index = 0;
    while index < graph.ops.len() {
        if let Some((replaced, fused)) = match_decode(graph, index) {
            let label = graph.ops[replaced[3]].label.clone();
            graph.replace(&replaced, Op { label, kernel: Box::new(fused) });
        }
        index += 1;
    }
}

fn match_decode(graph: &Graph, index: usize) -> Option<([usize; 4], QkNormRopeAttention)> {
    let Chain { projection, kv, ops: [norm, rope, write], attention, .. } = chain(graph, index)?;
    let mix = kernel::<AttentionDecode>(&graph.ops[attention]).filter(|mix| !mix.packed)?;
    let fused = QkNormRopeAttention::new(graph.tensors(), projection, kv, mix.out);
    Some(([norm, rope, write, attention], fused))
}
