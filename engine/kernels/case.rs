//! A case: one call of a kernel with its inputs, for tests, benches and the workbench alike.

use crate::kernels::{Access, Cost, Kernel, Memory, Tier};
use crate::quant::{Format, q8_0_rows};
use crate::tensor::{DType, Shape, TensorId, Tensors};

/// How the values of a case's tensor are made.
#[derive(Clone, Debug)]
pub enum Fill {
    /// All zero: outputs that the kernel writes whole.
    Zero,
    /// Uniform in `[-scale, scale)`, rounded to what the element type can hold.
    Uniform(f32),
    /// Uniform in `[-1, 1)` times a power of two between 2^-20 and 2^20 that changes value by value.
    Extreme,
    /// These values.
    Values(Vec<f64>),
}

/// One call of a kernel, with its inputs and the error that its output may have.
#[derive(Debug)]
pub struct Case {
    /// What is special about it, unique within the kernel: `270M qkv layer 0, q8_0`.
    pub label: String,
    /// Seed of the inputs.
    pub seed: u64,
    /// The tensors of the call, among others that the kernel does not bind.
    pub tensors: Tensors,
    /// How each tensor is filled, in the order of `tensors`.
    pub fills: Vec<Fill>,
    /// The call.
    pub kernel: Box<dyn Kernel>,
    /// Largest normalised mean squared error, sum((y - r)^2) / sum(r^2), of each output where no input is
    /// rounded; 0 is exact.
    pub tolerance: f64,
    /// Why the tolerance is what it is.
    pub reason: &'static str,
    /// Whether benches time it.
    pub bench: bool,
}

impl Case {
    /// Returns the inputs: fills every tensor that the kernel binds, and rounds weights to their format.
    pub fn memory(&self) -> Memory {
        let bound = |id| self.access(id).is_some();
        let mut memory = Memory::holding(&self.tensors, bound);
        for ((id, desc), fill) in self.tensors.iter().zip(&self.fills).filter(|((id, _), _)| bound(*id)) {
            let mut values = fill.values(&desc.shape, self.seed ^ u64::from(id.0) << 32);
            match Format::of(desc.dtype) {
                Some(Format::F32) => values.iter_mut().for_each(|v| *v = f64::from(*v as f32)),
                Some(format) if desc.shape.last().is_multiple_of(crate::quant::BLOCK) => {
                    let rounded: Vec<f32> = values.iter().map(|&v| v as f32).collect();
                    let planes = format.pack(&rounded, desc.shape.last());
                    values = format.unpack(&planes, desc.shape.last()).into_iter().map(f64::from).collect();
                }
                None if desc.dtype == DType::Q8_0Rows => q8_0_rows::round(&mut values, desc.shape.last()),
                Some(_) => panic!("case `{}`: tensor `{}` is no multiple of a block", self.label, desc.name),
                None => {}
            }
            memory.set(id, values);
        }
        memory
    }

    /// Returns the bytes and operations of the call, after as many cached tokens as the tensor `position`
    /// holds.
    pub fn cost(&self) -> Cost {
        let position = self.tensors.iter().zip(&self.fills).find_map(|((_, desc), fill)| match fill {
            Fill::Values(values) if desc.name == "position" => Some(values[0] as usize),
            _ => None,
        });
        self.kernel.cost(position.unwrap_or(0))
    }

    /// Returns the tolerance at a tier, which adds the tier's rounding of inputs.
    pub fn tolerance_at(&self, tier: Tier) -> f64 {
        self.tolerance + self.kernel.rounding(tier)
    }

    /// Returns how the kernel uses a tensor; `None` when it does not bind it.
    pub fn access(&self, tensor: TensorId) -> Option<Access> {
        self.kernel.operands().iter().find(|operand| operand.tensor == tensor).map(|operand| operand.access)
    }

    /// Returns the tensors that the kernel writes.
    pub fn outputs(&self) -> Vec<TensorId> {
        let operands = self.kernel.operands().into_iter();
        operands.filter(|operand| operand.access.writes()).map(|operand| operand.tensor).collect()
    }
}

impl Fill {
    /// Returns `shape.elements()` values.
    fn values(&self, shape: &Shape, seed: u64) -> Vec<f64> {
        let uniform = |i: usize| f64::from((mix(seed, i as u64) >> 40) as u32) / f64::from(1u32 << 23) - 1.0;
        let n = shape.elements();
        match self {
            Self::Zero => vec![0.0; n],
            Self::Uniform(scale) => (0..n).map(|i| uniform(i) * f64::from(*scale)).collect(),
            Self::Extreme => (0..n)
                .map(|i| uniform(i) * f64::from((mix(!seed, i as u64) % 41) as i32 - 20).exp2())
                .collect(),
            Self::Values(values) => {
                assert_eq!(values.len(), n, "a case gives another number of values than its tensor has");
                values.clone()
            }
        }
    }
}

/// SplitMix64 of a seed and a counter.
fn mix(seed: u64, counter: u64) -> u64 {
    let mut z = seed.wrapping_add(counter.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Gathers the tensors of a [`Case`] and finishes it with its kernel.
#[derive(Debug)]
pub(crate) struct CaseBuilder {
    /// The tensors so far; a kernel's constructor checks its shapes against them.
    pub tensors: Tensors,
    label: String,
    fills: Vec<Fill>,
    bench: bool,
}

impl CaseBuilder {
    /// Starts a case with this label.
    pub fn new(label: impl Into<String>) -> Self {
        Self { tensors: Tensors::default(), label: label.into(), fills: Vec::new(), bench: false }
    }

    /// Adds to the label.
    pub(super) fn more(mut self, label: &str) -> Self {
        self.label += &format!(", {label}");
        self
    }

    /// Sets whether benches time the case.
    pub fn benched(self, bench: bool) -> Self {
        Self { bench, ..self }
    }

    /// Adds a tensor.
    pub fn tensor(&mut self, name: &str, shape: impl Into<Shape>, dtype: DType, fill: Fill) -> TensorId {
        self.fills.push(fill);
        self.tensors.add(name, shape, dtype)
    }

    /// Finishes the case. The seed is derived from the label, so it is stable.
    pub fn build(self, kernel: impl Kernel, tolerance: f64, reason: &'static str) -> Case {
        let seed = self.label.bytes().fold(0, |seed, byte| mix(seed, u64::from(byte)));
        let Self { tensors, label, fills, bench } = self;
        Case { label, seed, tensors, fills, kernel: Box::new(kernel), tolerance, reason, bench }
    }
}
