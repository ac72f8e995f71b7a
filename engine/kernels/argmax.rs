//! `id = argmax(logits[r, :])`: greedy sampling on the device.
//!
//! The lowest index wins ties; NaN never wins, and all NaN gives [`NONE`]. The same dispatch writes the id to
//! [`TokenState`], so that many tokens are submitted without a read-back.

use bytemuck::{Pod, Zeroable};

use super::token::{Choosing, NONE, TokenState};
use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, bits_fragment, dim, fragment};
use crate::tensor::{DType, TensorId, Tensors};

/// Index of the largest logit of a row.
#[derive(Clone, Debug)]
pub struct Argmax {
    /// Logits, `[R, V]` f32.
    pub logits: TensorId,
    choosing: Choosing,
    vocabulary: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    row: u32,
    advance: u32,
    capacity: u32,
    vocabulary: u32,
}

const _: () = assert!(size_of::<Params>() == 16);

impl Argmax {
    /// Returns the argmax of the last row of `logits`, for a step of `advance` tokens.
    ///
    /// # Panics
    /// When shapes do not fit.
    pub fn last(tensors: &Tensors, logits: TensorId, state: TokenState, advance: usize) -> Self {
        Self::new(tensors, logits, state, Some(advance))
    }

    /// Returns the argmax of every row of `logits`.
    ///
    /// # Panics
    /// When shapes do not fit.
    pub fn rows(tensors: &Tensors, logits: TensorId, state: TokenState) -> Self {
        Self::new(tensors, logits, state, None)
    }

    fn new(tensors: &Tensors, logits: TensorId, state: TokenState, advance: Option<usize>) -> Self {
        let &[rows, vocabulary] = tensors[logits].shape.dims() else { panic!("argmax takes [R, V]") };
        tensors.expect(logits, [rows, vocabulary], DType::F32);
        dim(rows * vocabulary);
        Self { logits, choosing: Choosing::new(tensors, state, rows, advance), vocabulary }
    }
}

impl Kernel for Argmax {
    fn name(&self) -> &'static str {
        "argmax"
    }

    fn source(&self, _tier: Tier) -> Vec<Fragment> {
        vec![
            fragment!("argmax.wgsl"),
            Choosing::fragment(),
            fragment!("lib/keys.wgsl"),
            bits_fragment(self.vocabulary),
        ]
    }

    fn operands(&self) -> Vec<Operand> {
        [Operand::read(self.logits)].into_iter().chain(self.choosing.operands()).collect()
    }

    fn shape(&self) -> String {
        format!("R {}, V {}", self.choosing.rows().len(), self.vocabulary)
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![Tunable::workgroup(256)]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let [row, advance, capacity] = self.choosing.params();
        let params = Params { row, advance, capacity, vocabulary: dim(self.vocabulary) };
        Dispatch {
            overrides: vec![self.choosing.mode(), ("WG", f64::from(choice.of(&self.tunables()[0])))],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim(self.choosing.rows().len()), 1, 1],
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        let (rows, [read, written]) = (self.choosing.rows().len() as u64, self.choosing.words());
        let logits = rows * self.vocabulary as u64;
        Cost { read: 4 * (logits + read), written: 4 * written, flops: logits }
    }

    fn reference(&self, memory: &mut Memory) {
        let logits = memory.read(self.logits);
        let argmax = |row: usize| argmax(&logits[row * self.vocabulary..][..self.vocabulary]);
        let ids: Vec<u32> = self.choosing.rows().map(argmax).collect();
        self.choosing.publish(memory, &ids);
    }
}

/// Returns the index of the largest value that is a number, the lowest on ties.
fn argmax(row: &[f64]) -> u32 {
    let mut best = None;
    for (index, &logit) in row.iter().enumerate() {
        if !logit.is_nan() && best.is_none_or(|best: usize| logit > row[best]) {
            best = Some(index);
        }
    }
    best.map_or(NONE, dim)
}

/// OpenELM's vocabulary and logits where an index is easily missed.
pub fn cases() -> Vec<Case> {
    const V: usize = 32000;
    let build = |label: &str, shape: [usize; 2], fill: Fill, (position, advance): (u32, Option<usize>), bench| {
        let mut case = CaseBuilder::new(label).benched(bench);
        let logits = case.tensor("logits", shape, DType::F32, fill);
        let [rows, room] = if advance.is_some() { [3, 65] } else { [shape[0] + 1; 2] };
        let mut words = |name: &str, values: Vec<u32>| {
            let fill = Fill::Values(values.iter().map(|&word| word.into()).collect());
            case.tensor(name, [values.len()], DType::U32, fill)
        };
        let ids = words("ids", vec![7; rows]);
        let position = words("position", vec![position]);
        let out = words("history", (0..room as u32).collect());
        let state = TokenState { ids, position, out };
        let kernel = match advance {
            Some(advance) => Argmax::last(&case.tensors, logits, state, advance),
            None => Argmax::rows(&case.tensors, logits, state),
        };
        case.build(kernel, 0.0, "comparisons are exact")
    };
    let case = |label: &str, shape: [usize; 2], advance: usize, fill: Fill, bench: bool| {
        build(label, shape, fill, (41, Some(advance)), bench)
    };
    let at = |label: &str, position: u32, advance: usize| {
        build(label, [2, 100], Fill::Uniform(20.0), (position, Some(advance)), false)
    };
    let rows = |label: &str, shape: [usize; 2], fill: Fill, bench: bool| {
        build(label, shape, fill, (41, None), bench)
    };
    // Logits that are all `rest`, except `some`.
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
        case("one logit", [2, 1], 1, Fill::Uniform(1.0), false),
        case("every number of rounds and a rest", [1, 8 * 4 * 256 + 4], 1, Fill::Uniform(20.0), false),
        case("maximum in the last lane of a ragged row", [1, 2047], 1, values(2047, -1.0, &[(2046, 3.0)]), false),
        case("all NaN in a ragged row", [1, 30], 1, values(30, nan, &[]), false),
        at("the first token", 0, 1),
        at("the token after a full cache", 63, 1),
        at("a prompt that fills the cache", 0, 64),
        at("past the history's end", 64, 1),
        at("a position that is no position", u32::MAX - 7, 5),
        rows("rows of a speculation", [8, V], Fill::Uniform(20.0), true),
        rows("rows of a batch", [64, V], Fill::Uniform(20.0), true),
        rows("one row", [1, V], Fill::Uniform(20.0), false),
        rows("ragged rows", [5, 1003], Fill::Uniform(20.0), false),
        rows("rows of NaN among others", [3, 5], values(15, nan, &[(1, 2.0), (12, -1.0), (13, -1.0)]), false),
    ]
}
