//! `id = draw(logits[r, :])`: repeat penalty, temperature, top-k, top-p, min-p and the draw, on the device.
//!
//! Fuses what would be half a dozen steps and a sort; [`draw`] defines it, and `sampler` does
//! the same on the CPU. Of the last row the id goes to `ids[0]` and to `history[position + advance]`, it is
//! noted as seen and `position` advances, so many tokens are submitted without a read-back. Of every row the ids go
//! to a tensor of their own: each row takes the tokens of the step up to its own for seen; or, of a batch, is a
//! sequence of its own, with its own options, and what it draws is noted as seen and becomes its id too.

use bytemuck::{Pod, Zeroable};

use super::draw::{self, Drawn, Options};
use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, bits_fragment, dim, fragment};
use crate::tensor::{DType, Shape, TensorId, Tensors};

/// What stands for the id where a logit is not finite.
pub const NONE: u32 = u32::MAX;

/// Most tokens of a vocabulary: sums of so many 16-bit halves fit a word.
pub const MAX_VOCABULARY: usize = 1 << 16;

/// A token drawn by the logits of a row.
#[derive(Clone, Debug)]
pub struct Sample {
    /// What it binds.
    pub of: Binds,
    /// What its rows are.
    pub mode: Mode,
    rows: usize,
    vocabulary: usize,
    /// Elements of `of.out`.
    room: usize,
}

/// What the rows of a [`Sample`] are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Rows of a step of so many tokens, of which the last one counts.
    Last(usize),
    /// Drafted tokens behind each other in one sequence.
    Drafted,
    /// One of each sequence, which are in as many slots.
    Batch(usize),
}

/// The tensors of a [`Sample`].
#[derive(Clone, Copy, Debug)]
pub struct Binds {
    /// Logits, `[R, V]` f32.
    pub logits: TensorId,
    /// Options, `[16]` u32, of a batch `[R, 16]`: [`Options`].
    pub options: TensorId,
    /// 1 + the newest index of each id in the sequence, or 0, `[V]` u32, of a batch `[slots, V]`: [`draw::last_seen`].
    pub last_seen: TensorId,
    /// Token ids of the step, `[T]` u32.
    pub ids: TensorId,
    /// Tokens cached before the step, `[1]` u32, or (position, slot) of each row of a batch, `[R, 2]` u32; slots are
    /// clamped.
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
    slots: u32,
}

const _: () = assert!(size_of::<Params>() == 20);

impl Sample {
    /// Returns the draw by the last row of the logits, for a step of `advance` tokens.
    ///
    /// # Panics
    /// When shapes do not fit, or the vocabulary is too large.
    pub fn last(tensors: &Tensors, of: Binds, advance: usize) -> Self {
        assert!(advance > 0, "a step has a token");
        Self::new(tensors, of, Mode::Last(advance))
    }

    /// Returns the draws by every row of the logits: row `r` for the position behind token `r` of the step, or, if
    /// `position` is `[R, 2]`, behind the token of its own sequence.
    ///
    /// # Panics
    /// When shapes do not fit, or the vocabulary is too large.
    pub fn rows(tensors: &Tensors, of: Binds) -> Self {
        match *tensors[of.last_seen].shape.dims() {
            [slots, _] => Self::new(tensors, of, Mode::Batch(slots)),
            _ => Self::new(tensors, of, Mode::Drafted),
        }
    }

    fn new(tensors: &Tensors, of: Binds, mode: Mode) -> Self {
        let &[rows, vocabulary] = tensors[of.logits].shape.dims() else { panic!("sample takes [R, V]") };
        assert!(vocabulary <= MAX_VOCABULARY, "sample takes at most {MAX_VOCABULARY} logits: V {vocabulary}");
        let [tokens, room] = [of.ids, of.out].map(|id| tensors[id].shape.elements());
        let kernel = Self { of, mode, rows, vocabulary, room };
        tensors.expect(of.logits, [rows, vocabulary], DType::F32);
        if let Mode::Batch(slots) = mode {
            tensors.expect(of.options, [rows, Options::WORDS], DType::U32);
            tensors.expect(of.last_seen, [slots, vocabulary], DType::U32);
            tensors.expect(of.position, [rows, 2], DType::U32);
            dim(slots * vocabulary);
        } else {
            tensors.expect(of.options, [Options::WORDS], DType::U32);
            tensors.expect(of.last_seen, [vocabulary], DType::U32);
            tensors.expect(of.position, [1], DType::U32);
        }
        tensors.expect(of.ids, [tokens], DType::U32);
        tensors.expect(of.out, [room], DType::U32);
        tensors.expect(of.scratch, scratch_shape(kernel.counting().len(), vocabulary), DType::U32);
        let fits = matches!(mode, Mode::Last(_)) || rows <= tokens.min(room);
        assert!(fits, "{rows} rows, {tokens} ids, room for {room}");
        dim(rows * vocabulary.next_multiple_of(4));
        kernel
    }

