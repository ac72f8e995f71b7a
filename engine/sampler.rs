//! Choosing the next token from logits, on the CPU.
//!
//! The order is that of Hugging Face's `generate`: repeat penalty, temperature, top-k, top-p, min-p, each
//! applied to what the one before left. (llama.cpp has the same filters but applies the temperature last, so
//! its top-p and min-p keep other tokens when the temperature is not 1.) Equal logits rank by the lower id.
//! The token is drawn from the rest in the order of the ids. The random number depends on the seed and the
//! token's position only. The kernel `sample` chooses the same token, except for rounding at a boundary.

use std::cmp::Ordering;

use crate::error::{Error, Result};
use crate::kernels::draw::{Options, divisor, penalized};
use crate::kernels::random;

/// How tokens are chosen; the default is greedy.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerOptions {
    /// Divides the logits, limited to 2^-120 to 2^120; 0 takes the likeliest token.
    pub temperature: f32,
    /// Keeps this many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the likeliest tokens until their probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this share as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that occurred, limited as the temperature is;
    /// 1 changes nothing.
    pub repeat_penalty: f32,
    /// How many of the last tokens the penalty covers; 0 covers all.
    pub repeat_window: usize,
    /// Selects the sequence of random numbers.
    pub seed: u64,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            repeat_window: 0,
            seed: 0,
        }
    }
}

impl SamplerOptions {
    /// Returns the options as the kernel `sample` reads them.
    pub fn packed(&self) -> Options {
        let Self { temperature, top_k, top_p, min_p, repeat_penalty, repeat_window, seed } = *self;
        Options::new(temperature, top_k, top_p, min_p, repeat_penalty, repeat_window, seed)
    }
}

/// Chooses tokens.
///
/// # Examples
/// ```
/// # fn main() -> samara::Result<()> {
/// use samara::{Sampler, SamplerOptions};
///
/// let options = SamplerOptions { temperature: 0.8, top_p: 0.95, seed: 1, ..SamplerOptions::default() };
/// let sampler = Sampler::new(options)?;
/// assert!(!sampler.is_greedy() && Sampler::greedy().is_greedy());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplerOptions,
    candidates: Vec<Candidate>,
}

/// A token that may be chosen, with its logit and later its share of the probability.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    value: f64,
}

impl Sampler {
    /// Returns a sampler with these options.
    ///
    /// # Errors
    /// [`Error::Input`] when one is out of range, named as the command line names it.
    pub fn new(options: SamplerOptions) -> Result<Self> {
        let SamplerOptions { temperature, top_p, min_p, repeat_penalty, .. } = options;
        let check = |flag: &str, value: f32, valid: bool, range: &str| {
            let refusal = || Error::Input(format!("{flag} {value}: expected a number {range}"));
            valid.then_some(()).ok_or_else(refusal)
        };
        check("--temp", temperature, temperature >= 0.0 && temperature.is_finite(), "that is 0 or more")?;
        check("--top-p", top_p, top_p > 0.0 && top_p <= 1.0, "above 0 and up to 1")?;
        check("--min-p", min_p, (0.0..=1.0).contains(&min_p), "from 0 to 1")?;
        let valid_penalty = repeat_penalty > 0.0 && repeat_penalty.is_finite();
        check("--repeat-penalty", repeat_penalty, valid_penalty, "above 0")?;
        Ok(Self { options, candidates: Vec::new() })
    }

    /// Returns a sampler that takes the likeliest token.
    pub fn greedy() -> Self {
        Self { options: SamplerOptions::default(), candidates: Vec::new() }
    }

    /// Returns the options.
    pub fn options(&self) -> &SamplerOptions {
        &self.options
    }

    /// Returns whether the choice is always the largest logit.
    pub fn is_greedy(&self) -> bool {
        self.options.temperature == 0.0 && self.options.repeat_penalty == 1.0
    }

