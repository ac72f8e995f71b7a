//! How a token is drawn from logits: the options as the device reads them, and the definition in f64.
//!
//! The order is that of Hugging Face's `generate`: repeat penalty, temperature, top-k, top-p, min-p, each
//! applied to what the one before left. Equal logits rank by the lower id. The token is drawn from the rest
//! by weight, in the order of the ids. The random number depends on the seed and the token's position only.

use bytemuck::{Pod, Zeroable};

use super::threefry::random;

/// Limit of a penalised logit, so that none becomes infinite in f32.
const MOST: f64 = 3.4e38f32 as f64;

/// Options of a generation as `sample.wgsl` reads them: 16 words.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Options {
    /// 2 / temperature; 0 takes the likeliest.
    inverse: f32,
    /// 64 * temperature / 2: half the distance to the maximum beyond which weights are 0.
    limit: f32,
    /// 0 keeps all.
    top_k: u32,
    /// Times 2^32; 0 keeps all.
    top_p: u32,
    /// -ln(min_p), at most 64.
    reach: f32,
    /// 1 changes nothing.
    pub(super) penalty: f32,
    /// 0 is all tokens.
    pub(super) window: u32,
    seed: [u32; 2],
    rest: [u32; 7],
}

const _: () = assert!(size_of::<Options>() == 4 * Options::WORDS);

impl Options {
    /// Words of the tensor that holds the options.
    pub const WORDS: usize = 16;

    /// Packs options that [`crate::sampler::Sampler::new`] accepts.
    pub fn new(
        temperature: f32,
        top_k: usize,
        top_p: f32,
        min_p: f32,
        penalty: f32,
        window: usize,
        seed: u64,
    ) -> Self {
        let (half, word) =
            (divisor(temperature) / 2.0, |size: usize| u32::try_from(size).unwrap_or(u32::MAX));
        Self {
            inverse: if temperature == 0.0 { 0.0 } else { 1.0 / half },
            limit: 64.0 * half,
            top_k: word(top_k),
            top_p: if top_p < 1.0 { ((f64::from(top_p) * 2f64.powi(32)) as u32).max(1) } else { 0 },
            reach: (-f64::from(min_p).ln()).clamp(0.0, 64.0) as f32,
            penalty: divisor(penalty),
            window: word(window),
            seed: [seed as u32, (seed >> 32) as u32],
            rest: [0; 7],
        }
    }
}

/// Limits a temperature or a penalty to 2^-120 to 2^120, well within what every device can divide by.
pub(crate) fn divisor(value: f32) -> f32 {
    value.clamp(2f32.powi(-120), 2f32.powi(120))
}

/// Returns a logit with the repeat penalty.
pub(crate) fn penalized(value: f64, penalty: f64) -> f64 {
    if value > 0.0 {
        if penalty < 1.0 { (value / penalty).min(MOST) } else { value / penalty }
    } else if penalty > 1.0 {
        (value * penalty).max(-MOST)
    } else {
        value * penalty
    }
}

/// Returns, for every id of a vocabulary, 1 + its last index in a sequence; 0 if it does not occur.
pub fn last_seen(history: &[u32], vocabulary: usize) -> Vec<u32> {
    let mut seen = vec![0; vocabulary];
    for (index, &id) in (1u32..).zip(history) {
        if let Some(last) = seen.get_mut(id as usize) {
            *last = index;
        }
    }
    seen
}

/// A drawn token.
#[derive(Clone, Copy, Debug)]
pub struct Drawn {
    /// The token.
    pub id: usize,
    /// How far the draw is from another outcome, as a share of the probability or of a logit. The error of a
    /// computation in f32 has to be smaller.
    pub margin: f64,
}

/// The least gap between a draw and another outcome.
struct Margin(f64);

impl Margin {
    /// Records a gap. One of zero does not count: it is exact, on the device too.
    fn beside(&mut self, gap: f64) {
        self.0 = if gap == 0.0 { self.0 } else { self.0.min(gap.abs()) };
    }
}

/// Draws the token at `position` by logits that are already penalised.
///
/// # Panics
/// When there is no logit, or one is NaN.
pub fn draw(logits: &[f64], options: &Options, position: usize) -> Drawn {
    let mut margin = Margin(f64::INFINITY);
    let mut ranked: Vec<usize> = (0..logits.len()).collect();
    ranked.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).expect("finite").then(a.cmp(&b)));
    let keep = match options.top_k as usize {
        _ if options.inverse == 0.0 => 1,
        0 => ranked.len(),
        k => k.min(ranked.len()),
    };
    // Rounding may reorder penalised logits; the others are exact.
    if let Some(&next) = ranked.get(keep).filter(|_| options.penalty != 1.0) {
        let last = logits[ranked[keep - 1]];
        margin.beside((last - logits[next]) / last.abs());
    }
    ranked.truncate(keep);
    if options.inverse == 0.0 {
        return Drawn { id: ranked[0], margin: margin.0 };
    }
    let best = logits[ranked[0]];
    let distance = |id: usize| (best - logits[id]) * f64::from(options.inverse) / 2.0;
    let weight = |&id: &usize| (-distance(id)).exp();
    if options.top_p > 0 {
        let total: f64 = ranked.iter().map(weight).sum();
        let (goal, mut sum) = (share(options.top_p) * total, 0.0);
        let reaches = |id: &usize| {
            // The likeliest is always kept.
            margin.beside(if sum == 0.0 { 0.0 } else { (sum - goal) / total });
            sum += weight(id);
            sum >= goal
        };
        let last = ranked.iter().position(reaches).expect("a share of the weight is reached");
        margin.beside((sum - goal) / total);
        ranked.truncate(last + 1);
    }
    let reach = f64::from(options.reach);
    ranked.iter().for_each(|&id| margin.beside(distance(id) - reach));
    ranked.retain(|&id| distance(id) <= reach);
    ranked.sort_unstable();
    let total: f64 = ranked.iter().map(weight).sum();
    let seed = u64::from(options.seed[1]) << 32 | u64::from(options.seed[0]);
    let (goal, mut sum) = (share(random(seed, position)) * total, 0.0);
    let passes = |id: &&usize| {
        sum += weight(id);
        margin.beside((sum - goal) / total);
        sum > goal
    };
    let id = *ranked.iter().find(passes).expect("a share of the weight is passed");
    Drawn { id, margin: margin.0 }
}

/// Returns `word` / 2^32.
fn share(word: u32) -> f64 {
    f64::from(word) / 2f64.powi(32)
}
