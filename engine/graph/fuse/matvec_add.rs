//! Products and the residual add that follows them.

use crate::graph::{Graph, kernel};
use crate::kernels::add::Add;
use crate::kernels::product::{Epilogue, Product, Prologue};

/// Computes `out = residual + W x` in the product, for a few tokens or in tiles: the product alone is never
/// stored. A weight that is split over several bindings adds part by part.
pub(super) fn apply(graph: &mut Graph) {
    let mut index = 0;
    while index < graph.ops.len() {
        match fused_parts(graph, index) {
            Some(parts) => {
                parts.into_iter().for_each(|(part, fused)| graph.ops[part].kernel = Box::new(fused));
                graph.ops.remove(index);
            }
            None => index += 1,
        }
    }
}

/// Returns the products that compute a summand of the add at `index`, each fused with the other summand.
fn fused_parts(graph: &Graph, index: usize) -> Option<Vec<(usize, Product)>> {
    let add = kernel::<Add>(&graph.ops[index])?;
    [(add.a, add.b), (add.b, add.a)].into_iter().find_map(|(residual, summand)| {
        let parts = graph.users(summand).into_iter().filter(|&user| user != index);
        let fused = parts.map(|part| {
            let product = kernel::<Product>(&graph.ops[part])?;
            let fits = product.out == summand
                && (product.prologue, product.epilogue) == (Prologue::Plain, Epilogue::Store);
            let fused = fits.then(|| {
                product.with(graph.tensors(), |product| {
                    product.epilogue = Epilogue::Add { residual };
                    product.out = add.out;
                })
            });
            Some((part, fused?))
        });
        fused.collect::<Option<Vec<_>>>().filter(|parts| !parts.is_empty())
    })
}
