//! Products of a few tokens and the residual add that follows them.

use crate::graph::{Graph, kernel};
use crate::kernels::add::Add;
use crate::kernels::matvec::Matvec;
use crate::kernels::matvec_add::MatvecAdd;

/// `out = residual + W x` where the product is computed: it is never stored. A weight that is split over
/// several bindings adds part by part.
pub(super) fn apply(graph: &mut Graph) {
    let mut index = 0;
    while index < graph.ops.len() {
        match fused_parts(graph, index) {
            Some(parts) => {
                for (part, fused) in parts {
                    graph.ops[part].kernel = Box::new(fused);
                }
                graph.ops.remove(index);
            }
            None => index += 1,
        }
    }
}

/// The products that make a summand of the add at `index`, each with the kernel that adds the other summand.
fn fused_parts(graph: &Graph, index: usize) -> Option<Vec<(usize, MatvecAdd)>> {
    let add = kernel::<Add>(&graph.ops[index])?;
    let tensors = graph.tensors();
    [(add.a, add.b), (add.b, add.a)].into_iter().find_map(|(residual, product)| {
        let parts = graph.users(product).into_iter().filter(|&user| user != index);
        let fused = parts.map(|part| {
            let matvec = kernel::<Matvec>(&graph.ops[part]).filter(|matvec| matvec.out == product)?;
            let Matvec { x, weight, row0, .. } = *matvec;
            Some((part, MatvecAdd::new(tensors, residual, x, weight, add.out, row0)))
        });
        fused.collect::<Option<Vec<_>>>().filter(|parts| !parts.is_empty())
    })
}