    /// Returns the next token for `logits` (`[V]`) after the tokens of `history`: its random number is that of
    /// position `history.len()`.
    ///
    /// Ids of the history that have no logit are ignored.
    ///
    /// # Errors
    /// [`Error::Gpu`] when a logit is not finite, [`Error::Input`] when there is none.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Result<u32> {
        if logits.is_empty() {
            return Err(Error::Input("there are no logits to choose a token from".to_owned()));
        }
        if let Some(id) = logits.iter().position(|logit| !logit.is_finite()) {
            return Err(Error::Gpu(format!(
                "the logit of token {id} is {}: expected a finite number",
                logits[id]
            )));
        }
        self.candidates.clear();
        self.candidates
            .extend((0u32..).zip(logits).map(|(id, &value)| Candidate { id, value: value.into() }));
        self.penalize(history);
        if self.options.temperature == 0.0 {
            // `min_by` returns the first of equals: the lowest id.
            return Ok(self.candidates.iter().min_by(|a, b| likelier(a, b)).map_or(0, |best| best.id));
        }
        self.keep_top_k();
        self.weigh();
        self.keep_top_p();
        self.keep_min_p();
        Ok(self.draw(history.len()))
    }

    /// Applies the repeat penalty, once to each token that occurred.
    fn penalize(&mut self, history: &[u32]) {
        let penalty = f64::from(divisor(self.options.repeat_penalty));
        if penalty == 1.0 {
            return;
        }
        let first = match self.options.repeat_window {
            0 => 0,
            window => history.len().saturating_sub(window),
        };
        let mut seen = history[first..].to_vec();
        seen.sort_unstable();
        seen.dedup();
        for id in seen {
            if let Some(Candidate { value, .. }) = self.candidates.get_mut(id as usize) {
                *value = penalized(*value, penalty);
            }
        }
    }

    fn keep_top_k(&mut self) {
        let k = self.options.top_k;
        if k > 0 && k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(k - 1, likelier);
            self.candidates.truncate(k);
        }
    }

    /// Turns logits into weights `exp((logit - max) / temperature)`: 1 for the likeliest.
    fn weigh(&mut self) {
        let max = self.candidates.iter().fold(f64::NEG_INFINITY, |max, c| max.max(c.value));
        let temperature = f64::from(divisor(self.options.temperature));
        for Candidate { value, .. } in &mut self.candidates {
            *value = ((*value - max) / temperature).exp();
        }
    }

    /// Keeps the fewest likeliest candidates whose weights sum to `top_p` of the total.
    fn keep_top_p(&mut self) {
        if self.options.top_p >= 1.0 {
            return;
        }
        let goal = f64::from(self.options.top_p) * self.total();
        let n = self.candidates.len();
        // The set is usually small, so sort only a head of the list and lengthen it while it falls short.
        let mut head = n.min(256);
        loop {
            if head < n {
                self.candidates.select_nth_unstable_by(head, likelier);
            }
            self.candidates[..head].sort_unstable_by(likelier);
            let mut sum = 0.0;
            let reached = self.candidates[..head].iter().position(|c| {
                sum += c.value;
                sum >= goal
            });
            match reached {
                Some(last) => return self.candidates.truncate(last + 1),
                None if head == n => return,
                None => head = n.min(head * 8),
            }
        }
    }

    fn keep_min_p(&mut self) {
        let least = f64::from(self.options.min_p);
        self.candidates.retain(|candidate| candidate.value >= least);
    }

    /// Draws one of the candidates by weight, in the order of their ids.
    fn draw(&mut self, position: usize) -> u32 {
        // A selection leaves the candidates in no particular order.
        self.candidates.sort_unstable_by_key(|candidate| candidate.id);
        let share = f64::from(random(self.options.seed, position)) / 2f64.powi(32);
        let mut left = share * self.total();
        let mut chosen = self.candidates[0].id;
        for candidate in self.candidates.iter().filter(|candidate| candidate.value > 0.0) {
            chosen = candidate.id;
            left -= candidate.value;
            if left < 0.0 {
                break;
            }
        }
        chosen
    }

    fn total(&self) -> f64 {
        self.candidates.iter().map(|candidate| candidate.value).sum()
    }
}

