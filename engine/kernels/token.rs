//! A row's position in its sequence, and where the token that it chooses goes: shared by `argmax` and
//! `sample`.

use std::ops::Range;

use super::{Fragment, Memory, Operand, dim, fragment};
use crate::tensor::{DType, TensorId, Tensors};

/// Stands for the id if no token can be chosen.
pub const NONE: u32 = u32::MAX;

/// The tensors that a chosen token is written to.
#[derive(Clone, Copy, Debug)]
pub struct TokenState {
    /// Token ids of the step, `[T]` u32. The choice of the last row becomes the first: the next step embeds it.
    pub ids: TensorId,
    /// Tokens cached before the step, `[1]` u32, or (position, slot) of each row of a batch, `[R, 2]` u32. The choice of
    /// the last row advances it.
    pub position: TensorId,
    /// For the last row, the token at each position, `[S + 1]` u32; for every row, the choices, `[R]` u32.
    pub out: TensorId,
}

/// Which rows of logits choose a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The last row of a step of this many tokens. The device advances the sequence: many steps need no
    /// read-back.
    Last(usize),
    /// Every row of a step of draft tokens: row `r` chooses the successor of token `r`.
    Drafted,
    /// Every row of a batch, one for each sequence.
    Batch,
}

/// The rows that choose, and where their choices go.
#[derive(Clone, Debug)]
pub(super) struct Choosing {
    pub(super) state: TokenState,
    pub(super) mode: Mode,
    rows: usize,
    /// Elements of `state.out`.
    room: usize,
}

impl Choosing {
    /// Returns the choice by the last of `rows` rows of a step of `advance` tokens, or by every row if
    /// `advance` is `None`.
    ///
    /// # Panics
    /// When shapes do not fit.
    pub(super) fn new(tensors: &Tensors, state: TokenState, rows: usize, advance: Option<usize>) -> Self {
        let mode = match (advance, tensors[state.position].shape.dims()) {
            (Some(advance), _) => Mode::Last(advance),
            (None, [_, 2]) => Mode::Batch,
            _ => Mode::Drafted,
        };
        let [tokens, room] = [state.ids, state.out].map(|id| tensors[id].shape.elements());
        tensors.expect(state.ids, [tokens], DType::U32);
        tensors.expect(state.out, [room], DType::U32);
        match mode {
            Mode::Batch => tensors.expect(state.position, [rows, 2], DType::U32),
            _ => tensors.expect(state.position, [1], DType::U32),
        }
        let fits = advance.is_some() || rows <= tokens.min(room);
        assert!(fits, "{rows} rows, {tokens} ids, room for {room}");
        Self { state, mode, rows, room }
    }

    /// Returns the fragment that defines `next_of` and `publish`.
    pub(super) fn fragment() -> Fragment {
        fragment!("lib/token.wgsl")
    }

    /// Returns the override that the fragment takes.
    pub(super) fn mode(&self) -> (&'static str, f64) {
        let mode = match self.mode {
            Mode::Last(_) => 0.0,
            Mode::Drafted => 1.0,
            Mode::Batch => 2.0,
        };
        ("MODE", mode)
    }

    /// Returns the parameters `row`, the first that chooses, `advance` and `capacity`.
    pub(super) fn params(&self) -> [u32; 3] {
        let advance = if let Mode::Last(advance) = self.mode { advance } else { 0 };
        [self.rows().start, advance, self.room - 1].map(dim)
    }

    /// Returns ids, position and out, in this order.
    pub(super) fn operands(&self) -> [Operand; 3] {
        let TokenState { ids, position, out } = self.state;
        [ids, position, out].map(Operand::read_write)
    }

    /// Returns how many words of the state are read and written.
    pub(super) fn words(&self) -> [u64; 2] {
        match self.mode {
            Mode::Last(_) => [1, 3],
            Mode::Drafted | Mode::Batch => [0, self.rows as u64],
        }
    }

    /// Returns the rows that choose.
    pub(super) fn rows(&self) -> Range<usize> {
        if let Mode::Last(_) = self.mode { self.rows - 1..self.rows } else { 0..self.rows }
    }

    /// Returns the index that the token chosen by a row has in its sequence.
    pub(super) fn next(&self, memory: &Memory, row: usize) -> usize {
        let position = memory.read(self.state.position);
        match self.mode {
            Mode::Last(advance) => position[0] as usize + advance,
            Mode::Drafted => position[0] as usize + row + 1,
            Mode::Batch => position[2 * row] as usize + 1,
        }
    }

    /// Writes the tokens, one for each row that chooses, to the state.
    pub(super) fn publish(&self, memory: &mut Memory, tokens: &[u32]) {
        let TokenState { ids, position, out } = self.state;
        let Mode::Last(_) = self.mode else {
            memory.update(out, |_, out| out.iter_mut().zip(tokens).for_each(|(out, &id)| *out = id.into()));
            return;
        };
        let (next, token) = (self.next(memory, self.rows - 1), f64::from(tokens[0]));
        memory.update(ids, |_, ids| ids[0] = token);
        memory.update(out, |_, history| history[next.min(self.room - 1)] = token);
        memory.update(position, |_, position| position[0] = next as f64);
    }
}
