//! Gate and up projections, SiLU and their product.

use crate::graph::{Graph, Op, kernel};
use crate::kernels::Kernel;
use crate::kernels::matmul::Matmul;
use crate::kernels::matmul_swiglu::MatmulSwiglu;
use crate::kernels::matvec::Matvec;
use crate::kernels::matvec_swiglu::MatvecSwiglu;
use crate::kernels::swiglu::Swiglu;

/// SiLU(gate) * up where the projection computes them: the `[T, 2F]` intermediate is never stored. A
/// projection split over several bindings stays as it is: its gate and up rows lie in different parts.
pub(super) fn apply(graph: &mut Graph) {
    let mut index = 0;
    while index < graph.ops.len() {
        if let Some((swiglu, fused)) = match_matmul_swiglu(graph, index) {
            let label = graph.ops[swiglu].label.clone();
            graph.replace(&[index, swiglu], Op { label, kernel: fused });
        }
        index += 1;
    }
}

fn match_matmul_swiglu(graph: &Graph, index: usize) -> Option<(usize, Box<dyn Kernel>)> {
    let op = &graph.ops[index];
    let tensors = graph.tensors();
    let (x, weight, projected) = match (kernel::<Matvec>(op), kernel::<Matmul>(op)) {
        (Some(matvec), _) => (matvec.x, matvec.weight, matvec.out),
        (_, Some(matmul)) => (matmul.x, matmul.weight, matmul.out),
        _ => return None,
    };
    let (swiglu_index, swiglu) = graph.only_user::<Swiglu>(projected, index)?;
    let out = swiglu.out;
    let fused: Box<dyn Kernel> = if kernel::<Matvec>(op).is_some() {
        Box::new(MatvecSwiglu::new(tensors, x, weight, out))
    } else {
        Box::new(MatmulSwiglu::new(tensors, x, weight, out))
    };
    Some((swiglu_index, fused))
}
