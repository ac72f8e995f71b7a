//! Log-probabilities of tokens, computed on the device and read back.

use crate::error::Result;
use crate::gpu::{BufferRange, Gpu};
use crate::kernels::log_likelihood::{BROKEN, NONE, TOP};
use crate::session::ring::words;

/// Largest number of likeliest tokens in a [`TokenScore`].
pub const MAX_TOP: usize = TOP;

/// The log-probability of a token at its position, and the likeliest tokens there.
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
    /// Returns the requested number of likeliest tokens with their log-probabilities, likeliest first, ties by lower
    /// id.
    pub fn top(&self) -> &[(u32, f32)] {
        &self.likeliest[..self.wanted]
    }

    /// Returns the same score with this many of the likeliest tokens, or as many as there are.
    pub(super) fn with_top(self, wanted: usize) -> Self {
        // A small vocabulary has fewer.
        let known = self.likeliest.iter().filter(|(id, _)| *id != NONE).count();
        Self { wanted: wanted.min(known), ..self }
    }

    /// Returns whether no token was likelier: greedy decoding would choose this one.
    pub fn is_greedy(&self) -> bool {
        self.likeliest[0].0 == self.token
    }
}

/// The buffers of scores on a device, and how their bytes are read.
#[derive(Debug)]
pub(super) struct ScoreBuffers {
    /// The token of each row to score if none is chosen, `[R]`.
    pub(super) targets: BufferRange,
    /// Log-probabilities of each row, `[R, 1 + TOP]`.
    pub(super) values: BufferRange,
    /// The likeliest tokens of each row, `[R, TOP]`.
    pub(super) likeliest: BufferRange,
}

impl ScoreBuffers {
    /// Bytes read back for a row.
    pub(super) const ROW_BYTES: u64 = 4 * (1 + 2 * TOP as u64);

    /// Allocates room for `rows` rows.
    pub(super) fn new(gpu: &Gpu, rows: usize) -> Result<Self> {
        let rows = rows as u64;
        Ok(Self {
            targets: gpu.storage("targets", rows * 4)?,
            values: gpu.storage("scores", rows * 4 * (1 + TOP as u64))?,
            likeliest: gpu.storage("likeliest", rows * 4 * TOP as u64)?,
        })
    }

    /// Sets which tokens are scored.
    pub(super) fn aim(&self, gpu: &Gpu, targets: &[u32]) {
        gpu.write(&self.targets, 0, bytemuck::cast_slice(targets));
    }

    /// Returns what to read back for `rows` rows, in this order.
    pub(super) fn ranges(&self, rows: usize) -> [BufferRange; 2] {
        let rows = rows as u64 * 4;
        [self.values.slice(0, rows * (1 + TOP as u64)), self.likeliest.slice(0, rows * TOP as u64)]
    }

    /// Returns the score of `token` in row `row` of the bytes read back for `rows` rows; `None` if a logit is not
    /// finite.
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
