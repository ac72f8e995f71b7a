//! `ids[0] = argmax(logits[last, :]); position[0] += advance`: greedy sampling on the device.
//!
//! Sampling and the step of the position are one dispatch, so many tokens are submitted without a
//! read-back. The lowest index wins ties; NaN never wins, and all NaN gives [`NONE`].

use bytemuck::{Pod, Zeroable};

use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::tensor::{DType, TensorId, Tensors};

/// What stands for the index where every logit is NaN.
pub const NONE: u32 = u32::MAX;

/// Index of the largest logit.
#[derive(Clone, Debug)]
pub struct Argmax {
    /// Logits, `[R, V]` f32; the last row counts.
    pub logits: TensorId,
    /// Token ids, `[T]` u32; the first becomes the result.
    pub ids: TensorId,
    /// Tokens cached, `[1]` u32.
    pub position: TensorId,
    /// Added to the position.
    pub advance: usize,
    rows: usize,
    vocabulary: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    first: u32,
    vocabulary: u32,
    advance: u32,
}

const _: () = assert!(size_of::<Params>() == 12);

impl Argmax {
    /// Returns the argmax of the last row of `logits` into `ids`, and the step of `position`.
    ///
    /// # Panics
    /// When shapes do not fit.
    pub fn new(
        tensors: &Tensors,
        logits: TensorId,
        ids: TensorId,
        position: TensorId,
        advance: usize,
    ) -> Self {
        let &[rows, vocabulary] = tensors[logits].shape.dims() else { panic!("argmax takes [R, V]") };
        tensors.expect(logits, [rows, vocabulary], DType::F32);
        tensors.expect(ids, [tensors[ids].shape.elements()], DType::U32);
        tensors.expect(position, [1], DType::U32);
        Self { logits, ids, position, advance, rows, vocabulary }
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
        vec![
            Operand::read(self.logits),
            Operand::read_write(self.ids),
            Operand::read_write(self.position),
        ]
    }

    fn shape(&self) -> String {
        format!("V {}", self.vocabulary)
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![Tunable::workgroup(256)]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let params = Params {
            first: dim((self.rows - 1) * self.vocabulary),
            vocabulary: dim(self.vocabulary),
            advance: dim(self.advance),
        };
        Dispatch {
            overrides: vec![("WG", f64::from(choice.of(&self.tunables()[0])))],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [1, 1, 1],
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        let vocabulary = self.vocabulary as u64;
        Cost { read: 4 * vocabulary + 4, written: 8, flops: vocabulary }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.ids, |memory, ids| {
            let last = &memory.read(self.logits)[(self.rows - 1) * self.vocabulary..];
            let mut best = None;
            for (index, &logit) in last.iter().enumerate() {
                if !logit.is_nan() && best.is_none_or(|best: usize| logit > last[best]) {
                    best = Some(index);
                }
            }
            ids[0] = best.map_or(f64::from(NONE), |best| best as f64);
        });
        memory.update(self.position, |_, position| position[0] += self.advance as f64);
    }
}

/// OpenELM's vocabulary and logits where an index is easily missed.
pub fn cases() -> Vec<Case> {
    const V: usize = 32000;
    let case = |label: &str, [rows, vocabulary]: [usize; 2], advance: usize, fill: Fill, bench: bool| {
        let mut case = CaseBuilder::new(label);
        if bench {
            case = case.benched();
        }
        let logits = case.tensor("logits", [rows, vocabulary], DType::F32, fill);
        let ids = case.tensor("ids", [3], DType::U32, Fill::Values(vec![7.0, 8.0, 9.0]));
        let position = case.tensor("position", [1], DType::U32, Fill::Values(vec![41.0]));
        let kernel = Argmax::new(&case.tensors, logits, ids, position, advance);
        case.build(kernel, 0.0, "comparisons are exact")
    };
    // Logits that are `rest` but for some.
    let values = |n: usize, rest: f64, some: &[(usize, f64)]| {
        let mut values = vec![rest; n];
        some.iter().for_each(|&(index, value)| values[index] = value);
        Fill::Values(values)
    };
    let (nan, low) = (f64::NAN, f64::NEG_INFINITY);
    vec![
        case("vocabulary of OpenELM", [1, V], 1, Fill::Uniform(20.0), true),
        case("the last of three rows", [3, V], 3, Fill::Uniform(20.0), false),
        case("no multiple of the workgroup", [1, 1004], 1, Fill::Uniform(20.0), false),
        case("no multiple of four", [2, 2047], 1, Fill::Uniform(20.0), false),
        case("fewer logits than invocations", [1, 3], 0, Fill::Uniform(1.0), false),
        case("maximum first", [1, V], 1, values(V, -1.0, &[(0, 3.0)]), false),
        case("maximum last", [1, V], 1, values(V, -1.0, &[(V - 1, 3.0)]), false),
        case("tie of neighbours", [1, V], 1, values(V, 0.5, &[(4002, 3.0), (4003, 3.0)]), false),
        case("tie across invocations", [1, V], 1, values(V, 0.5, &[(31999, 3.0), (1025, 3.0)]), false),
        case("tie within an invocation", [1, V], 1, values(V, 0.5, &[(1029, 3.0), (2053, 3.0)]), false),
        case("all equal", [1, V], 1, values(V, -2.5, &[]), false),
        case("zeros of both signs tie", [1, V], 1, values(V, -1.0, &[(6, -0.0), (9, 0.0)]), false),
        case("negative infinities but one", [1, V], 1, values(V, low, &[(777, -3e38)]), false),
        case("all negative infinity", [1, V], 1, values(V, low, &[]), false),
        case("infinity wins", [1, V], 1, values(V, 3e38, &[(5, f64::INFINITY)]), false),
        case("NaN never wins", [1, V], 1, values(V, -7.0, &[(0, nan), (3, nan), (900, -6.0)]), false),
        case("NaN beside negative infinity", [1, V], 1, values(V, nan, &[(5, low)]), false),
        case("all NaN", [1, V], 1, values(V, nan, &[]), false),
        case("negative NaN", [1, V], 1, values(V, 1.0, &[(2, -nan), (11, 2.0)]), false),
        case("magnitudes 2^-20 to 2^20", [2, 2048], 1, Fill::Extreme, false),
    ]
}
