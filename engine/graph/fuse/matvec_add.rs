//! Products and the residual add that follows them.

use crate::graph::{Graph, Op, kernel};
use crate::kernels::Kernel;
use crate::kernels::add::Add;
use crate::kernels::matmul::Matmul;
use crate::kernels::matmul_add::MatmulAdd;
use crate::kernels::matvec::Matvec;
use crate::kernels::matvec_add::MatvecAdd;
use crate::tensor::TensorId;

/// `out = residual + W x` where the product is computed, of a few tokens or in tiles: it is never stored. A weight
/// that is split over several bindings adds part by part.
pub(super) fn apply(graph: &mut Graph) {
    let mut index = 0;
    while index < graph.ops.len() {
        match fused_parts(graph, index) {
            Some(parts) => {
                for (part, fused) in parts {
                    graph.ops[part].kernel = fused;
                }
                graph.ops.remove(index);
            }
            None => index += 1,
        }
    }
}

/// The products that make a summand of the add at `index`, each with the kernel that adds the other summand.
fn fused_parts(graph: &Graph, index: usize) -> Option<Vec<(usize, Box<dyn Kernel>)>> {
    let add = kernel::<Add>(&graph.ops[index])?;
    [(add.a, add.b), (add.b, add.a)].into_iter().find_map(|(residual, product)| {
        let parts = graph.users(product).into_iter().filter(|&user| user != index);
        let fused =
            parts.map(|part| Some((part, fused(graph, &graph.ops[part], residual, product, add.out)?)));
        fused.collect::<Option<Vec<_>>>().filter(|parts| !parts.is_empty())
    })
}

/// The operation that makes `product`, with the residual added, into `sum`.
fn fused(
    graph: &Graph,
    op: &Op,
    residual: TensorId,
    product: TensorId,
    sum: TensorId,
) -> Option<Box<dyn Kernel>> {
    let tensors = graph.tensors();
    if let Some(&Matvec { x, weight, row0, .. }) = kernel::<Matvec>(op).filter(|op| op.out == product) {
        return Some(Box::new(MatvecAdd::new(tensors, residual, x, weight, sum, row0)));
    }
    let &Matmul { x, weight, row0, .. } = kernel::<Matmul>(op).filter(|op| op.out == product)?;
    Some(Box::new(MatmulAdd::new(tensors, residual, x, weight, sum, row0)))
}
