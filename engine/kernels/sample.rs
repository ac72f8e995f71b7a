//! `id = draw(logits[r, :])`: repeat penalty, temperature, top-k, top-p, min-p and the draw, on the device.
//!
//! Fuses what would be half a dozen steps and a sort; [`draw`] defines it, and `sampler` does
//! the same on the CPU. Of the last row the id goes to `ids[0]` and to `history[position + advance]`, it is
//! noted as seen and `position` advances, so many tokens are submitted without a read-back. Of every row,
//! each takes the tokens of the step up to its own for seen, and the ids go to a tensor of their own.

use bytemuck::{Pod, Zeroable};

use super::draw::{self, Drawn, Options};
use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, bits_fragment, dim, fragment};
use crate::tensor::{DType, TensorId, Tensors};

/// What stands for the id where a logit is not finite.
pub const NONE: u32 = u32::MAX;

/// Most tokens of a vocabulary: sums of so many 16-bit halves fit a word.
pub const MAX_VOCABULARY: usize = 1 << 16;

/// A token drawn by the logits of a row.
#[derive(Clone, Debug)]
pub struct Sample {
    /// What it binds.
    pub of: Binds,
    /// Tokens of the step of which the last row counts; 0 draws by every row.
    pub advance: usize,
    rows: usize,
    vocabulary: usize,
    /// Elements of `of.out`.
    room: usize,
}

/// The tensors of a [`Sample`].
#[derive(Clone, Copy, Debug)]
pub struct Binds {
    /// Logits, `[R, V]` f32.
    pub logits: TensorId,
    /// Options, `[16]` u32: [`Options`].
    pub options: TensorId,
    /// 1 + the newest index of each id in the sequence, or 0, `[V]` u32: [`draw::last_seen`].
    pub last_seen: TensorId,
    /// Token ids of the step, `[T]` u32.
    pub ids: TensorId,
    /// Tokens cached before the step, `[1]` u32.
    pub position: TensorId,
    /// The token that stands at each position, `[S + 1]` u32; for every row, the drawn ids, `[R]` u32.
    pub out: TensorId,
    /// Integers that order like the logits, `[rows that count, V rounded up to a multiple of 4]` u32.
    pub scratch: TensorId,
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

impl Sample {
    /// Returns the draw by the last row of the logits, for a step of `advance` tokens.
    ///
    /// # Panics
    /// When shapes do not fit, or the vocabulary is too large.
    pub fn last(tensors: &Tensors, of: Binds, advance: usize) -> Self {
        assert!(advance > 0, "a step has a token");
        Self::new(tensors, of, advance)
    }

    /// Returns the draws by every row of the logits: row `r` for the position behind token `r` of the step.
    ///
    /// # Panics
    /// When shapes do not fit, or the vocabulary is too large.
    pub fn rows(tensors: &Tensors, of: Binds) -> Self {
        Self::new(tensors, of, 0)
    }

    fn new(tensors: &Tensors, of: Binds, advance: usize) -> Self {
        let &[rows, vocabulary] = tensors[of.logits].shape.dims() else { panic!("sample takes [R, V]") };
        assert!(vocabulary <= MAX_VOCABULARY, "sample takes at most {MAX_VOCABULARY} logits: V {vocabulary}");
        let [tokens, room] = [of.ids, of.out].map(|id| tensors[id].shape.elements());
        let kernel = Self { of, advance, rows, vocabulary, room };
        tensors.expect(of.logits, [rows, vocabulary], DType::F32);
        tensors.expect(of.options, [Options::WORDS], DType::U32);
        tensors.expect(of.last_seen, [vocabulary], DType::U32);
        tensors.expect(of.ids, [tokens], DType::U32);
        tensors.expect(of.position, [1], DType::U32);
        tensors.expect(of.out, [room], DType::U32);
        tensors.expect(of.scratch, scratch_shape(kernel.counting().len(), vocabulary), DType::U32);
        assert!(advance > 0 || rows <= tokens.min(room), "{rows} rows, {tokens} ids, room for {room}");
        dim(rows * vocabulary.next_multiple_of(4));
        kernel
    }

    /// Returns the rows that count.
    fn counting(&self) -> std::ops::Range<usize> {
        if self.advance > 0 { self.rows - 1..self.rows } else { 0..self.rows }
    }

    /// Returns the index that the token drawn by a row has in the sequence.
    fn next(&self, memory: &Memory, row: usize) -> usize {
        memory.read(self.of.position)[0] as usize + if self.advance > 0 { self.advance } else { row + 1 }
    }

