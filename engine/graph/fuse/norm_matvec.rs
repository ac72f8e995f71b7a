//! RMSNorm into the products that follow it.

use crate::graph::{Graph, kernel};
use crate::kernels::product::{Epilogue, Product, Prologue};
use crate::kernels::rms_norm::RmsNorm;

/// Computes the norm in the products that read it, for a few tokens or in tiles: every workgroup normalises
/// for itself, which costs less than a launch. A norm that another operation reads too is left unfused.
pub(super) fn apply(graph: &mut Graph) {
    let mut index = 0;
    while index < graph.ops.len() {
        match fused_users(graph, index) {
            Some(users) => {
                users.into_iter().for_each(|(user, fused)| graph.ops[user].kernel = Box::new(fused));
                graph.ops.remove(index);
            }
            None => index += 1,
        }
    }
}

/// Returns the products that read the norm at `index`, each fused with it.
fn fused_users(graph: &Graph, index: usize) -> Option<Vec<(usize, Product)>> {
    let norm = kernel::<RmsNorm>(&graph.ops[index])?;
    let users = graph.users(norm.out).into_iter().filter(|&user| user != index);
    let fused = users.map(|user| {
        let product = kernel::<Product>(&graph.ops[user])?;
        let fits = product.prologue == Prologue::Plain && !matches!(product.epilogue, Epilogue::Add { .. });
        let fused = fits.then(|| {
            product.with(graph.tensors(), |product| {
                product.prologue = Prologue::RmsNorm { gains: norm.weight, eps: norm.eps };
                product.x = norm.x;
            })
        });
        Some((user, fused?))
    });
    fused.collect()
}
