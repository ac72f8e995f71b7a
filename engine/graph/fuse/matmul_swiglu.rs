//! Gate and up projections, SiLU and their product.

use crate::graph::{Graph, Op, kernel};
use crate::kernels::product::{Epilogue, Product};
use crate::kernels::swiglu::Swiglu;

/// Computes SiLU(gate) * up in the projection: the `[T, 2F]` intermediate is never stored. A projection split
/// over several bindings is left unfused, because its gate and up rows are in different parts.
pub(super) fn apply(graph: &mut Graph) {
    let mut index = 0;
    while index < graph.ops.len() {
        if let Some((swiglu, fused)) = match_matmul_swiglu(graph, index) {
            let label = graph.ops[swiglu].label.clone();
            graph.replace(&[index, swiglu], Op { label, kernel: Box::new(fused) });
        }
        index += 1;
    }
}

fn match_matmul_swiglu(graph: &Graph, index: usize) -> Option<(usize, Product)> {
    let product = kernel::<Product>(&graph.ops[index])?;
    let (swiglu, &Swiglu { out, .. }) = graph.only_user::<Swiglu>(product.out, index)?;
    let fused = product.with(graph.tensors(), |product| {
        product.epilogue = Epilogue::SwiGlu;
        product.out = out;
    });
    Some((swiglu, fused))
}