    fn options(&self, memory: &Memory) -> Options {
        let words: Vec<u32> = memory.read(self.of.options).iter().map(|&word| word as u32).collect();
        bytemuck::pod_read_unaligned(bytemuck::cast_slice(&words))
    }

    /// Returns the logits of a row with the penalty on every id that occurred within the window.
    fn penalized(&self, memory: &Memory, row: usize) -> Vec<f64> {
        let (options, next) = (self.options(memory), self.next(memory, row));
        let mut logits = memory.read(self.of.logits)[row * self.vocabulary..][..self.vocabulary].to_vec();
        let first = if options.window == 0 { 0 } else { next.saturating_sub(options.window as usize) };
        let drafted = if self.advance > 0 { &[] } else { &memory.read(self.of.ids)[1..=row] };
        for (id, logit) in logits.iter_mut().enumerate().filter(|(_, logit)| logit.is_finite()) {
            let seen = memory.read(self.of.last_seen)[id] as usize > first;
            let behind = drafted.iter().rev().take(next - first).any(|&draft| draft == id as f64);
            if (seen || behind) && options.penalty != 1.0 {
                *logit = draw::penalized(*logit, options.penalty.into());
            }
        }
        logits
    }

    /// Draws by a row; `None` where a logit is not finite.
    fn drawn(&self, memory: &Memory, row: usize) -> Option<Drawn> {
        let logits = self.penalized(memory, row);
        let finite = logits.iter().all(|logit| logit.is_finite());
        finite.then(|| draw::draw(&logits, &self.options(memory), self.next(memory, row)))
    }
}

/// Returns the shape of the scratch tensor for the rows that count.
pub fn scratch_shape(rows: usize, vocabulary: usize) -> [usize; 2] {
    [rows, vocabulary.next_multiple_of(4)]
}

impl Kernel for Sample {
    fn name(&self) -> &'static str {
        "sample"
    }

    fn source(&self, _tier: Tier) -> Vec<Fragment> {
        vec![
            fragment!("sample.wgsl"),
            fragment!("lib/cut.wgsl"),
            fragment!("lib/keys.wgsl"),
            fragment!("lib/wide.wgsl"),
            fragment!("lib/threefry.wgsl"),
            bits_fragment(self.vocabulary),
        ]
    }

    fn operands(&self) -> Vec<Operand> {
        let Binds { logits, options, last_seen, ids, position, out, scratch } = self.of;
        let mut operands = vec![Operand::read(logits), Operand::read(options)];
        operands.extend([last_seen, ids, position, out].map(Operand::read_write));
        operands.push(Operand::write(scratch));
        operands
    }

    fn shape(&self) -> String {
        format!("R {}, V {}", self.counting().len(), self.vocabulary)
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![Tunable::workgroup(256)]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let params = Params {
            row: dim(self.counting().start),
            vocabulary: dim(self.vocabulary),
            advance: dim(self.advance),
            capacity: dim(self.room - 1),
        };
        Dispatch {
            overrides: vec![("WG", f64::from(choice.of(&self.tunables()[0])))],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim(self.counting().len()), 1, 1],
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        // One reading of the logits and of what was seen, and the keys written; a weight takes two operations.
        let (rows, vocabulary) = (self.counting().len() as u64, self.vocabulary as u64);
        let read = 4 * (rows + 1) * vocabulary + 4 * Options::WORDS as u64;
        Cost { read, written: 4 * rows * (vocabulary + 1), flops: 2 * rows * vocabulary }
    }

    fn reference(&self, memory: &mut Memory) {
        let ids: Vec<f64> = self
            .counting()
            .map(|row| self.drawn(memory, row).map_or(f64::from(NONE), |drawn| drawn.id as f64))
            .collect();
        memory.update(self.of.scratch, |memory, scratch| {
            let width = self.vocabulary.next_multiple_of(4);
            for (row, keys) in self.counting().zip(scratch.chunks_mut(width)) {
                keys.fill(0.0);
                let logits = self.penalized(memory, row);
                keys.iter_mut().zip(logits).for_each(|(key, logit)| *key = f64::from(order(logit as f32)));
            }
        });
        if self.advance == 0 {
            return memory.update(self.of.out, |_, out| out[..ids.len()].copy_from_slice(&ids));
        }
        let next = self.next(memory, self.rows - 1);
        memory.update(self.of.ids, |_, all| all[0] = ids[0]);
        memory.update(self.of.out, |_, history| history[next.min(self.room - 1)] = ids[0]);
        memory.update(self.of.position, |_, position| position[0] = next as f64);
        memory.update(self.of.last_seen, |_, seen| {
            if let Some(seen) = seen.get_mut(ids[0] as usize) {
                *seen = next as f64 + 1.0;
            }
        });
    }
}