    /// Returns the rows that count.
    fn counting(&self) -> std::ops::Range<usize> {
        if let Mode::Last(_) = self.mode { self.rows - 1..self.rows } else { 0..self.rows }
    }

    /// Returns the index that the token drawn by a row has in its sequence.
    fn next(&self, memory: &Memory, row: usize) -> usize {
        let position = memory.read(self.of.position);
        match self.mode {
            Mode::Last(advance) => position[0] as usize + advance,
            Mode::Drafted => position[0] as usize + row + 1,
            Mode::Batch(_) => position[2 * row] as usize + 1,
        }
    }

    /// Returns where the sequence of a row begins in `last_seen`.
    fn seen_from(&self, memory: &Memory, row: usize) -> usize {
        let Mode::Batch(slots) = self.mode else { return 0 };
        (memory.read(self.of.position)[2 * row + 1] as usize).min(slots - 1) * self.vocabulary
    }

    fn options(&self, memory: &Memory, row: usize) -> Options {
        let table = if let Mode::Batch(_) = self.mode { row } else { 0 };
        let words = &memory.read(self.of.options)[table * Options::WORDS..][..Options::WORDS];
        let words: Vec<u32> = words.iter().map(|&word| word as u32).collect();
        bytemuck::pod_read_unaligned(bytemuck::cast_slice(&words))
    }

