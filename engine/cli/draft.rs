//! The flags by which `samara generate` guesses tokens and verifies them.

use clap::Args;
use samara::session::{Acceptance, Drafter, MAX_DRAFT};
use samara::{Error, Model};

use super::{ModelArgs, RuleArgs};

#[derive(Args)]
#[command(next_help_heading = "Speculation (the text stays the same)")]
pub struct DraftArgs {
    /// Guess the N tokens, at most 7, that followed the newest words when they last occurred
    #[arg(long, value_name = "N", conflicts_with = "draft")]
    lookup: Option<usize>,
    /// Let a smaller model of the same vocabulary guess
    #[arg(long, value_name = "MODEL")]
    draft: Option<String>,
    /// Tokens, at most 7, that the smaller model guesses at a time
    #[arg(long, value_name = "N", default_value_t = 4, requires = "draft")]
    draft_tokens: usize,
}

impl DraftArgs {
    /// Refuses numbers that are out of range, by their flag.
    pub fn check(&self) -> samara::Result<()> {
        let given = self.lookup.map(|tokens| ("--lookup", tokens));
        let (flag, tokens) = given.unwrap_or(("--draft-tokens", self.draft_tokens));
        if (1..=MAX_DRAFT).contains(&tokens) {
            return Ok(());
        }
        Err(Error::Input(format!("{flag} {tokens}: expected 1 to {MAX_DRAFT} tokens")))
    }

    /// Returns what guesses for a session of `context` tokens, if anything was asked to.
    pub fn drafter(
        &self,
        model: &Model,
        args: &ModelArgs,
        rules: &RuleArgs,
        context: usize,
    ) -> samara::Result<Option<Drafter>> {
        if let Some(tokens) = self.lookup {
            return Drafter::lookup(tokens).map(Some);
        }
        let Some(spec) = &self.draft else { return Ok(None) };
        let draft = args.load_beside(model, spec, rules)?;
        let drafter = Drafter::model(draft.session(Some(context))?, self.draft_tokens)?;
        drafter.check(model.config().vocab_size)?;
        Ok(Some(drafter))
    }
}

/// Says how good the guesses were.
pub fn summary(Acceptance { drafted, accepted, steps }: Acceptance) -> String {
    let share = 100.0 * accepted as f64 / drafted.max(1) as f64;
    format!("{accepted} of {drafted} guesses accepted ({share:.0} %) in {steps} steps")
}
