//! `scores[r, 0] = ln softmax(logits[r, :])[targets[r]]`, then the same of the likeliest tokens of the row.
//!
//! Fuses log-softmax, the choice of a target and a partial sort, so that a few numbers per row are read back
//! in place of `[R, V]`. Equal logits rank by the lower id. A row with a logit that is not finite gives
//! [`BROKEN`] and [`NONE`].

use bytemuck::{Pod, Zeroable};

use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, bits_fragment, dim, fragment};
use crate::tensor::{DType, TensorId, Tensors};

/// Number of likeliest tokens that each row returns; as in the shader.
pub const TOP: usize = 5;

/// Stands for the id where a rank has no token.
pub const NONE: u32 = u32::MAX;

/// Stands for the log-probability if a logit of the row is not finite, and for that of [`NONE`]: no
/// log-probability is above 0.
pub const BROKEN: f32 = 1.0;

/// Lower bound of a log-probability, so that it stays finite in f32.
const LOWEST: f64 = -3.2e38;

/// Log-probabilities of a target and of the likeliest tokens of each row of logits.
#[derive(Clone, Debug)]
pub struct LogLikelihood {
    /// Logits, `[R, V]` f32.
    pub logits: TensorId,
    /// The token of each row to score, `[at least R]` u32; clamped to the vocabulary.
    pub targets: TensorId,
    /// Natural log-probabilities: that of the target, then those of the likeliest tokens, `[R, 1 + TOP]` f32.
    pub scores: TensorId,
    /// The likeliest tokens, the likeliest first, `[R, TOP]` u32.
    pub ids: TensorId,
    rows: usize,
    vocabulary: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    vocabulary: u32,
}

const _: () = assert!(size_of::<Params>() == 4);

impl LogLikelihood {
    /// Returns the scores of `targets` by `logits`, and those of the likeliest tokens.
    ///
    /// # Panics
    /// When shapes do not fit.
    pub fn new(tensors: &Tensors, logits: TensorId, targets: TensorId, scores: TensorId, ids: TensorId) -> Self {
        let &[rows, vocabulary] = tensors[logits].shape.dims() else { panic!("log_likelihood takes [R, V]") };
        let given = tensors[targets].shape.elements();
        tensors.expect(logits, [rows, vocabulary], DType::F32);
        tensors.expect(targets, [given], DType::U32);
        tensors.expect(scores, [rows, 1 + TOP], DType::F32);
        tensors.expect(ids, [rows, TOP], DType::U32);
        assert!(rows <= given, "{rows} rows have {given} targets");
        dim(rows * vocabulary);
        Self { logits, targets, scores, ids, rows, vocabulary }
    }

    /// Returns (id, log-probability) of the target of a row and of its likeliest tokens.
    fn scored(&self, memory: &Memory, row: usize) -> [(u32, f64); 1 + TOP] {
        let logits = &memory.read(self.logits)[row * self.vocabulary..][..self.vocabulary];
        let target = (memory.read(self.targets)[row] as usize).min(self.vocabulary - 1);
        if !logits.iter().all(|logit| logit.is_finite()) {
            return [(NONE, BROKEN.into()); 1 + TOP];
        }
        let mut ranked: Vec<usize> = (0..self.vocabulary).collect();
        ranked.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).expect("finite").then(a.cmp(&b)));
        let top = logits[ranked[0]];
        let log_sum = logits.iter().map(|logit| (logit - top).exp()).sum::<f64>().ln();
        let score = |id: usize| (dim(id), (logits[id] - top).max(LOWEST) - log_sum);
        std::array::from_fn(|at| match at {
            0 => score(target),
            _ => ranked.get(at - 1).map_or((NONE, BROKEN.into()), |&id| score(id)),
        })
    }
}

impl Kernel for LogLikelihood {
    fn name(&self) -> &'static str {
        "log_likelihood"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        vec![fragment!("log_likelihood.wgsl"), fragment!("lib/keys.wgsl"), bits_fragment(self.vocabulary), tier.reduce()]
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::read(self.logits),
            Operand::read(self.targets),
            Operand::write(self.scores),
            Operand::write(self.ids),
        ]
    }

    fn shape(&self) -> String {
        // Without the row count: tuned values change the order of sums, and a row's bits must not depend on
        // others.
        format!("V {}", self.vocabulary)
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![Tunable::workgroup(256)]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        Dispatch {
            overrides: vec![("WG", f64::from(choice.of(&self.tunables()[0])))],
            params: bytemuck::bytes_of(&Params { vocabulary: dim(self.vocabulary) }).to_vec(),
            grid: [dim(self.rows), 1, 1],
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        let (rows, logits) = (self.rows as u64, (self.rows * self.vocabulary) as u64);
        // A difference, an exponential and a sum for each logit.
        Cost { read: 4 * (logits + rows), written: 4 * rows * (1 + 2 * TOP as u64), flops: 3 * logits }
    }

    fn reference(&self, memory: &mut Memory) {
        let rows: Vec<_> = (0..self.rows).map(|row| self.scored(memory, row)).collect();
        memory.update(self.scores, |_, scores| {
            let values = rows.iter().flatten().map(|&(_, score)| score);
            scores.iter_mut().zip(values).for_each(|(score, value)| *score = value);
        });
        memory.update(self.ids, |_, ids| {
            let likeliest = rows.iter().flat_map(|row| row[1..].iter()).map(|&(id, _)| f64::from(id));
            ids.iter_mut().zip(likeliest).for_each(|(id, value)| *id = value);
        });
    }
}

