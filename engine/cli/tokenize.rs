//! `samara tokenize`: the token ids of a text.

use std::io::{self, Write};

use clap::Args;
use samara::Error;
use samara::model::Checkpoint;

use super::{Failure, TextArgs, TokenizerArgs};

/// Print the token ids of a text as a JSON list
#[derive(Args)]
pub struct TokenizeArgs {
    #[command(flatten)]
    text: TextArgs,
    /// Model whose tokenizer and beginning-of-text token are used [default: demo]
    #[arg(short, long)]
    model: Option<String>,
    #[command(flatten)]
    tokenizer: TokenizerArgs,
    /// Leave out the beginning-of-text token
    #[arg(long)]
    no_bos: bool,
}

/// Runs the subcommand.
pub fn run(args: TokenizeArgs) -> Result<(), Failure> {
    let spec = args.model.as_deref().unwrap_or("demo");
    let tokenizer = args.tokenizer.load(spec)?;
    let bos = if args.no_bos {
        None
    } else if args.model.is_none() && args.tokenizer.tokenizer.is_some() {
        // No model names it.
        Some(tokenizer.token_to_id("<s>").ok_or_else(|| {
            Error::Input("this tokenizer has no token `<s>`: give --model MODEL or --no-bos".to_owned())
        })?)
    } else {
        Some(Checkpoint::source(spec)?.config().bos_token_id)
    };
    let ids = tokenizer.encode(&args.text.read()?, bos)?;
    writeln!(io::stdout(), "{ids:?}")?;
    Ok(())
}
