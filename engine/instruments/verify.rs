//! Checks before timing: a device has to reproduce the demo's fable, and a model's prefill has to agree with
//! its decoding.

use super::check::nmse;
use crate::error::{Error, Result};
use crate::kernels::{FEW_TOKENS, Tier};
use crate::model::{Checkpoint, demo, synth};
use crate::sampler::Sampler;
use crate::session::{LoadOptions, Model, Session};

/// Largest error between the logits of one step and of many: f32 sums in another order, and keys and values that an f16
/// cache then rounds differently.
const TOLERANCE: f64 = 1e-5;
/// The same where products of a few tokens, and so of one, round activations to 8 bits: on uniform values the
/// four of a layer add 1.4e-4, so 36 layers 5e-3.
const INT8_TOLERANCE: f64 = 1e-2;
/// The same where tiles round factors to f16 and rows do not, or tiles of other rules round other factors: a product
/// adds at most 4e-6, and 36 layers have 144 products.
const COOP_TOLERANCE: f64 = 6e-4;

/// Returns the largest error between two computations of the same logits on a tier: `exact` on one that
/// rounds no factor.
pub(super) fn tolerance(tier: Tier, exact: f64) -> f64 {
    match tier {
        Tier { int8: true, .. } => INT8_TOLERANCE,
        Tier { coop: Some(_), .. } => COOP_TOLERANCE,
        _ => exact,
    }
}

/// Checks that the device of a model reproduces the demo's fable, with the model's format, cache, rules and
/// shaders, and that the model's prefill agrees with its decoding.
///
/// # Errors
/// When either is wrong, or the device fails.
pub fn verify(model: &Model) -> Result<()> {
    recites_the_fable(model)?;
    agrees_with_itself(model)
}

fn recites_the_fable(model: &Model) -> Result<()> {
    let mut gpu = model.gpu().at_tier(model.gpu().tier())?;
    gpu.set_tuning(model.gpu().tuning().clone());
    let options = LoadOptions {
        format: Some(model.format()),
        kv: model.kv(),
        fusion: model.fusion().clone(),
        ..LoadOptions::default()
    };
    let fable = Model::from_checkpoint(&Checkpoint::demo()?, gpu, options)?;
    let mut session = fable.session(Some(demo::KNOWN_PROMPT.len() + demo::KNOWN_TEXT.len()))?;
    let found = greedy(&mut session, &demo::KNOWN_PROMPT, demo::KNOWN_TEXT.len())?;
    if found == demo::KNOWN_TEXT {
        return Ok(());
    }
    Err(wrong(model, &format!("the demo model continues with {found:?}, expected {:?}", demo::KNOWN_TEXT)))
}

fn agrees_with_itself(model: &Model) -> Result<()> {
    // A prefill of fewer tokens computes its products as decoding does.
    let tokens = model.paths().few.max(FEW_TOKENS) + 1;
    let prompt = synth::prompt(model.config().vocab_size, tokens);
    let mut session = model.session(Some(tokens))?;
    session.prefill(&prompt)?;
    let whole = session.next_logits()?;
    session.rollback(0)?;
    prompt.iter().try_for_each(|&id| session.prefill(&[id]))?;
    let stepwise = session.next_logits()?;
    let wide = |logits: &[f32]| logits.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    let error = nmse(&wide(&stepwise), &wide(&whole));
    let tolerance = tolerance(model.gpu().tier(), TOLERANCE);
    if error <= tolerance {
        return Ok(());
    }
    Err(wrong(model, &format!("logits of prefill and of decoding differ, NMSE {error:e} > {tolerance:e}")))
}

/// Returns the error that a model computes wrongly.
pub(super) fn wrong(model: &Model, what: &str) -> Error {
    Error::Gpu(format!("adapter `{}` computes wrongly, so nothing is timed: {what}", model.adapter().name))
}

/// Returns the next tokens after a prompt, without stopping at the end of a text.
pub(super) fn greedy(session: &mut Session, prompt: &[u32], tokens: usize) -> Result<Vec<u32>> {
    greedy_by(session, prompt, tokens, None)
}

/// Does the same with `per_submit` tokens in a submission.
pub(super) fn greedy_by(
    session: &mut Session,
    prompt: &[u32],
    tokens: usize,
    per_submit: Option<usize>,
) -> Result<Vec<u32>> {
    session.prefill(prompt)?;
    let stream = session.generate(Sampler::greedy()).through_end().limit(tokens);
    match per_submit {
        Some(count) => stream.tokens_per_submit(count)?.collect(),
        None => stream.collect(),
    }
}