/// Returns an integer that orders like the float: 0 for NaN, equal for both zeros.
fn order(value: f32) -> u32 {
    let magnitude = value.to_bits() & 0x7fff_ffff;
    match value {
        _ if value.is_nan() => 0,
        _ if value.is_sign_negative() => 0x8000_0000 - magnitude,
        _ => 0x8000_0000 + magnitude,
    }
}

/// OpenELM's vocabulary under each option and all of them, and draws where a candidate is easily mistaken.
pub fn cases() -> Vec<Case> {
    const V: usize = 32000;
    let plain = Setting::default();
    let all = Setting { top_k: 40, top_p: 0.9, min_p: 0.02, penalty: 1.3, window: 64, ..plain };
    let near = |n: usize, step: f64| Fill::Values((0..n).map(|i| f64::from((3.0 + step * (i * 7919 % n) as f64) as f32)).collect());
    // Logits that are `rest` but for some.
    let values = |n: usize, rest: f64, some: &[(usize, f64)]| {
        let mut values = vec![rest; n];
        some.iter().for_each(|&(index, value)| values[index] = value);
        Fill::Values(values)
    };
    let (most, low) = (f64::from(f32::MAX), f64::from(f32::MIN));
    let wide = Fill::Uniform(12.0);
    let mut cases = vec![
        last("temperature", [1, V], wide.clone(), plain).bench(),
        last("greedy", [1, V], wide.clone(), Setting { temperature: 0.0, ..plain }).bench(),
        last("greedy with a penalty", [1, V], wide.clone(), Setting { temperature: 0.0, penalty: 1.5, ..plain }),
        last("top-k", [1, V], wide.clone(), Setting { top_k: 40, ..plain }).bench(),
        last("top-p", [1, V], wide.clone(), Setting { top_p: 0.9, ..plain }).bench(),
        last("min-p", [1, V], wide.clone(), Setting { min_p: 0.05, ..plain }).bench(),
        last("penalty", [1, V], wide.clone(), Setting { penalty: 1.2, ..plain }),
        last("every option", [1, V], wide.clone(), all).bench(),
        last("the last of three rows", [3, V], wide.clone(), all),
        last("a hot draw", [1, V], wide.clone(), Setting { temperature: 50.0, top_p: 0.7, ..plain }),
        last("a cold draw", [1, V], wide.clone(), Setting { temperature: 0.05, top_k: 40, ..plain }),
        last("more candidates than a list holds", [1, V], wide.clone(), Setting { top_k: 20000, temperature: 9.0, ..plain }),
        last("largest vocabulary", [1, MAX_VOCABULARY], wide.clone(), Setting { top_p: 0.5, temperature: 20.0, ..plain }),
        last("largest vocabulary, all equal", [1, MAX_VOCABULARY], values(MAX_VOCABULARY, 1.5, &[]), Setting { top_p: 0.6, ..plain }),
        last("all equal, cut in the middle", [1, V], values(V, -2.5, &[]), Setting { top_k: 12345, ..plain }),
        last("nearly equal", [1, 5000], near(5000, 2f64.powi(-21)), Setting { top_k: 2500, ..plain }),
        last("equal but for the last byte", [1, 900], near(900, 2f64.powi(-22)), Setting { top_k: 450, ..plain }),
        last("ties at the cut", [1, 40], values(40, 0.0, &[(5, 2.0), (9, 2.0), (30, 2.0), (31, 2.0)]), Setting { top_k: 2, ..plain }),
        last("ties at the cut of top-p", [1, 40], values(40, -30.0, &[(5, 2.0), (9, 2.0), (30, 2.0), (31, 2.0)]), Setting { top_p: 0.6, ..plain }),
        last("a goal that is met exactly", [1, 4], values(4, 1.0, &[]), Setting { top_p: 0.5, ..plain }),
        last("zeros of both signs tie", [1, 9], values(9, 0.0, &[(2, -0.0), (7, -0.0)]), Setting { top_k: 5, ..plain }),
        last("top-k of one", [1, V], wide.clone(), Setting { top_k: 1, ..plain }),
        last("top-k of one, tied", [1, 300], values(300, 0.5, &[(280, 3.0), (299, 3.0)]), Setting { top_k: 1, ..plain }),
        last("top-k of all", [1, 50], wide.clone(), Setting { top_k: 50, ..plain }),
        last("top-k of more", [1, 50], wide.clone(), Setting { top_k: 51, ..plain }),
        last("top-k beyond what has a weight", [1, 500], Fill::Uniform(400.0), Setting { top_k: 400, ..plain }),
        last("tiny top-p", [1, V], wide.clone(), Setting { top_p: 1e-30, ..plain }),
rows("tinier than a step of the weights", [32, 4], values(128, 0.0, &(0..32).map(|r| (4 * r + 2, 1.2)).collect::<Vec<_>>()), Setting { top_p: 1e-30, ..plain }),
        last("top-p just below one", [1, 700], wide.clone(), Setting { top_p: 0.999, ..plain }),
        last("min-p of one", [1, 64], values(64, 1.0, &[(3, 1.25), (60, 1.25), (9, 1.2499)]), Setting { min_p: 1.0, ..plain }),
        last("tiny min-p", [1, 64], wide.clone(), Setting { min_p: 1e-40, ..plain }),
        last("one candidate", [1, 1], Fill::Uniform(1.0), all),
        last("two candidates", [1, 2], Fill::Uniform(1.0), plain),
        last("fewer logits than invocations", [2, 7], Fill::Uniform(2.0), Setting { top_p: 0.8, ..plain }),
        last("no multiple of four", [2, 2047], wide.clone(), Setting { penalty: 1.1, ..all }),
        last("magnitudes 2^-20 to 2^20", [1, 2048], Fill::Extreme, plain),
        last("smallest temperature", [1, 200], wide.clone(), Setting { temperature: 1e-45, ..all }),
        last("largest temperature", [1, 200], wide.clone(), Setting { temperature: f32::MAX, top_k: 150, ..plain }),
        last("largest penalty", [1, 200], wide.clone(), Setting { penalty: 1e30, ..plain }),
        last("smallest penalty", [1, 200], wide.clone(), Setting { penalty: 1e-30, ..plain }),
        last("largest logits", [1, 200], values(200, low, &[(3, most), (150, most)]), plain),
        last("largest logits, hot", [1, 200], values(200, low, &[(3, most), (150, most)]), Setting { temperature: f32::MAX, ..plain }),
        last("largest logits, lowered", [1, 200], values(200, low, &[(3, most), (151, most)]), Setting { penalty: 1e30, ..plain }),
        last("largest logits, raised", [1, 200], values(200, low, &[(3, most), (150, 1.0)]), Setting { penalty: 1e-30, ..plain }),
        last("window of one", [1, 30], values(30, 0.0, &[(29, 3.0), (28, 2.9)]), Setting { temperature: 0.0, penalty: 2.0, window: 1, ..plain }),
        last("window beyond the sequence", [1, 60], wide.clone(), Setting { penalty: 4.0, window: 9999, ..plain }),
        last("infinity", [1, 900], values(900, 1.0, &[(5, f64::INFINITY)]), plain),
        last("negative infinity", [1, 900], values(900, 1.0, &[(899, f64::NEG_INFINITY)]), Setting { temperature: 0.0, ..plain }),
        last("NaN", [1, 903], values(903, 1.0, &[(902, f64::NAN)]), all),
        last("all NaN", [1, 30], values(30, f64::NAN, &[]), all),
        last("the first token", [1, 300], wide.clone(), Setting { position: 0, ..all }),
        last("the token behind a full cache", [1, 300], wide.clone(), Setting { position: 64, ..all }),
        last("a position that is no position", [1, 300], wide.clone(), Setting { position: u32::MAX - 9, ..all }),
        rows("rows of a speculation", [8, V], wide.clone(), all).bench(),
        rows("rows at a temperature", [64, 150], wide.clone(), plain),
        rows("greedy rows with a penalty", [8, 20], Fill::Uniform(2.0), Setting { temperature: 0.0, penalty: 3.0, ..plain }),
        rows("rows with a window of two", [8, 20], Fill::Uniform(2.0), Setting { temperature: 0.5, penalty: 3.0, window: 2, ..plain }),
        rows("ragged rows", [5, 1003], wide.clone(), all),
        rows("rows with NaN among them", [3, 5], values(15, 1.0, &[(7, f64::NAN)]), plain),
    ];
    for seed in 0..4 {
        cases.push(last(&format!("seed {seed}"), [1, V], wide.clone(), Setting { seed: u64::MAX / 3 * seed, top_p: 0.95, ..plain }));
    }
    cases.into_iter().map(Draft::case).collect()
}

