//! `id = draw(logits[r, :])`: repeat penalty, temperature, top-k, top-p, min-p and the draw, on the device.
//!
//! Fuses what would be half a dozen steps and a sort; [`draw`] defines it, and `sampler` does the same on the
//! CPU. The same dispatch writes the id to [`TokenState`], so that many tokens are submitted without a
//! read-back, and records it as seen. A row of draft tokens does not record its id, which may still be
//! rejected; it counts the draft tokens up to its own as seen. Each row of a batch has its own options.

mod cases;

use bytemuck::{Pod, Zeroable};

pub use self::cases::cases;
use super::draw::{self, Drawn, Options};
use super::token::{Choosing, Mode, NONE, TokenState};
use super::{Choice, Cost, Dispatch, Fragment, Kernel, Memory, Operand, Tier, Tunable, bits_fragment, dim, fragment};
use crate::tensor::{DType, Shape, TensorId, Tensors};

/// Largest vocabulary: sums of this many 16-bit halves fit a word.
pub const MAX_VOCABULARY: usize = 1 << 16;

/// A token drawn by the logits of a row.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The tensors that it binds.
    pub of: Binds,
    choosing: Choosing,
    vocabulary: usize,
    slots: usize,
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
    /// Where the token is written; slots are clamped.
    pub state: TokenState,
    /// Integers that order like the logits, `[rows that choose, V rounded up to a multiple of 4]` u32.
    pub scratch: TensorId,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    row: u32,
    advance: u32,
    capacity: u32,
    vocabulary: u32,
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
        Self::new(tensors, of, Some(advance))
    }

    /// Returns the draws by every row of the logits: row `r` for the position after token `r` of the step, or, if
    /// `position` is `[R, 2]`, after the token of its own sequence.
    ///
    /// # Panics
    /// When shapes do not fit, or the vocabulary is too large.
    pub fn rows(tensors: &Tensors, of: Binds) -> Self {
        Self::new(tensors, of, None)
    }

    fn new(tensors: &Tensors, of: Binds, advance: Option<usize>) -> Self {
        let &[rows, vocabulary] = tensors[of.logits].shape.dims() else { panic!("sample takes [R, V]") };
        assert!(vocabulary <= MAX_VOCABULARY, "sample takes at most {MAX_VOCABULARY} logits: V {vocabulary}");
        tensors.expect(of.logits, [rows, vocabulary], DType::F32);
        let choosing = Choosing::new(tensors, of.state, rows, advance);
        let slots = tensors[of.last_seen].shape.elements() / vocabulary;
        let (options, last_seen): (Shape, Shape) = match choosing.mode {
            Mode::Batch => ([rows, Options::WORDS].into(), [slots, vocabulary].into()),
            Mode::Last(_) | Mode::Drafted => ([Options::WORDS].into(), [vocabulary].into()),
        };
        tensors.expect(of.options, options, DType::U32);
        tensors.expect(of.last_seen, last_seen, DType::U32);
        tensors.expect(of.scratch, scratch_shape(choosing.rows().len(), vocabulary), DType::U32);
        dim(slots * vocabulary);
        dim(rows * vocabulary.next_multiple_of(4));
        Self { of, choosing, vocabulary, slots }
    }

    /// Returns where the sequence of a row begins in `last_seen`.
    fn seen_from(&self, memory: &Memory, row: usize) -> usize {
        let Mode::Batch = self.choosing.mode else { return 0 };
        (memory.read(self.of.state.position)[2 * row + 1] as usize).min(self.slots - 1) * self.vocabulary
    }

    fn options(&self, memory: &Memory, row: usize) -> Options {
        let table = if self.choosing.mode == Mode::Batch { row } else { 0 };
        let words = &memory.read(self.of.options)[table * Options::WORDS..][..Options::WORDS];
        let words: Vec<u32> = words.iter().map(|&word| word as u32).collect();
        bytemuck::pod_read_unaligned(bytemuck::cast_slice(&words))
    }

    /// Returns the logits of a row with the penalty on every id that occurred within the window.
    fn penalized(&self, memory: &Memory, row: usize) -> Vec<f64> {
        let (options, next) = (self.options(memory, row), self.choosing.next(memory, row));
        let mut logits = memory.read(self.of.logits)[row * self.vocabulary..][..self.vocabulary].to_vec();
        let first = if options.window == 0 { 0 } else { next.saturating_sub(options.window as usize) };
        let drafted = match self.choosing.mode {
            Mode::Drafted => &memory.read(self.of.state.ids)[1..=row],
            Mode::Last(_) | Mode::Batch => &[],
        };
        let last_seen = &memory.read(self.of.last_seen)[self.seen_from(memory, row)..];
        for (id, logit) in logits.iter_mut().enumerate().filter(|(_, logit)| logit.is_finite()) {
            let seen = last_seen[id] as usize > first;
            let repeated = drafted.iter().rev().take(next - first).any(|&draft| draft == id as f64);
            if (seen || repeated) && options.penalty != 1.0 {
                *logit = draw::penalized(*logit, options.penalty.into());
            }
        }
        logits
    }

    /// Draws by a row; `None` if a logit is not finite.
    fn drawn(&self, memory: &Memory, row: usize) -> Option<Drawn> {
        let logits = self.penalized(memory, row);
        let finite = logits.iter().all(|logit| logit.is_finite());
        finite.then(|| draw::draw(&logits, &self.options(memory, row), self.choosing.next(memory, row)))
    }
}

