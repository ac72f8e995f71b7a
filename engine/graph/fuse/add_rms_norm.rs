//! Residual add and the RMSNorm that follows it.

use crate::graph::{Graph, Op, kernel};
use crate::kernels::add::Add;
use crate::kernels::add_rms_norm::AddRmsNorm;
use crate::kernels::rms_norm::RmsNorm;

/// `sum = a + b`, then `out = norm(sum)`: one launch instead of two. The sum is still stored, because the
/// next residual add reads it.
pub(super) fn apply(graph: &mut Graph) {
    let mut index = 0;
    while index < graph.ops.len() {
        if let Some((norm, fused)) = match_add_rms_norm(graph, index) {
            let label = graph.ops[norm].label.clone();
            graph.replace(&[index, norm], Op { label, kernel: Box::new(fused) });
        }
        index += 1;
    }
}

fn match_add_rms_norm(graph: &Graph, index: usize) -> Option<(usize, AddRmsNorm)> {
    let add = kernel::<Add>(&graph.ops[index])?;
    let reads_sum = |op: &Op| kernel::<RmsNorm>(op).is_some_and(|norm| norm.x == add.out);
    let norm_index = graph.ops.iter().position(reads_sum)?;
    let norm = kernel::<RmsNorm>(&graph.ops[norm_index])?;
    let tensors = graph.tensors();
    // The head normalises only the rows whose logits are needed; the fused kernel normalises all.
    (tensors[norm.out].shape == tensors[add.out].shape).then(|| {
        (norm_index, AddRmsNorm::new(tensors, add.a, add.b, norm.weight, add.out, norm.out, norm.eps))
    })
}
