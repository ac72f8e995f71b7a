//! `id = argmax(logits[r, :])`: greedy sampling on the device.
//!
//! Of the last row the id goes to `ids[0]` and to `history[position + advance]`, then `position` advances, in
//! one dispatch, so many tokens are submitted without a read-back. Of every row, `ids[r]` becomes the id.
//! The lowest index wins ties; NaN never wins, and all NaN gives [`NONE`].

use bytemuck::{Pod, Zeroable};

use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, bits_fragment, dim, fragment};
use crate::tensor::{DType, TensorId, Tensors};

/// What stands for the index where every logit is NaN.
pub const NONE: u32 = u32::MAX;

/// Index of the largest logit of a row.
#[derive(Clone, Debug)]
pub struct Argmax {
    /// Logits, `[R, V]` f32.
    pub logits: TensorId,
    /// Token ids, `[T]` u32.
    pub ids: TensorId,
    /// The sequence that goes on, when only the last row counts.
    pub sequence: Option<Sequence>,
    rows: usize,
    vocabulary: usize,
}

/// A sequence that a token is appended to.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// Tokens cached, `[1]` u32.
    pub position: TensorId,
    /// The token that stands at each position, `[S + 1]` u32; the last one follows a full cache.
    pub history: TensorId,
    /// Added to the position: the tokens of the step.
    pub advance: usize,
    capacity: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    row: u32,
    vocabulary: u32,
    advance: u32,
    capacity: u32,
}

const _: () = assert!(size_of::<Params>() == 16);

impl Argmax {
    /// Returns the argmax of the last row of `logits` into `ids[0]` and into `history` behind the `advance`
    /// tokens of the step, and the step of `position`.
    ///
    /// # Panics
    /// When shapes do not fit.
    pub fn last(
        tensors: &Tensors,
        logits: TensorId,
        ids: TensorId,
        position: TensorId,
        history: TensorId,
        advance: usize,
    ) -> Self {
        let slots = tensors[history].shape.elements();
        tensors.expect(position, [1], DType::U32);
        tensors.expect(history, [slots], DType::U32);
        let sequence = Sequence { position, history, advance, capacity: slots - 1 };
        Self::new(tensors, logits, ids, Some(sequence))
    }

    /// Returns the argmax of every row of `logits` into the id of that number.
    ///
    /// # Panics
    /// When shapes do not fit.
    pub fn rows(tensors: &Tensors, logits: TensorId, ids: TensorId) -> Self {
        Self::new(tensors, logits, ids, None)
    }

    fn new(tensors: &Tensors, logits: TensorId, ids: TensorId, sequence: Option<Sequence>) -> Self {
        let &[rows, vocabulary] = tensors[logits].shape.dims() else { panic!("argmax takes [R, V]") };
        let slots = tensors[ids].shape.elements();
        tensors.expect(logits, [rows, vocabulary], DType::F32);
        tensors.expect(ids, [slots], DType::U32);
        assert!(sequence.is_some() || rows <= slots, "{rows} rows have no place in {slots} ids");
        dim(rows * vocabulary);
        Self { logits, ids, sequence, rows, vocabulary }
    }

    /// Returns the rows that count.
    fn counting(&self) -> std::ops::Range<usize> {
        if self.sequence.is_some() { self.rows - 1..self.rows } else { 0..self.rows }
    }
}

