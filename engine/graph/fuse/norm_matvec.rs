//! RMSNorm into the products that follow it.

use crate::graph::{Graph, Op, kernel};
use crate::kernels::Kernel;
use crate::kernels::matmul::Matmul;
use crate::kernels::matmul_swiglu::MatmulSwiglu;
use crate::kernels::matvec::Matvec;
use crate::kernels::matvec_swiglu::MatvecSwiglu;
use crate::kernels::norm_matmul::NormMatmul;
use crate::kernels::norm_matmul_swiglu::NormMatmulSwiglu;
use crate::kernels::norm_matvec::NormMatvec;
use crate::kernels::norm_matvec_swiglu::NormMatvecSwiglu;
use crate::kernels::rms_norm::RmsNorm;
use crate::tensor::Tensors;

/// The norm where the products read it, of a few tokens or in tiles: every workgroup normalises for itself, which
/// costs less than a launch. A norm that something else reads too stays as it is.
pub(super) fn apply(graph: &mut Graph) {
    let mut index = 0;
    while index < graph.ops.len() {
        match fused_users(graph, index) {
            Some(users) => {
                for (user, kernel) in users {
                    graph.ops[user].kernel = kernel;
                }
                graph.ops.remove(index);
            }
            None => index += 1,
        }
    }
}

/// The operations that read the norm at `index`, each with the kernel that takes it in.
fn fused_users(graph: &Graph, index: usize) -> Option<Vec<(usize, Box<dyn Kernel>)>> {
    let norm = kernel::<RmsNorm>(&graph.ops[index])?;
    let users = graph.users(norm.out).into_iter().filter(|&user| user != index);
    users.map(|user| Some((user, fused(graph.tensors(), norm, &graph.ops[user])?))).collect()
}

fn fused(tensors: &Tensors, norm: &RmsNorm, user: &Op) -> Option<Box<dyn Kernel>> {
    let (x, gains, eps) = (norm.x, norm.weight, norm.eps);
    if let Some(&Matvec { weight, out, row0, .. }) = kernel(user) {
        return Some(Box::new(NormMatvec::new(tensors, x, gains, weight, out, row0, eps)));
    }
    if let Some(&Matmul { weight, out, row0, .. }) = kernel(user) {
        return Some(Box::new(NormMatmul::new(tensors, x, gains, weight, out, row0, eps)));
    }
    // Gated ones take every row; only the head asks for the last ones, and is no such product.
    if tensors[norm.x].shape != tensors[norm.out].shape {
        return None;
    }
    if let Some(&MatvecSwiglu { weight, out, .. }) = kernel(user) {
        return Some(Box::new(NormMatvecSwiglu::new(tensors, x, gains, weight, out, eps)));
    }
    let &MatmulSwiglu { weight, out, .. } = kernel(user)?;
    Some(Box::new(NormMatmulSwiglu::new(tensors, x, gains, weight, out, eps)))
}