/// Returns the shape of the scratch tensor for `rows` rows that choose.
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
            Choosing::fragment(),
            fragment!("lib/penalty.wgsl"),
            fragment!("lib/cut.wgsl"),
            fragment!("lib/keys.wgsl"),
            fragment!("lib/wide.wgsl"),
            fragment!("lib/threefry.wgsl"),
            bits_fragment(self.vocabulary),
        ]
    }

    fn operands(&self) -> Vec<Operand> {
        let Binds { logits, options, last_seen, scratch, .. } = self.of;
        let mut operands = vec![Operand::read(logits), Operand::read(options), Operand::read_write(last_seen)];
        operands.extend(self.choosing.operands());
        operands.push(Operand::write(scratch));
        operands
    }

    fn shape(&self) -> String {
        format!("R {}, V {}", self.choosing.rows().len(), self.vocabulary)
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![Tunable::workgroup(256)]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let [row, advance, capacity] = self.choosing.params();
        let [vocabulary, slots] = [self.vocabulary, self.slots].map(dim);
        let params = Params { row, advance, capacity, vocabulary, slots };
        Dispatch {
            overrides: vec![self.choosing.mode(), ("WG", f64::from(choice.of(&self.tunables()[0])))],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim(self.choosing.rows().len()), 1, 1],
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        // Logits and `last_seen` are read once, and keys are written; a weight takes two operations.
        let (rows, vocabulary) = (self.choosing.rows().len() as u64, self.vocabulary as u64);
        let tables = if self.choosing.mode == Mode::Batch { rows } else { 1 };
        let read = 4 * (rows + tables) * vocabulary + 4 * tables * Options::WORDS as u64;
        Cost { read, written: 4 * rows * (vocabulary + 1), flops: 2 * rows * vocabulary }
    }

    fn reference(&self, memory: &mut Memory) {
        let drawn = |row: usize| self.drawn(memory, row).map_or(NONE, |drawn| dim(drawn.id));
        let ids: Vec<u32> = self.choosing.rows().map(drawn).collect();
        memory.update(self.of.scratch, |memory, scratch| {
            let width = self.vocabulary.next_multiple_of(4);
            for (row, keys) in self.choosing.rows().zip(scratch.chunks_mut(width)) {
                keys.fill(0.0);
                let logits = self.penalized(memory, row);
                keys.iter_mut().zip(logits).for_each(|(key, logit)| *key = f64::from(order(logit as f32)));
            }
        });
        if self.choosing.mode != Mode::Drafted {
            memory.update(self.of.last_seen, |memory, seen| {
                for (row, &id) in self.choosing.rows().zip(&ids).filter(|(_, id)| **id != NONE) {
                    let next = self.choosing.next(memory, row);
                    seen[self.seen_from(memory, row) + id as usize] = next as f64 + 1.0;
                }
            });
        }
        self.choosing.publish(memory, &ids);
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

#[cfg(test)]
mod tests {
    use std::any::Any;

    use super::*;

    #[test]
    fn every_case_draws_clear_of_its_boundaries() {
        for case in cases() {
            let kernel = (&*case.kernel as &dyn Any).downcast_ref::<Sample>().unwrap();
            let memory = case.memory();
            for drawn in kernel.choosing.rows().filter_map(|row| kernel.drawn(&memory, row)) {
                assert!(drawn.margin > 1e-6, "{}: {drawn:?}", case.label);
            }
        }
    }

    #[test]
    fn what_was_seen_last_differs_from_what_never_was() {
        assert_eq!(draw::last_seen(&[2, 0, 2, 9, u32::MAX], 4), [2, 0, 3, 0]);
        assert_eq!(draw::last_seen(&[], 2), [0, 0]);
    }
}