/// The options of a case, with where its sequence stands.
#[derive(Clone, Copy)]
struct Setting {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    penalty: f32,
    window: usize,
    seed: u64,
    position: u32,
}

impl Default for Setting {
    fn default() -> Self {
        let (temperature, top_p, min_p, penalty) = (1.0, 1.0, 0.0, 1.0);
        Self { temperature, top_k: 0, top_p, min_p, penalty, window: 0, seed: 7, position: 41 }
    }
}

/// What a case is made from.
struct Draft {
    label: String,
    shape: [usize; 2],
    logits: Fill,
    setting: Setting,
    every: bool,
    bench: bool,
}

fn last(label: &str, shape: [usize; 2], logits: Fill, setting: Setting) -> Draft {
    Draft { label: label.to_owned(), shape, logits, setting, every: false, bench: false }
}

fn rows(label: &str, shape: [usize; 2], logits: Fill, setting: Setting) -> Draft {
    Draft { every: true, ..last(label, shape, logits, setting) }
}

impl Draft {
    fn bench(self) -> Self {
        Self { bench: true, ..self }
    }

    fn case(self) -> Case {
        let Self { label, shape: [rows, vocabulary], logits, setting: of, every, bench } = self;
        let options = Options::new(of.temperature, of.top_k, of.top_p, of.min_p, of.penalty, of.window, of.seed);
        let mut case = CaseBuilder::new(label);
        if bench {
            case = case.benched();
        }
        let words = |words: &[u32]| Fill::Values(words.iter().map(|&word| f64::from(word)).collect());
        // Ids of a sequence that comes back to some of them.
        let id = |index: usize| dim(index * 37 % 61 * 13 % vocabulary);
        let history: Vec<u32> = (0..=of.position.min(64) as usize).map(id).collect();
        let tokens = if every { rows } else { 3 };
        let ids: Vec<u32> = (0..tokens).map(|t| id(of.position as usize + t)).collect();
        let (room, counting) = if every { (rows, rows) } else { (65, 1) };
        let mut tensor = |name: &str, shape: &[usize], fill: Fill| match *shape {
            [n] => case.tensor(name, [n], DType::U32, fill),
            _ => case.tensor(name, [rows, vocabulary], DType::F32, fill),
        };
        let binds = Binds {
            logits: tensor("logits", &[rows, vocabulary], logits),
            options: tensor("options", &[Options::WORDS], words(bytemuck::cast_slice(&[options]))),
            last_seen: tensor("last_seen", &[vocabulary], words(&draw::last_seen(&history, vocabulary))),
            ids: tensor("ids", &[tokens], words(&ids)),
            position: tensor("position", &[1], words(&[of.position])),
            out: tensor("out", &[room], words(&vec![5; room])),
            scratch: case.tensor("scratch", scratch_shape(counting, vocabulary), DType::U32, Fill::Zero),
        };
        let kernel = if every { Sample::rows(&case.tensors, binds) } else { Sample::last(&case.tensors, binds, 1) };
        if of.penalty == 1.0 {
            return case.build(kernel, 0.0, "ids and keys are exact");
        }
        // Far below one step of an id or a position: 1 / (5e9^2 + V * 65^2).
        case.build(kernel, 1e-17, "ids are exact; keys of penalised logits may be 2.5 ULP of 2^31 off")
    }
}

#[cfg(test)]
mod tests {
    use std::any::Any;

    use super::*;

    #[test]
    fn every_case_draws_clear_of_its_boundaries() {
        for case in cases() {
            let kernel = (&*case.kernel as &dyn Any).downcast_ref::<Sample>().unwrap();
            let memory = case.memory();
            for drawn in kernel.counting().filter_map(|row| kernel.drawn(&memory, row)) {
                assert!(drawn.margin > 1e-6, "{}: {drawn:?}", case.label);
            }
        }
    }

    #[test]
    fn what_was_seen_last_is_told_from_what_never_was() {
        assert_eq!(draw::last_seen(&[2, 0, 2, 9, u32::MAX], 4), [2, 0, 3, 0]);
        assert_eq!(draw::last_seen(&[], 2), [0, 0]);
    }
}
