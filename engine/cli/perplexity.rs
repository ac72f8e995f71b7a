//! `samara perplexity`: how well a model predicts a text.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use samara::Error;

use super::{Failure, ModelArgs, RuleArgs, TokenizerArgs, files};

/// Measure the perplexity of a text
///
/// The text's token ids, after one beginning-of-text token, are cut into windows that do not overlap. Each
/// window starts from an empty cache and its first token is not scored. The last window may be shorter.
/// `--ids` takes the ids as they are.
#[derive(Args)]
pub struct PerplexityArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    rules: RuleArgs,
    #[command(flatten)]
    tokenizer: TokenizerArgs,
    #[command(flatten)]
    source: TextSource,
    /// Tokens in a window, at least 2 [default: the model's whole context]
    #[arg(long, value_name = "N")]
    window: Option<usize>,
}

#[derive(Args)]
#[group(multiple = false)]
struct TextSource {
    /// Text to score; without it and without --ids, standard input is read
    #[arg(short, long, value_name = "TEXT")]
    file: Option<PathBuf>,
    /// JSON file to score: a list of token ids, or an object that has one as `prompt_ids`
    #[arg(long, value_name = "FILE", conflicts_with = "tokenizer")]
    ids: Option<PathBuf>,
}

/// Runs the subcommand.
pub fn run(args: PerplexityArgs) -> Result<(), Failure> {
    let ids = ids(&args)?;
    if ids.len() < 2 {
        return Err(Error::Input(format!("there are {} token ids: at least 2 are needed", ids.len())).into());
    }
    if let Some(window @ ..2) = args.window {
        return Err(Error::Input(format!("--window {window}: a window has at least 2 tokens")).into());
    }
    let model = args.model.load(&args.rules)?;
    let mut session = model.session(args.window)?;
    let window = session.context();

    let bar = args.model.bar("scoring", "{pos} of {len} tokens");
    bar.set_length(ids.len() as u64);
    let (mut sum, mut scored) = (0.0, 0);
    // A last window of one token has nothing to score.
    for part in ids.chunks(window).filter(|part| part.len() > 1) {
        session.rollback(0)?;
        let nll = session.nll(part)?;
        sum += nll.iter().sum::<f64>();
        scored += nll.len();
        bar.inc(part.len() as u64);
    }
    bar.finish_and_clear();
    let mean = sum / scored as f64;
    let mut out = io::stdout().lock();
    writeln!(out, "window      {window}")?;
    writeln!(out, "scored      {scored} tokens")?;
    writeln!(out, "mean nll    {mean:.6} nats")?;
    writeln!(out, "perplexity  {:.6}", mean.exp())?;
    Ok(())
}

/// Returns the ids to score, all of them tokens of the model.
fn ids(args: &PerplexityArgs) -> samara::Result<Vec<u32>> {
    let checkpoint = samara::model::Checkpoint::source(&args.model.model)?;
    let config = checkpoint.config();
    match (&args.source.file, &args.source.ids) {
        (_, Some(file)) => files::read_ids(file, config.vocab_size),
        (file, None) => {
            let text = file.as_deref().map_or_else(files::read_stdin, files::read_text)?;
            let tokenizer = args.tokenizer.load(&args.model.model)?;
            let ids = tokenizer.encode(&text, Some(config.bos_token_id))?;
            files::check_ids(&ids, config.vocab_size).map(|()| ids)
        }
    }
}
