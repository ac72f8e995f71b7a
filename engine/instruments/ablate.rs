//! The gain of each fusion rule: one model under every choice of rules, side by side.
//!
//! All choices share the weights. All are checked to agree, then timed interleaved, so that a clock that
//! drifts affects all alike. Generation is greedy, with the choice of the token on the device.

use std::time::Instant;

use super::check::nmse;
use super::document::{Ablation, AblationRow, Environment, Subject, VERSION};
use super::samples::Samples;
use super::verify::{greedy, tolerance, wrong};
use crate::error::{Error, Result};
use crate::graph::fuse::{Fusion, Rule};
use crate::model::synth;
use crate::session::{Model, Session};

/// Largest error between the logits of two choices: f32 sums in another order, and keys and values that an
/// f16 cache then rounds the other way.
const TOLERANCE: f64 = 1e-6;

/// What every choice of rules runs; each number is at least 1.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens that are generated after it.
    pub generated: usize,
    /// Runs that are timed.
    pub repetitions: usize,
}

impl Workload {
    /// Returns the runs of an ablation, warm-ups included.
    pub fn runs(&self) -> usize {
        (self.repetitions + 1) * choices().len()
    }

    fn check(&self) -> Result<()> {
        let Self { prompt, generated, repetitions } = self;
        if [prompt, generated, repetitions].contains(&&0) {
            return Err(Error::Input(format!(
                "an ablation takes at least one prompt token, one generated token and one repetition; \
                 found {prompt}, {generated} and {repetitions}"
            )));
        }
        Ok(())
    }
}

/// Returns every choice of rules that is compared, by name; the first, `all on`, is the baseline.
pub fn choices() -> Vec<(String, Fusion)> {
    let mut choices = vec![("all on".to_owned(), Fusion::all())];
    choices.extend(Rule::ALL.map(|rule| (format!("without {rule}"), Fusion::all().without_rule(rule))));
    choices.push(("all off".to_owned(), Fusion::none()));
    choices.push(("rms-norm naive".to_owned(), Fusion::all().with_naive_norms()));
    choices.push(("all off, rms-norm naive".to_owned(), Fusion::none().with_naive_norms()));
    choices
}

/// Runs a model under every choice of rules, ignoring its own; calls `done` after every run. `spec` and
/// `commit` name the model and the program in the result.
///
/// # Errors
/// When a number of the workload is 0, two choices disagree, or the device fails or lacks memory.
pub fn ablate(
    model: &Model,
    spec: &str,
    commit: &str,
    workload: Workload,
    mut done: impl FnMut(),
) -> Result<Ablation> {
    workload.check()?;
    let model = model.with_fusion(Fusion::all());
    let mut variants = choices()
        .into_iter()
        .map(|(name, fusion)| Variant::new(name, model.with_fusion(fusion), workload))
        .collect::<Result<Vec<_>>>()?;
    let prompt = synth::prompt(model.config().vocab_size, workload.prompt);
    agree(&mut variants, &prompt)?;
    for repetition in 0..=workload.repetitions {
        for variant in &mut variants {
            let run = variant.run(&prompt, workload.generated)?;
            // The first run of each is a warm-up.
            if repetition > 0 {
                variant.runs.push(run);
            }
            done();
        }
    }
    Ok(Ablation {
        version: VERSION,
        environment: Environment::of(model.gpu(), commit),
        subject: Subject::of(&model, spec),
        prompt: workload.prompt,
        generated: workload.generated,
        rows: variants.into_iter().map(|variant| variant.row(workload)).collect(),
    })
}

/// Rejects variants whose logits differ from those of the first.
fn agree(variants: &mut [Variant], prompt: &[u32]) -> Result<()> {
    let (first, others) = variants.split_first_mut().expect("there are choices");
    let expected = first.logits(prompt)?;
    let tolerance = tolerance(first.model.gpu().tier(), TOLERANCE);
    for variant in others {
        let error = nmse(&variant.logits(prompt)?, &expected);
        tracing::debug!("`{}` against `{}`: NMSE {error:e}", variant.name, first.name);
        if error > tolerance {
            let what = format!(
                "logits of `{}` differ from those of `{}`, NMSE {error:e} > {tolerance:e}",
                variant.name, first.name
            );
            return Err(wrong(&first.model, &what));
        }
    }
    Ok(())
}

/// One choice of rules with its session and its measurements.
struct Variant {
    name: String,
    model: Model,
    session: Session,
    runs: Vec<Run>,
}

/// Seconds of one run.
struct Run {
    prefill: f64,
    decode: f64,
}

impl Variant {
    fn new(name: String, model: Model, workload: Workload) -> Result<Self> {
        let session = model.session(Some(workload.prompt.saturating_add(workload.generated)))?;
        Ok(Self { name, model, session, runs: Vec::new() })
    }

    /// Returns the logits after the prompt and after one token more: of a prefill and of a decode step.
    fn logits(&mut self, prompt: &[u32]) -> Result<Vec<f64>> {
        self.session.rollback(0)?;
        self.session.prefill(prompt)?;
        let mut logits = self.session.next_logits()?;
        self.session.prefill(&prompt[..1])?;
        logits.extend(self.session.next_logits()?);
        Ok(logits.into_iter().map(f64::from).collect())
    }

    /// Prefills a prompt and generates after it; the clock stops when a token's id is on the host.
    fn run(&mut self, prompt: &[u32], generated: usize) -> Result<Run> {
        self.session.rollback(0)?;
        self.model.gpu().wait()?;
        let start = Instant::now();
        let first = greedy(&mut self.session, prompt, 1)?[0];
        let prefill = start.elapsed().as_secs_f64();
        // The first token is fed, so that each generated one is a step.
        greedy(&mut self.session, &[first], generated)?;
        Ok(Run { prefill, decode: start.elapsed().as_secs_f64() - prefill })
    }

    fn row(self, workload: Workload) -> AblationRow {
        let rate = |tokens: usize, seconds: fn(&Run) -> f64| {
            Samples::new(self.runs.iter().map(|run| tokens as f64 / seconds(run)).collect())
        };
        let decode = self.model.counts(1);
        AblationRow {
            decode_tok_s: rate(workload.generated, |run| run.decode),
            prefill_tok_s: rate(workload.prompt, |run| run.prefill),
            decode_dispatches: decode.dispatches,
            prefill_dispatches: self.model.counts(workload.prompt).dispatches,
            norms: decode.norms,
            norm_dispatches: decode.norm_dispatches,
            name: self.name,
        }
    }
}