impl Kernel for Argmax {
    fn name(&self) -> &'static str {
        "argmax"
    }

    fn source(&self, _tier: Tier) -> Vec<Fragment> {
        let to = if self.sequence.is_some() { fragment!("token/last.wgsl") } else { fragment!("token/rows.wgsl") };
        vec![fragment!("argmax.wgsl"), fragment!("lib/keys.wgsl"), bits_fragment(self.vocabulary), to]
    }

    fn operands(&self) -> Vec<Operand> {
        let mut operands = vec![Operand::read(self.logits), Operand::read_write(self.ids)];
        let sequence = self.sequence.iter();
        operands.extend(sequence.flat_map(|s| [s.position, s.history]).map(Operand::read_write));
        operands
    }

    fn shape(&self) -> String {
        format!("R {}, V {}", self.counting().len(), self.vocabulary)
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![Tunable::workgroup(256)]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let sequence = self.sequence.as_ref();
        let params = Params {
            row: dim(self.counting().start),
            vocabulary: dim(self.vocabulary),
            advance: dim(sequence.map_or(0, |s| s.advance)),
            capacity: dim(sequence.map_or(0, |s| s.capacity)),
        };
        Dispatch {
            overrides: vec![("WG", f64::from(choice.of(&self.tunables()[0])))],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim(self.counting().len()), 1, 1],
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        let (rows, sequences) = (self.counting().len() as u64, self.sequence.iter().len() as u64);
        let logits = rows * self.vocabulary as u64;
        Cost { read: 4 * (logits + sequences), written: 4 * (rows + 2 * sequences), flops: logits }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.ids, |memory, ids| {
            let logits = memory.read(self.logits);
            for (row, id) in self.counting().zip(ids) {
                *id = f64::from(argmax(&logits[row * self.vocabulary..][..self.vocabulary]));
            }
        });
        if let Some(sequence) = &self.sequence {
            memory.update(sequence.position, |_, position| position[0] += sequence.advance as f64);
            memory.update(sequence.history, |memory, history| {
                let next = memory.read(sequence.position)[0] as usize;
                history[next.min(sequence.capacity)] = memory.read(self.ids)[0];
            });
        }
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
    let build = |mut case: CaseBuilder, [rows, vocabulary]: [usize; 2], fill: Fill, to: Option<(u32, usize)>| {
        let logits = case.tensor("logits", [rows, vocabulary], DType::F32, fill);
        let slots = if to.is_some() { 3 } else { rows + 1 };
        let ids = case.tensor("ids", [slots], DType::U32, Fill::Values(vec![7.0; slots]));
        let kernel = if let Some((position, advance)) = to {
            let position = Fill::Values(vec![f64::from(position)]);
            let position = case.tensor("position", [1], DType::U32, position);
            let history = case.tensor("history", [65], DType::U32, Fill::Values((0..65).map(f64::from).collect()));
            Argmax::last(&case.tensors, logits, ids, position, history, advance)
        } else {
            Argmax::rows(&case.tensors, logits, ids)
        };
        case.build(kernel, 0.0, "comparisons are exact")
    };
    let case = |label: &str, shape: [usize; 2], advance: usize, fill: Fill, bench: bool| {
        build(CaseBuilder::new(label).benched(bench), shape, fill, Some((41, advance)))
    };
    let place = |label: &str, position: u32, advance: usize| {
        build(CaseBuilder::new(label), [2, 100], Fill::Uniform(20.0), Some((position, advance)))
    };
    let rows = |label: &str, shape: [usize; 2], fill: Fill, bench: bool| {
        build(CaseBuilder::new(label).benched(bench), shape, fill, None)
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
        case("one logit", [2, 1], 1, Fill::Uniform(1.0), false),
        case("every number of rounds and a rest", [1, 8 * 4 * 256 + 4], 1, Fill::Uniform(20.0), false),
        case("maximum in the last lane of a ragged row", [1, 2047], 1, values(2047, -1.0, &[(2046, 3.0)]), false),
        case("all NaN in a ragged row", [1, 30], 1, values(30, nan, &[]), false),
        place("the first token", 0, 1),
        place("the token behind a full cache", 63, 1),
        place("a prompt that fills the cache", 0, 64),
        place("behind the history's end", 64, 1),
        place("a position that is no position", u32::MAX - 7, 5),
        rows("rows of a speculation", [8, V], Fill::Uniform(20.0), true),
        rows("rows of a batch", [64, V], Fill::Uniform(20.0), true),
        rows("one row", [1, V], Fill::Uniform(20.0), false),
        rows("ragged rows", [5, 1003], Fill::Uniform(20.0), false),
        rows("rows of NaN among others", [3, 5], values(15, nan, &[(1, 2.0), (12, -1.0), (13, -1.0)]), false),
    ]
}