/// OpenELM's vocabulary, and logits whose order or sum is easily lost.
pub fn cases() -> Vec<Case> {
    const V: usize = 32000;
    let case = |label: &str, [rows, vocabulary]: [usize; 2], fill: Fill, targets: &[u32], bench: bool| {
        let mut case = CaseBuilder::new(label).benched(bench);
        // One more than there are rows.
        let given = (0..=rows).map(|row| targets[row % targets.len()].into()).collect();
        let logits = case.tensor("logits", [rows, vocabulary], DType::F32, fill);
        let targets = case.tensor("targets", [rows + 1], DType::U32, Fill::Values(given));
        let scores = case.tensor("scores", [rows, 1 + TOP], DType::F32, Fill::Zero);
        let ids = case.tensor("ids", [rows, TOP], DType::U32, Fill::Zero);
        let kernel = LogLikelihood::new(&case.tensors, logits, targets, scores, ids);
        case.build(kernel, 1e-13, "f32 logarithms near 10 within 2^-20; tests/kernels/cases.rs compares ids exactly")
    };
    // Logits that are all `rest`, except `some`.
    let values = |n: usize, rest: f64, some: &[(usize, f64)]| {
        let mut values = vec![rest; n];
        some.iter().for_each(|&(index, value)| values[index] = value);
        Fill::Values(values)
    };
    let wide = || Fill::Uniform(12.0);
    let (most, low) = (f64::from(f32::MAX), f64::from(f32::MIN));
    let last = dim(V) - 1;
    vec![
        case("one row of OpenELM's vocabulary", [1, V], wide(), &[123], true),
        case("a chunk of rows", [64, V], wide(), &[0, 31999, 77, 16000], true),
        case("narrow logits", [3, V], Fill::Uniform(0.5), &[5, 31999, 0], false),
        case("magnitudes 2^-20 to 2^20", [2, 2048], Fill::Extreme, &[2047, 3], false),
        case("no multiple of the workgroup", [3, 1004], wide(), &[1003, 0, 500], false),
        case("no multiple of four", [3, 2047], wide(), &[2046, 1, 2044], false),
        case("fewer logits than invocations", [5, 43], wide(), &[42, 7, 0], false),
        case("as many logits as ranks", [2, 5], wide(), &[4, 2], false),
        case("fewer logits than ranks", [2, 3], wide(), &[2, 0], false),
        case("one logit", [2, 1], wide(), &[0], false),
        case("all equal", [2, V], values(2 * V, -2.5, &[]), &[31999, 0], false),
        case("ties of neighbours, and across invocations", [1, V], values(V, 0.5, &[(4002, 3.0), (4003, 3.0), (31999, 3.0), (1029, 3.0), (2053, 3.0), (7, 3.0)]), &[31999], false),
        case("all of one invocation", [1, V], values(V, 0.0, &[(12, 5.0), (13, 6.0), (1036, 7.0), (1037, 8.0), (2060, 9.0), (2061, 10.0)]), &[12], false),
        case("zeros of both signs tie", [1, 9], values(9, -1.0, &[(6, -0.0), (3, 0.0)]), &[6], false),
        case("a certain token, and one beside it", [2, V], values(2 * V, -40.0, &[(777, 30.0), (V + 9, 60.0)]), &[777, 10], false),
        case("largest logits", [2, 200], values(400, low, &[(3, most), (150, most), (200, most)]), &[3, 1], false),
        case("large and equal", [1, 300], values(300, 3e38, &[(8, 2e38)]), &[8], false),
        case("a target that is no token", [2, 64], wide(), &[64, u32::MAX], false),
        case("rows of NaN among others", [3, 33], values(99, 1.0, &[(40, f64::NAN), (3, 2.0), (98, 4.0)]), &[3, 4, 32], false),
        case("infinity", [2, V], values(2 * V, 1.0, &[(V + 5, f64::INFINITY), (9, 2.0)]), &[9, 5], false),
        case("negative infinity", [1, 900], values(900, 1.0, &[(899, f64::NEG_INFINITY)]), &[1], false),
        case("all NaN", [1, 30], values(30, f64::NAN, &[]), &[2], false),
        case("largest of a row before a ragged row", [2, 6], values(12, 0.0, &[(5, 2.0), (6, 9.0), (7, -1.0)]), &[5, 1], false),
        case("the last of a vocabulary", [2, V], values(2 * V, -1.0, &[(V - 1, 3.0), (2 * V - 1, 3.0)]), &[last], false),
    ]
}
