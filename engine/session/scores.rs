//! What a model says of tokens: log-probabilities that are computed on the device and read back.

use crate::error::Result;
use crate::gpu::{BufferRange, Gpu};
use crate::kernels::log_likelihood::{BROKEN, NONE, TOP};
use crate::model::openelm::Step;
use crate::session::step::{Bound, words};

/// Most of the likeliest tokens that a [`TokenScore`] tells.
pub const MAX_TOP: usize = TOP;

/// What a model says of a token where it stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenScore {
    /// The token.
    pub token: u32,
    /// Natural logarithm of the token's probability after the tokens before it.
    pub logprob: f32,
    likeliest: [(u32, f32); TOP],
    wanted: usize,
}

impl TokenScore {
    /// Returns as many of the likeliest tokens as were asked for, with their log-probabilities, the likeliest first and
    /// equal ones by the lower id.
    pub fn top(&self) -> &[(u32, f32)] {
        &self.likeliest[..self.wanted]
    }

    /// Returns the same with so many of the likeliest tokens, or as many as there are.
    pub(super) fn with_top(self, wanted: usize) -> Self {
        // A small vocabulary has fewer.
        let known = self.likeliest.iter().filter(|(id, _)| *id != NONE).count();
        Self { wanted: wanted.min(known), ..self }
    }

    /// Tells whether no token was likelier: greedy decoding would choose it.
    pub fn is_greedy(&self) -> bool {
        self.likeliest[0].0 == self.token
    }
}

/// The buffers of scores on a device.
#[derive(Debug)]
pub(super) struct Scores {
    targets: BufferRange,
    values: BufferRange,
    likeliest: BufferRange,
}

impl Scores {
    /// Bytes that are read back for a row.
    pub(super) const ROW_BYTES: u64 = 4 * (1 + 2 * TOP as u64);

    /// Allocates room for so many rows.
    pub(super) fn new(gpu: &Gpu, rows: usize) -> Result<Self> {
        let rows = rows as u64;
        Ok(Self {
            targets: gpu.storage("targets", rows * 4)?,
            values: gpu.storage("scores", rows * 4 * (1 + TOP as u64))?,
            likeliest: gpu.storage("likeliest", rows * 4 * TOP as u64)?,
        })
    }

    /// Binds what a step of so many rows of logits scores.
    pub(super) fn bind(&self, bound: &mut Bound, step: &Step, rows: usize) {
        let [values, likeliest] = self.ranges(rows);
        bound.set(step.targets, vec![self.targets.slice(0, rows as u64 * 4)]);
        bound.set(step.scores, vec![values]);
        bound.set(step.likeliest, vec![likeliest]);
    }

    /// Says which tokens are scored.
    pub(super) fn aim(&self, gpu: &Gpu, targets: &[u32]) {
        gpu.write(&self.targets, 0, bytemuck::cast_slice(targets));
    }

    /// Returns what is to be read back of so many rows, in this order.
    pub(super) fn ranges(&self, rows: usize) -> [BufferRange; 2] {
        let rows = rows as u64 * 4;
        [self.values.slice(0, rows * (1 + TOP as u64)), self.likeliest.slice(0, rows * TOP as u64)]
    }

    /// Returns what was read back of `rows` rows for the one in which `token` was scored; `None` if a logit is no
    /// number.
    pub(super) fn of_row(
        bytes: &[u8],
        rows: usize,
        row: usize,
        token: u32,
        wanted: usize,
    ) -> Option<TokenScore> {
        let (values, ids) = bytes.split_at(rows * 4 * (1 + TOP));
        let mut values = words(&values[row * 4 * (1 + TOP)..]).map(f32::from_bits);
        let logprob = values.next().filter(|&value| value != BROKEN)?;
        let mut likeliest = [(NONE, BROKEN); TOP];
        likeliest.iter_mut().zip(words(&ids[row * 4 * TOP..]).zip(values)).for_each(|(to, of)| *to = of);
        Some(TokenScore { token, logprob, likeliest, wanted: 0 }.with_top(wanted))
    }
}