/// Orders by falling value, then rising id; every value is a number.
fn likelier(a: &Candidate, b: &Candidate) -> Ordering {
    b.value.partial_cmp(&a.value).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sampler(options: SamplerOptions) -> Sampler {
        Sampler::new(options).unwrap()
    }

    fn warm() -> SamplerOptions {
        SamplerOptions { temperature: 1.0, ..SamplerOptions::default() }
    }

    /// Pearson's statistic of `draws` tokens against the weights, for tokens of non-zero weight.
    fn chi_square(mut sampler: Sampler, logits: &[f32], weights: &[f64], draws: usize) -> f64 {
        let mut counts = vec![0usize; logits.len()];
        let history = vec![0; draws];
        for position in 0..draws {
            counts[sampler.sample(logits, &history[..position]).unwrap() as usize] += 1;
        }
        let total: f64 = weights.iter().sum();
        let terms = counts.iter().zip(weights).map(|(&count, weight)| {
            let expected = weight / total * draws as f64;
            assert!(expected > 0.0 || count == 0, "a token outside the kept set was drawn");
            if expected > 0.0 { (count as f64 - expected).powi(2) / expected } else { 0.0 }
        });
        terms.sum()
    }

    #[test]
    fn draws_follow_the_distribution() {
        // Probabilities in tenths; the bounds are the 99.99 % points for 5, 5, 1 and 2 degrees of freedom.
        let tenths = [1.0f64, 4.0, 0.5, 2.0, 0.5, 2.0];
        let logits = tenths.map(|p| p.ln() as f32);
        let run = |options, weights: [f64; 6]| chi_square(sampler(options), &logits, &weights, 20_000);
        for seed in [0, 1, u64::MAX] {
            assert!(run(SamplerOptions { seed, ..warm() }, tenths) < 25.7);
        }
        let hot = SamplerOptions { temperature: 2.0, ..warm() };
        assert!(run(hot, tenths.map(f64::sqrt)) < 25.7);
        // 4 and the first of the two 2s; then both of them.
        assert!(run(SamplerOptions { top_k: 2, ..warm() }, [0.0, 4.0, 0.0, 2.0, 0.0, 0.0]) < 15.2);
        assert!(run(SamplerOptions { top_p: 0.7, ..warm() }, [0.0, 4.0, 0.0, 2.0, 0.0, 2.0]) < 18.5);
        assert!(run(SamplerOptions { min_p: 0.4, ..warm() }, [0.0, 4.0, 0.0, 2.0, 0.0, 2.0]) < 18.5);
    }

    #[test]
    fn filters_see_what_the_earlier_ones_left() {
        let logits = [8.0f32, 4.0, 2.0, 1.0, 1.0].map(f32::ln);
        // Of the first two alone 8 is two thirds: above 0.6, though it is half of all five.
        let options = SamplerOptions { top_k: 2, top_p: 0.6, ..warm() };
        assert!(chi_square(sampler(options), &logits, &[1.0, 0.0, 0.0, 0.0, 0.0], 500) == 0.0);
        // At temperature 0.5 the weights are 64, 16, 4, 1, 1: min-p 0.2 keeps two, where 8, 4, 2 would pass.
        let options = SamplerOptions { temperature: 0.5, min_p: 0.2, ..warm() };
        assert!(chi_square(sampler(options), &logits, &[64.0, 16.0, 0.0, 0.0, 0.0], 20_000) < 15.2);
    }

    #[test]
    fn the_penalty_lowers_tokens_that_occurred_once_each() {
        let options = SamplerOptions { repeat_penalty: 2.0, ..SamplerOptions::default() };
        let logits = [3.0, 2.0, -1.0, 1.4];
        assert_eq!(sampler(options.clone()).sample(&logits, &[0, 0, 99]).unwrap(), 1);
        assert_eq!(sampler(options.clone()).sample(&logits, &[0, 1, 0]).unwrap(), 0);
        assert_eq!(sampler(options.clone()).sample(&[-1.0, -1.5], &[0]).unwrap(), 1);
        let windowed = SamplerOptions { repeat_window: 1, ..options };
        assert_eq!(sampler(windowed).sample(&logits, &[0, 1]).unwrap(), 0);
    }

    #[test]
    fn ties_go_to_the_lowest_id() {
        assert_eq!(Sampler::greedy().sample(&[0.0, 1.0, 1.0], &[]).unwrap(), 1);
        let options = SamplerOptions { top_k: 1, ..warm() };
        assert_eq!(sampler(options).sample(&[0.0, 1.0, 1.0], &[]).unwrap(), 1);
    }

    #[test]
    fn extreme_logits_and_temperatures_are_no_problem() {
        let logits = [f32::MAX, f32::MIN, 0.0];
        for temperature in [1e-45, 1.0, f32::MAX] {
            for repeat_penalty in [1e-30, 1.0, 1e30] {
                let options =
                    SamplerOptions { temperature, repeat_penalty, top_p: 0.5, min_p: 0.01, ..warm() };
                assert!(sampler(options).sample(&logits, &[0, 1]).unwrap() < 3);
            }
        }
    }

    #[test]
    fn bad_options_are_refused_by_flag_and_value() {
        let bad = [
            ("--temp -1:", SamplerOptions { temperature: -1.0, ..warm() }),
            ("--temp NaN:", SamplerOptions { temperature: f32::NAN, ..warm() }),
            ("--temp inf:", SamplerOptions { temperature: f32::INFINITY, ..warm() }),
            ("--top-p 0:", SamplerOptions { top_p: 0.0, ..warm() }),
            ("--top-p 2:", SamplerOptions { top_p: 2.0, ..warm() }),
            ("--top-p NaN:", SamplerOptions { top_p: f32::NAN, ..warm() }),
            ("--min-p 1.5:", SamplerOptions { min_p: 1.5, ..warm() }),
            ("--min-p -0.1:", SamplerOptions { min_p: -0.1, ..warm() }),
            ("--repeat-penalty 0:", SamplerOptions { repeat_penalty: 0.0, ..warm() }),
            ("--repeat-penalty inf:", SamplerOptions { repeat_penalty: f32::INFINITY, ..warm() }),
        ];
        for (start, options) in bad {
            let error = Sampler::new(options).unwrap_err();
            assert!(matches!(&error, Error::Input(message) if message.starts_with(start)), "{error}");
        }
    }

    #[test]
    fn logits_that_are_not_finite_are_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let message = Sampler::greedy().sample(&[0.0, bad, 1.0], &[]).unwrap_err().to_string();
            assert!(message.contains("token 1"), "{message}");
        }
        assert!(Sampler::greedy().sample(&[], &[]).is_err());
    }

    #[test]
    fn only_the_plain_maximum_is_greedy() {
        assert!(Sampler::greedy().is_greedy());
        assert!(!sampler(warm()).is_greedy());
        let options = SamplerOptions { repeat_penalty: 1.2, ..SamplerOptions::default() };
        assert!(!sampler(options).is_greedy());
    }

    fn logits() -> impl Strategy<Value = Vec<f32>> {
        // Halves, so that ties are common; some lists are longer than the first head of top-p.
        prop::collection::vec((-12i32..12).prop_map(|half| half as f32 / 2.0), 1..700)
    }

    proptest! {
        #[test]
        fn the_chosen_token_is_in_the_kept_set(
            logits in logits(), temperature in 0.1f32..3.0, top_k in 0usize..20, top_p in 0.01f32..=1.0,
            min_p in 0.0f32..=1.0, seed: u64,
        ) {
            let options = SamplerOptions { temperature, top_k, top_p, min_p, seed, ..warm() };
            let id = sampler(options).sample(&logits, &[]).unwrap() as usize;

            // The definition, without shortcuts.
            let mut ranked: Vec<usize> = (0..logits.len()).collect();
            ranked.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
            ranked.truncate(if top_k == 0 { logits.len() } else { top_k });
            let best = f64::from(logits[ranked[0]]);
            let weight = |id: usize| ((f64::from(logits[id]) - best) / f64::from(temperature)).exp();
            let total: f64 = ranked.iter().map(|&id| weight(id)).sum();
            let rank = ranked.iter().position(|&kept| kept == id).expect("kept by top-k");
            let before: f64 = ranked[..rank].iter().map(|&id| weight(id)).sum();
            prop_assert!(before <= f64::from(top_p) * total + 1e-9);
            prop_assert!(weight(id) >= f64::from(min_p));
        }

        #[test]
        fn top_k_of_one_is_greedy(logits in logits(), temperature in 0.01f32..5.0, seed: u64) {
            let options = SamplerOptions { temperature, top_k: 1, seed, ..warm() };
            let greedy = Sampler::greedy().sample(&logits, &[]).unwrap();
            prop_assert_eq!(sampler(options).sample(&logits, &[]).unwrap(), greedy);
        }

        #[test]
        fn a_seed_repeats_its_tokens(logits in logits(), top_p in 0.1f32..=1.0, seed: u64) {
            let options = SamplerOptions { top_p, seed, ..warm() };
            let run = |mut sampler: Sampler| -> Vec<u32> {
                (0..20).map(|position| sampler.sample(&logits, &[0; 20][..position]).unwrap()).collect()
            };
            prop_assert_eq!(run(sampler(options.clone())), run(sampler(options)));
        }
    }
}
