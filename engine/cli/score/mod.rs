//! `samara score`: log-likelihoods of continuations, as lm-evaluation-harness defines them.

mod pairs;
mod report;
mod tasks;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use samara::Error;
use samara::session::{Scoring, TokenScore};

use super::{Failure, ModelArgs, RuleArgs, TokenizerArgs, note};
use pairs::{Encoder, Pair};
use report::{Report, Score};
use tasks::Task;

/// Continuations per call of the scorer.
const GROUP: usize = 256;

/// Score continuations of contexts: log-likelihoods, and accuracy where the right one is known
///
/// Each line of the tasks is a JSON object:
///
/// {"context": "The fox", "continuations": [" ran", " slept"], "gold": 0, "id": "fox"}
///
/// `gold` (index of the right continuation) and `id` (any name or number) are optional. A `delimiter` (" ") is put
/// before every continuation and does not count in its length, like the harness's target_delimiter. A line may have token
/// ids instead of text, which are used as they are:
///
/// {"context_ids": [1, 450], "continuation_ids": [[9], [10, 11]]}
///
/// Text is encoded as in lm-evaluation-harness: spaces at the end of a context move to the continuation, both are
/// encoded as one text after a beginning-of-text token, and the tokens after those of the context alone are scored. An
/// empty context is that token. A text too long for the model loses its beginning.
///
/// log_likelihood is the sum of ln p(token | tokens before it); per_token, per_char and per_byte divide it by the length of
/// the continuation; is_greedy is whether greedy decoding would generate it. acc is the share of lines whose right
/// continuation has the largest log_likelihood, acc_norm and acc_bytes the largest per_char and per_byte; ± is the standard
/// error of the mean.
///
/// Sequences are packed into steps of up to --prefill-chunk rows, so that each weight is read once for all of them; a score
/// does not depend on what else is in its step.
#[derive(Args)]
pub struct ScoreArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    rules: RuleArgs,
    #[command(flatten)]
    tokenizer: TokenizerArgs,
    /// Lines of JSON to score
    #[arg(long, value_name = "FILE")]
    tasks: PathBuf,
    /// Print a line of JSON for each task and one for all of them instead of a table
    #[arg(long)]
    json: bool,
    /// Also write these lines to FILE
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Put no beginning-of-text token before contexts, like the harness's add_bos_token=False
    #[arg(long)]
    no_bos: bool,
    /// Most tokens of a sequence [default: the model's whole context]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Most sequences in one step, 1 to 64: each takes memory for its keys and values
    #[arg(long, value_name = "N", default_value_t = 16)]
    slots: usize,
}

/// Runs the subcommand.
pub fn run(args: &ScoreArgs) -> Result<(), Failure> {
    let checkpoint = samara::model::Checkpoint::source(&args.model.model)?;
    let config = checkpoint.config();
    let context = args.context.unwrap_or(config.max_context_length);
    let tasks = tasks::read(&args.tasks)?;
    let pairs = pairs(args, &tasks, config.bos_token_id, config.vocab_size, context)?;
    drop(checkpoint);

    let requests: Vec<Scoring> = pairs.iter().map(|pair| pair.scoring(context)).collect();
    let cut = pairs.iter().zip(&requests).filter(|(pair, request)| pair.tokens.len() > request.tokens.len());
    let cut = cut.count();
    if cut > 0 && !args.model.quiet {
        note(format_args!(
            "warning: {cut} of {} texts are longer than the context of {context}: their beginnings were left out",
            pairs.len()
        ));
    }
    let scores = score(args, &requests)?;
    let report = Report::new(&tasks, &pairs, &scores);
    if let Some(out) = &args.out {
        samara::files::write_whole(out, report.json()?.as_bytes())?;
    }
    let mut stdout = io::stdout().lock();
    if args.json {
        stdout.write_all(report.json()?.as_bytes())?;
    } else {
        write!(stdout, "{report}")?;
    }
    Ok(())
}

/// Returns the tokens of every continuation with its context, in order.
fn pairs(
    args: &ScoreArgs,
    tasks: &[Task],
    bos: u32,
    vocab: usize,
    context: usize,
) -> samara::Result<Vec<Pair>> {
    let texts = tasks.iter().any(|task| task.has_text());
    let tokenizer = texts.then(|| args.tokenizer.load(&args.model.model)).transpose()?;
    let encoder = Encoder { tokenizer: tokenizer.as_ref(), prefix: bos, bos: !args.no_bos, vocab, context };
    let pairs = tasks.iter().map(|task| {
        encoder.pairs(task).map_err(|why| {
            let (file, line) = (args.tasks.display(), task.line);
            Error::Input(format!("`{file}`, line {line}: {why}"))
        })
    });
    Ok(pairs.collect::<samara::Result<Vec<_>>>()?.concat())
}

/// Scores the requests, in groups, so that progress is visible.
fn score(args: &ScoreArgs, requests: &[Scoring]) -> Result<Vec<Score>, Failure> {
    let model = args.model.load(&args.rules)?;
    // No more room than is needed.
    let longest = requests.iter().map(|request| request.tokens.len() - 1).max().unwrap_or(1);
    let mut scorer = model.scorer(args.slots, Some(longest))?;
    let bar = args.model.bar("scoring", "{pos} of {len} continuations");
    bar.set_length(requests.len() as u64);
    let mut scores = Vec::with_capacity(requests.len());
    for group in requests.chunks(GROUP) {
        scores.extend(scorer.score(group)?.iter().map(|tokens: &Vec<TokenScore>| Score::new(tokens)));
        bar.inc(group.len() as u64);
    }
    bar.finish_and_clear();
    Ok(scores)
}
