//! A step as data: tensors with their roles and an append-only list of operations on them.
//!
//! The model writes a graph of primitive operations; [`fuse`] rewrites it by named rules; [`plan`]
//! gives its activations buffers; [`reference`](mod@reference) runs it on the CPU. It must not know
//! the model or the device.

pub mod fuse;
mod norms;
pub mod plan;
pub mod reference;

use std::any::Any;
use std::fmt;

use crate::kernels::Kernel;
use crate::tensor::{DType, Shape, TensorId, Tensors};

/// Who owns a tensor's storage and how long its values live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A weight, shared by every session of a model.
    Weight,
    /// State of a session that outlives the step: ids, position, tables, KV caches, logits.
    State,
    /// A value of this step only; the plan assigns it a buffer.
    Activation,
}

/// One operation: a kernel and its label, `layer.3/attn/qkv`.
pub struct Op {
    /// Its position in the model, for people to read.
    pub label: String,
    /// What it computes.
    pub kernel: Box<dyn Kernel>,
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.label, self.kernel)
    }
}

impl Op {
    /// Returns whether the operation binds a tensor.
    pub fn uses(&self, tensor: TensorId) -> bool {
        self.kernel.operands().iter().any(|operand| operand.tensor == tensor)
    }
}

/// Returns the kernel of an operation if it is a `K`.
fn kernel<K: Any>(op: &Op) -> Option<&K> {
    (&*op.kernel as &dyn Any).downcast_ref()
}

/// The operations of one step in the order in which they run.
#[derive(Debug, Default)]
pub struct Graph {
    tensors: Tensors,
    roles: Vec<Role>,
    ops: Vec<Op>,
}

impl Graph {
    /// Adds a tensor.
    pub fn tensor(
        &mut self,
        name: impl Into<String>,
        shape: impl Into<Shape>,
        dtype: DType,
        role: Role,
    ) -> TensorId {
        self.roles.push(role);
        self.tensors.add(name, shape, dtype)
    }

    /// Adds an f32 activation.
    pub fn activation(&mut self, name: impl Into<String>, shape: impl Into<Shape>) -> TensorId {
        self.tensor(name, shape, DType::F32, Role::Activation)
    }

    /// Appends an operation.
    pub fn push(&mut self, label: impl Into<String>, kernel: impl Kernel) {
        self.ops.push(Op { label: label.into(), kernel: Box::new(kernel) });
    }

    /// Returns the tensors.
    pub fn tensors(&self) -> &Tensors {
        &self.tensors
    }

    /// Returns the role of a tensor.
    pub fn role(&self, tensor: TensorId) -> Role {
        self.roles[tensor.0 as usize]
    }

    /// Returns the tensors and the operations.
    pub fn into_parts(self) -> (Tensors, Vec<Op>) {
        (self.tensors, self.ops)
    }

    /// Returns the operations.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// Returns the indices of the operations that bind a tensor.
    fn users(&self, tensor: TensorId) -> Vec<usize> {
        (0..self.ops.len()).filter(|&index| self.ops[index].uses(tensor)).collect()
    }
}
