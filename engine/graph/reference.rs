//! The oracle: runs a graph on the CPU, every operation by its kernel's f64 reference.

use crate::graph::Graph;
use crate::kernels::Memory;

/// Runs every operation in order; weights and state must have been set in `memory`.
pub fn run(graph: &Graph, memory: &mut Memory) {
    for op in graph.ops() {
        op.kernel.reference(memory);
    }
}
