//! `ids[0] = argmax(logits[R - 1, :])` and `position[0] += T`: greedy sampling behind the head.

use bytemuck::{Pod, Zeroable};

use super::{Case, CaseBuilder, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, dim, fragment};
use crate::tensor::{DType, TensorId, Tensors};

/// Id of the largest logit, and the advance of the position.
#[derive(Clone, Debug)]
pub struct Argmax {
    /// Logits, `[R, V]` f32; the last row counts.
    pub logits: TensorId,
    /// Token ids, `[T]` u32; the first is replaced.
    pub ids: TensorId,
    /// Tokens cached, `[1]` u32; `advance` is added.
    pub position: TensorId,
    advance: usize,
    rows: usize,
    vocab: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    first: u32,
    vocab: u32,
    advance: u32,
}

const _: () = assert!(size_of::<Params>() == 12);

impl Argmax {
    /// Returns the argmax of the last row of `logits` into `ids[0]`.
    ///
    /// # Panics
    /// When shapes do not fit.
    pub fn new(tensors: &Tensors, logits: TensorId, ids: TensorId, position: TensorId, advance: usize) -> Self {
        let &[rows, vocab] = tensors[logits].shape.dims() else { panic!("logits are [R, V]") };
        tensors.expect(logits, [rows, vocab], DType::F32);
        tensors.expect(ids, tensors[ids].shape.clone(), DType::U32);
        tensors.expect(position, [1], DType::U32);
        Self { logits, ids, position, advance, rows, vocab }
    }
}

impl Kernel for Argmax {
    fn name(&self) -> &'static str {
        "argmax"
    }

    fn source(&self, _tier: Tier) -> Vec<Fragment> {
        vec![fragment!("argmax.wgsl")]
    }

    fn operands(&self) -> Vec<Operand> {
        vec![Operand::read(self.logits), Operand::read_write(self.ids), Operand::read_write(self.position)]
    }

    fn dispatch(&self, _tier: Tier) -> Dispatch {
        let params = Params {
            first: dim((self.rows - 1) * self.vocab),
            vocab: dim(self.vocab),
            advance: dim(self.advance),
        };
        Dispatch {
            overrides: vec![("WG", 256.0)],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [1, 1, 1],
        }
    }

    fn cost(&self) -> Cost {
        Cost { bytes: 4 * self.vocab as u64, flops: self.vocab as u64 }
    }

    fn reference(&self, memory: &mut Memory) {
        let row = &memory.read(self.logits)[(self.rows - 1) * self.vocab..];
        let mut best = 0;
        for id in 0..self.vocab {
            if row[id] > row[best] || row[best].is_nan() && !row[id].is_nan() {
                best = id;
            }
        }
        memory.update(self.ids, |_, ids| ids[0] = best as f64);
        memory.update(self.position, |_, position| position[0] += self.advance as f64);
    }
}

/// The real vocabulary, and maxima at both ends, tied, beside NaN and infinities.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, rows: usize, vocab: usize, fill: Fill| {
        let mut case = CaseBuilder::new(format!("{label}, R {rows}, V {vocab}")).benched();
        let logits = case.tensor("logits", [rows, vocab], DType::F32, fill);
        let ids = case.tensor("ids", [3], DType::U32, Fill::Values(vec![1.0, 2.0, 3.0]));
        let position = case.tensor("position", [1], DType::U32, Fill::Values(vec![40.0]));
        let kernel = Argmax::new(&case.tensors, logits, ids, position, rows);
        case.build(kernel, 0.0, "comparisons round nothing")
    };
    let with = |vocab: usize, values: &[(usize, f64)]| {
        let mut logits = vec![-1.5; vocab];
        values.iter().for_each(|&(id, value)| logits[id] = value);
        Fill::Values(logits)
    };
    vec![
        case("random", 1, 32000, Fill::Uniform(8.0)),
        case("last of several rows", 5, 512, Fill::Uniform(8.0)),
        case("fewer logits than invocations", 1, 33, Fill::Uniform(8.0)),
        case("maximum at the first id", 1, 2048, with(2048, &[(0, 7.0)])),
        case("maximum at the last id", 1, 2047, with(2047, &[(2046, 7.0)])),
        case("ties across invocations", 1, 2048, with(2048, &[(1500, 7.0), (700, 7.0), (701, 7.0)])),
        case("all equal", 1, 1000, with(1000, &[])),
        case("NaN beside a maximum", 1, 600, with(600, &[(0, f64::NAN), (300, f64::NAN), (301, 2.0)])),
        case("infinities", 1, 600, with(600, &[(5, f64::NEG_INFINITY), (599, f64::INFINITY)])),
        case("all negative infinity", 1, 300, Fill::Values(vec![f64::NEG_INFINITY; 300])),
    ]
}
