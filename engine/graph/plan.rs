//! Lifetimes and buffers: which activations may share one buffer.
//!
//! A tensor lives from the first operation that binds it to the last. Two tensors share a slot only if
//! their lives do not touch, so the input and the output of an operation are never in one buffer: a
//! buffer bound read-only and read-write in one dispatch is an error in WebGPU. Slots are separate
//! buffers because wgpu tracks hazards buffer by buffer.

use std::ops::RangeInclusive;

use crate::graph::{Graph, Role};
use crate::tensor::{TensorDesc, TensorId};

/// Buffers of a graph's activations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Size of each slot in bytes.
    pub slots: Vec<u64>,
    /// The slot of each tensor by its number; `None` for weights, state and tensors never bound.
    pub slot: Vec<Option<usize>>,
}

impl Plan {
    /// Returns the bytes of all slots.
    pub fn bytes(&self) -> u64 {
        self.slots.iter().sum()
    }
}

/// Returns the operations during which an activation lives; `None` if no operation binds it.
pub fn lifetime(graph: &Graph, tensor: TensorId) -> Option<RangeInclusive<usize>> {
    let users = graph.users(tensor);
    Some(*users.first()?..=*users.last()?)
}

/// Assigns every activation, in order of first use, the free slot that fits best.
pub fn plan(graph: &Graph) -> Plan {
    let mut lives: Vec<(TensorId, RangeInclusive<usize>, u64)> = graph
        .tensors()
        .iter()
        .filter(|&(id, _)| graph.role(id) == Role::Activation)
        .filter_map(|(id, desc)| Some((id, lifetime(graph, id)?, bytes(desc))))
        .collect();
    lives.sort_by_key(|(id, life, _)| (*life.start(), *id));

    let mut plan = Plan { slots: Vec::new(), slot: vec![None; graph.tensors().len()] };
    let mut busy_until: Vec<usize> = Vec::new();
    for (id, life, bytes) in lives {
        let free = (0..plan.slots.len()).filter(|&slot| busy_until[slot] < *life.start());
        // The smallest slot that is large enough, else the largest one, grown; else a new one.
        let best = free.min_by_key(|&slot| {
            let size = plan.slots[slot];
            (size < bytes, size.abs_diff(bytes))
        });
        let slot = best.unwrap_or_else(|| {
            plan.slots.push(0);
            busy_until.push(0);
            plan.slots.len() - 1
        });
        plan.slots[slot] = plan.slots[slot].max(bytes);
        busy_until[slot] = *life.end();
        plan.slot[id.0 as usize] = Some(slot);
    }
    plan
}

/// Returns the bytes of a tensor that lies in one buffer: an activation or state, no quantized weight.
pub fn bytes(desc: &TensorDesc) -> u64 {
    let cols = desc.shape.last();
    (desc.shape.elements() / cols * desc.dtype.row_bytes(cols)).next_multiple_of(4) as u64
}
