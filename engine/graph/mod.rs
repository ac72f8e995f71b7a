//! A step as data: tensors with their roles and an append-only list of operations on them.
//!
//! The model writes a graph of primitive operations; [`fuse`] rewrites it by named rules; [`plan`]
//! gives its activations buffers; [`reference`](mod@reference) runs it on the CPU. It must not know
//! the model or the device.
//!
//! # Dispatches of a step
//!
//! A step is one compute pass. With every rule on, a token takes 5 dispatches per layer (qkv, attention, out, gate and up,
//! down) and 3 more (embedding, head, choice): 83 for the 16 layers of the 270M. From
//! [`SPLIT_KEYS`](crate::kernels::SPLIT_KEYS) cached keys on, a GPU splits each head's keys over several workgroups and
//! merges the partial results in a sixth dispatch per layer.
//!
//! A chunk of a prompt takes 6 dispatches per layer and at most 4 more: attention runs in tiles, after a dispatch for q/k
//! norm and RoPE. The chunk reads every weight once; after the last layer's attention only the last row goes on.
//!
//! Steps of up to [`FEW_TOKENS`](crate::kernels::FEW_TOKENS) tokens and all batches use row kernels, whose result for one
//! row is bit-identical whatever else is in the step: speculation and batching never change the text. For prompts the limit
//! is tunable (`samara kernel tune --switch-over`); on CPUs it is 64. (Where subgroups come in several sizes, a driver may
//! choose one for each pipeline, and with it the last bits of a sum.)
//!
//! # Rules
//!
//! | rule | fuses |
//! |---|---|
//! | `matmul-swiglu` | gate and up projections, SiLU, product |
//! | `norm-matvec` | RMSNorm and the products that it feeds |
//! | `matvec-add` | a product and the residual add after it |
//! | `add-rms-norm` | residual add and RMSNorm, where the two rules above took neither |
//! | `qk-norm-rope-attention` | q/k norm, RoPE, write to the KV cache, attention (steps of few tokens) |
//! | `qk-norm-rope` | q/k norm, RoPE, write to the KV cache |
//! | `rms-norm` | RMSNorm itself: square, mean, add eps, rsqrt, two products |
//!
//! [`Fusion`](fuse::Fusion) switches each of them off.

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
    pub(crate) fn into_parts(self) -> (Tensors, Vec<Op>) {
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
