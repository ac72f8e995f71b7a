//! What a step looks like, and the choices that follow from it: which products and which attention go row by row and
//! which in tiles, and how many workgroups share the keys of a head.

use crate::kernels::product::Path;
use crate::kernels::{FEW_TOKENS, MOST_TOKENS, SPLIT_KEYS};
use crate::tensor::DType;

/// Workgroups that share the keys of a head on a GPU: by the arithmetic of `attention_decode.wgsl`, not yet measured.
const SPLITS: usize = 4;

/// Which rows of a step the head turns into logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Logits {
    /// None: a chunk of a prompt that is not its last.
    None,
    /// The last row.
    Last,
    /// The last rows, this many.
    Rows(usize),
    /// Every row.
    All,
}

impl Logits {
    /// Returns how many rows of a step of `tokens` tokens get logits.
    pub(crate) fn rows(self, tokens: usize) -> usize {
        match self {
            Self::None => 0,
            Self::Last => 1,
            Self::Rows(rows) => rows,
            Self::All => tokens,
        }
    }
}

/// How a step chooses tokens from its logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sampling {
    /// The token with the largest logit.
    Greedy,
    /// A token drawn by the options of its sequence.
    Random,
}

/// What a step looks like. Steps of the same shape have the same graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StepShape {
    /// Tokens of the step, `T`: of one sequence, or one of each sequence of a batch.
    pub tokens: usize,
    /// Capacity of the KV cache in tokens, `S`.
    pub context: usize,
    /// Element type of the KV cache: f16, f32 or rows of q8_0.
    pub kv: DType,
    /// Which rows get logits.
    pub logits: Logits,
    /// How tokens are chosen. With [`Logits::Last`] the token goes to `ids[0]` and to the history, and the position
    /// advances; otherwise every row with logits puts its token into `drawn`. A step without logits chooses none.
    pub sampling: Option<Sampling>,
    /// Whether every row with logits is scored: the token that it chooses, or without a choice its target.
    pub scored: bool,
    /// Slots of the KV cache for a batch; `None` for one sequence.
    pub batch: Option<usize>,
    /// Whether the rows of a batch may follow each other in one sequence, in any order within the step. Products are
    /// then computed in tiles, however few rows there are.
    pub packed: bool,
    /// Workgroups that share the keys of a row and head where a step attends row by row; more than one take
    /// another dispatch for each layer.
    pub splits: usize,
    /// Most tokens of one sequence whose products are computed row by row; see [`Paths::few`].
    pub few: usize,
}

impl StepShape {
    /// Returns the step of `tokens` tokens of one sequence that chooses the likeliest token after them.
    pub fn greedy(tokens: usize, context: usize, kv: DType) -> Self {
        Self {
            tokens,
            context,
            kv,
            logits: Logits::Last,
            sampling: Some(Sampling::Greedy),
            scored: false,
            batch: None,
            packed: false,
            splits: 1,
            few: FEW_TOKENS,
        }
    }

    /// Returns how the products of `rows` rows are computed.
    pub(crate) fn product(&self, rows: usize) -> Path {
        let by_rows = !self.packed && (rows <= self.few || self.batch.is_some());
        if by_rows { Path::Rows } else { Path::Tiles }
    }

    /// Returns whether attention is computed in tiles. Otherwise it goes row by row.
    pub(crate) fn attends_in_tiles(&self) -> bool {
        self.tokens > FEW_TOKENS && self.batch.is_none()
    }

    /// Returns whether the last layer drops all rows but the last after attention. A step of few tokens does not: it
    /// reads the weights once in any case, and its rows keep the bits that they have in steps of one token.
    pub(crate) fn drops_rows(&self) -> bool {
        self.logits == Logits::Last && self.attends_in_tiles()
    }
}

/// The two numbers by which an adapter's steps choose their kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Most tokens of one sequence whose products are computed row by row and not in tiles, at most [`MOST_TOKENS`]; a
    /// batch has tiles only where it is packed. Below [`FEW_TOKENS`] the rows of a verification no longer have the bits
    /// of plain decoding.
    pub few: usize,
    /// Workgroups that share the keys of a row and head from [`SPLIT_KEYS`] keys on.
    pub splits: usize,
}

impl Paths {
    /// Returns the numbers for an adapter that was not tuned: whether it is `software`, and whether it runs kernels on
    /// `vectors` of a CPU.
    ///
    /// On llvmpipe 32 tokens of the 270M in `q4_0` take 0.55 s by rows and 2.3 s in tiles, 64 take 1.0 and 3.9. On an
    /// H200 both take as long for 16 tokens, and tiles half as long for 64.
    pub fn untuned(software: bool, vectors: bool) -> Self {
        let few = if vectors { MOST_TOKENS } else { FEW_TOKENS };
        Self { few, splits: if software { 1 } else { SPLITS } }
    }

    /// Returns how many workgroups share the keys of a head where a row sees at most `keys` keys.
    pub fn splits(&self, keys: usize) -> usize {
        if keys < SPLIT_KEYS { 1 } else { self.splits }
    }

    /// Returns numbers of keys that sequences of at most `context` tokens see, one for each number of workgroups.
    pub(crate) fn key_counts(&self, context: usize) -> Vec<usize> {
        let mut keys = vec![1, context];
        keys.dedup_by_key(|keys| self.splits(*keys));
        keys
    }

    /// Returns a shape with these numbers, for a step whose rows see at most `keys` keys. Attention in tiles does not
    /// split keys.
    pub(crate) fn apply(&self, shape: StepShape, keys: usize) -> StepShape {
        let splits = if shape.attends_in_tiles() { 1 } else { self.splits(keys) };
        StepShape { few: self.few, splits, ..shape }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_tiles_follow_from_the_shape_alone() {
        let one = |tokens| StepShape::greedy(tokens, 2048, DType::F16);
        let batch = |tokens| StepShape { batch: Some(65), logits: Logits::All, ..one(tokens) };
        let packed = StepShape { packed: true, ..batch(16) };
        let product = |shape: StepShape| shape.product(shape.tokens);
        assert_eq!([1, FEW_TOKENS].map(|tokens| product(one(tokens))), [Path::Rows; 2]);
        assert_eq!(product(one(FEW_TOKENS + 1)), Path::Tiles);
        assert_eq!(product(StepShape { few: 64, ..one(64) }), Path::Rows);
        assert_eq!([product(batch(64)), product(packed)], [Path::Rows, Path::Tiles]);
        let tiles = [one(FEW_TOKENS), one(FEW_TOKENS + 1), batch(64), packed].map(|s| s.attends_in_tiles());
        assert_eq!(tiles, [false, true, false, false]);
        assert!(one(FEW_TOKENS + 1).drops_rows() && !one(FEW_TOKENS).drops_rows() && !batch(64).drops_rows());
    }

    #[test]
    fn keys_are_split_from_a_number_on_and_never_in_tiles() {
        let paths = Paths { few: FEW_TOKENS, splits: 4 };
        let splits = |tokens, keys| paths.apply(StepShape::greedy(tokens, 2048, DType::F16), keys).splits;
        assert_eq!([splits(1, SPLIT_KEYS - 1), splits(1, SPLIT_KEYS), splits(8, SPLIT_KEYS)], [1, 4, 4]);
        assert_eq!(splits(FEW_TOKENS + 1, SPLIT_KEYS), 1);
        assert_eq!(paths.key_counts(SPLIT_KEYS - 1), [1]);
        assert_eq!(paths.key_counts(SPLIT_KEYS), [1, SPLIT_KEYS]);
        assert_eq!(Paths { splits: 1, ..paths }.key_counts(2048), [1]);
    }
}
