//! `samara logits`: the logits of one prompt, for comparison with another implementation.

use std::path::PathBuf;

use clap::Args;
use samara::{Error, Session};
use serde::Serialize;

use super::{Failure, ModelArgs, RuleArgs, files};

/// Write the logits and greedy continuation of a list of token ids
#[derive(Args)]
pub struct LogitsArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    rules: RuleArgs,
    /// JSON file: a list of token ids, or an object that has one as `prompt_ids`
    #[arg(long, value_name = "FILE")]
    ids: PathBuf,
    /// Continue greedily by N tokens; an end-of-text token does not stop this
    #[arg(long, value_name = "N", default_value_t = 0)]
    new: usize,
    /// JSON file to write
    #[arg(long, value_name = "OUT")]
    out: PathBuf,
}

/// The JSON document.
#[derive(Serialize)]
struct Report {
    prompt_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
    /// `[V]`, of the last prompt position.
    last_logits: Vec<f32>,
    /// Mean of `-log p(id | ids before it)` over all ids but the first, in nats; null for a single id.
    prompt_mean_nll: Option<f64>,
}

/// Runs the subcommand.
pub fn run(args: LogitsArgs) -> Result<(), Failure> {
    let vocab = samara::model::Checkpoint::source(&args.model.model)?.config().vocab_size;
    let prompt_ids = files::read_ids(&args.ids, vocab)?;
    let model = args.model.load(&args.rules)?;
    let mut session = model.session(None)?;
    let (context, n) = (session.context(), prompt_ids.len());
    if n.saturating_add(args.new) > context {
        let message = format!(
            "`{}`: {n} ids and --new {} exceed the context of {context}",
            args.ids.display(),
            args.new
        );
        return Err(Error::Input(message).into());
    }

    let prompt_mean_nll = match n {
        1 => None,
        _ => Some(session.nll(&prompt_ids)?.iter().sum::<f64>() / (n - 1) as f64),
    };
    session.rollback(0)?;
    session.prefill(&prompt_ids)?;
    let last_logits = session.next_logits()?;
    let greedy_ids = greedy(&mut session, args.new)?;
    let report = Report { prompt_ids, greedy_ids, last_logits, prompt_mean_nll };
    let json = serde_json::to_vec(&report).map_err(|e| Error::io("write", &args.out, e.into()))?;
    Ok(samara::files::write_whole(&args.out, &json)?)
}

/// Returns the next `n` tokens, one step each and without an early stop, as in the golden files.
fn greedy(session: &mut Session, n: usize) -> samara::Result<Vec<u32>> {
    let mut ids = Vec::new();
    while ids.len() < n {
        if let Some(&last) = ids.last() {
            session.prefill(&[last])?;
        }
        ids.push(session.next_greedy()?);
    }
    Ok(ids)
}
