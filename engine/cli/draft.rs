//! The flags of `samara generate` for speculative decoding.

use clap::Args;
use samara::session::{Acceptance, Drafter, MAX_DRAFT};
use samara::{Error, Model};

use super::{ModelArgs, RuleArgs};

#[derive(Args)]
#[command(next_help_heading = "Speculation (the text stays the same)")]
pub struct DraftArgs {
    /// Draft the N tokens, 1 to 7, that followed the last tokens where they occurred before
    ///
    /// One step verifies the draft tokens and reads each weight once for all of them. Standard error reports how many
    /// were accepted. On a CPU, which is compute-bound, speculative decoding is slower.
    #[arg(long, value_name = "N", conflicts_with = "draft")]
    lookup: Option<usize>,
    /// Draft tokens with a smaller model of the same vocabulary
    #[arg(long, value_name = "MODEL")]
    draft: Option<String>,
    /// Tokens, 1 to 7, that the smaller model drafts at a time
    #[arg(long, value_name = "N", default_value_t = 4, requires = "draft")]
    draft_tokens: usize,
}

impl DraftArgs {
    /// Refuses numbers that are out of range, with the name of their flag.
    pub fn check(&self) -> samara::Result<()> {
        let given = self.lookup.map(|tokens| ("--lookup", tokens));
        let (flag, tokens) = given.unwrap_or(("--draft-tokens", self.draft_tokens));
        if (1..=MAX_DRAFT).contains(&tokens) {
            return Ok(());
        }
        Err(Error::Input(format!("{flag} {tokens}: expected 1 to {MAX_DRAFT} tokens")))
    }

    /// Returns the drafter for a session of `context` tokens, if the flags name one.
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

/// Returns how many draft tokens were accepted.
pub fn summary(Acceptance { drafted, accepted, steps }: Acceptance) -> String {
    let share = 100.0 * accepted as f64 / drafted.max(1) as f64;
    format!("{accepted} of {drafted} draft tokens accepted ({share:.0} %) in {steps} steps")
}