    /// Returns the logits of a row with the penalty on every id that occurred within the window.
    fn penalized(&self, memory: &Memory, row: usize) -> Vec<f64> {
        let (options, next) = (self.options(memory, row), self.next(memory, row));
        let mut logits = memory.read(self.of.logits)[row * self.vocabulary..][..self.vocabulary].to_vec();
        let first = if options.window == 0 { 0 } else { next.saturating_sub(options.window as usize) };
        let drafted = if self.mode == Mode::Drafted { &memory.read(self.of.ids)[1..=row] } else { &[] };
        let last_seen = &memory.read(self.of.last_seen)[self.seen_from(memory, row)..];
        for (id, logit) in logits.iter_mut().enumerate().filter(|(_, logit)| logit.is_finite()) {
            let seen = last_seen[id] as usize > first;
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
        finite.then(|| draw::draw(&logits, &self.options(memory, row), self.next(memory, row)))
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
            match self.mode {
                Mode::Last(_) => fragment!("token/draw_last.wgsl"),
                Mode::Drafted => fragment!("token/draw_rows.wgsl"),
                Mode::Batch(_) => fragment!("token/draw_batch.wgsl"),
            },
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
            advance: if let Mode::Last(advance) = self.mode { dim(advance) } else { 0 },
            capacity: dim(self.room - 1),
            slots: if let Mode::Batch(slots) = self.mode { dim(slots) } else { 1 },
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
        let tables = if let Mode::Batch(_) = self.mode { rows } else { 1 };
        let read = 4 * (rows + tables) * vocabulary + 4 * tables * Options::WORDS as u64;
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
        let notes: Vec<(usize, f64)> = self
            .counting()
            .zip(&ids)
            .filter(|(_, id)| (**id as usize) < self.vocabulary)
            .map(|(row, &id)| (self.seen_from(memory, row) + id as usize, self.next(memory, row) as f64 + 1.0))
            .collect();
        let note = |memory: &mut Memory| {
            memory.update(self.of.last_seen, |_, seen| notes.iter().for_each(|&(at, index)| seen[at] = index));
        };
        if let Mode::Last(_) = self.mode {
            let next = self.next(memory, self.rows - 1);
            note(memory);
            memory.update(self.of.ids, |_, all| all[0] = ids[0]);
            memory.update(self.of.out, |_, history| history[next.min(self.room - 1)] = ids[0]);
            memory.update(self.of.position, |_, position| position[0] = next as f64);
            return;
        }
        memory.update(self.of.out, |_, out| out[..ids.len()].copy_from_slice(&ids));
        if let Mode::Batch(_) = self.mode {
            note(memory);
            memory.update(self.of.ids, |_, all| all[..ids.len()].copy_from_slice(&ids));
        }
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
        batch("a batch of 64", [64, V], wide.clone(), &[plain, all, Setting { temperature: 0.0, ..plain }]).bench(),
        batch("sequences of their own options", [5, 1003], wide.clone(), &[
            all,
            Setting { temperature: 0.0, position: 3, ..plain },
            Setting { top_p: 0.6, seed: 11, position: 0, ..plain },
            Setting { temperature: 0.0, penalty: 2.0, window: 9, position: 64, ..plain },
            Setting { top_k: 7, min_p: 0.01, temperature: 2.0, seed: u64::MAX, ..plain },
        ]),
        batch("one sequence", [1, 20], Fill::Uniform(2.0), &[Setting { penalty: 3.0, ..plain }]),
        batch("a batch with NaN in a row", [3, 5], values(15, 1.0, &[(7, f64::NAN)]), &[plain]),
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

impl Setting {
    fn options(&self) -> Options {
        let Self { temperature, top_k, top_p, min_p, penalty, window, seed, .. } = *self;
        Options::new(temperature, top_k, top_p, min_p, penalty, window, seed)
    }
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
    settings: Vec<Setting>,
    kind: Kind,
    bench: bool,
}

/// What the rows of a case are.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Last,
    Drafted,
    Batch,
}

fn last(label: &str, shape: [usize; 2], logits: Fill, setting: Setting) -> Draft {
    Draft { label: label.to_owned(), shape, logits, settings: vec![setting], kind: Kind::Last, bench: false }
}

fn rows(label: &str, shape: [usize; 2], logits: Fill, setting: Setting) -> Draft {
    Draft { kind: Kind::Drafted, ..last(label, shape, logits, setting) }
}

/// Sequences that take turns in these settings, in slots out of order, of which there is one more.
fn batch(label: &str, shape: [usize; 2], logits: Fill, settings: &[Setting]) -> Draft {
    Draft { kind: Kind::Batch, settings: settings.to_vec(), ..last(label, shape, logits, settings[0]) }
}

impl Draft {
    fn bench(self) -> Self {
        Self { bench: true, ..self }
    }

    fn case(self) -> Case {
        let Self { label, shape: [rows, vocabulary], logits, settings, kind, bench } = self;
        let mut case = CaseBuilder::new(label).benched(bench);
        let words = |words: Vec<u32>| Fill::Values(words.into_iter().map(f64::from).collect());
        // Ids of a sequence that comes back to some of them.
        let id = |index: usize| dim(index * 37 % 61 * 13 % vocabulary);
        let seen = |of: &Setting| {
            let history: Vec<u32> = (0..=of.position.min(64) as usize).map(id).collect();
            draw::last_seen(&history, vocabulary)
        };
        let of = settings[0];
        let batch = kind == Kind::Batch;
        let per_row: Vec<Setting> = settings.iter().copied().cycle().take(if batch { rows } else { 1 }).collect();
        let options: Vec<Options> = per_row.iter().map(Setting::options).collect();
        let slot = |row: usize| (row + 2) % (rows + 1);
        let (mut last_seen, mut position) = (seen(&of), vec![of.position]);
        if batch {
            last_seen = vec![0; (rows + 1) * vocabulary];
            position.clear();
            for (row, of) in per_row.iter().enumerate() {
                last_seen[slot(row) * vocabulary..][..vocabulary].copy_from_slice(&seen(of));
                position.extend([of.position, dim(slot(row))]);
            }
        }
        let tokens = if kind == Kind::Last { 3 } else { rows };
        let ids: Vec<u32> = (0..tokens).map(|t| id(of.position as usize + t)).collect();
        let (room, counting) = if kind == Kind::Last { (65, 1) } else { (rows, rows) };
        let shape = |one: usize, many: usize| -> Shape { if batch { [many, one].into() } else { [one].into() } };
        let options_shape = shape(Options::WORDS, rows);
        let (seen_shape, position_shape) = (shape(vocabulary, rows + 1), if batch { shape(2, rows) } else { shape(1, 0) });
        let binds = Binds {
            logits: case.tensor("logits", [rows, vocabulary], DType::F32, logits),
            options: case.tensor("options", options_shape, DType::U32, words(bytemuck::cast_slice(&options).to_vec())),
            last_seen: case.tensor("last_seen", seen_shape, DType::U32, words(last_seen)),
            ids: case.tensor("ids", [tokens], DType::U32, words(ids)),
            position: case.tensor("position", position_shape, DType::U32, words(position)),
            out: case.tensor("out", [room], DType::U32, words(vec![5; room])),
            scratch: case.tensor("scratch", scratch_shape(counting, vocabulary), DType::U32, Fill::Zero),
        };
        let kernel =
            if kind == Kind::Last { Sample::last(&case.tensors, binds, 1) } else { Sample::rows(&case.tensors, binds) };
        let penalties = per_row.iter().any(|of| of.penalty != 1.0);
        if !penalties {
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
