//! The text of an answer, as tokens arrive: whole characters, nothing after a stop string, and the log-probabilities in
//! the form of OpenAI's completions.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::request::{How, Prompt};
use crate::error::Result;
use crate::session::TokenScore;
use crate::stop::StopFilter;
use crate::tokenizer::{TextStream, Tokenizer};

/// A part of a choice, in the order of its text.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Piece {
    pub(super) index: usize,
    pub(super) text: String,
    pub(super) logprobs: Option<Logprobs>,
    pub(super) finish_reason: Option<&'static str>,
}

/// The log-probabilities of a piece's tokens.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Logprobs {
    tokens: Vec<String>,
    /// Natural logarithms; `None` for the first token of a prompt: nothing precedes it.
    token_logprobs: Vec<Option<f64>>,
    top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Where each token begins in the text of the choice, in characters.
    text_offset: Vec<usize>,
}

impl Piece {
    /// Appends the piece that follows.
    pub(super) fn extend(&mut self, next: Self) {
        self.text += &next.text;
        self.finish_reason = next.finish_reason.or(self.finish_reason);
        if let Some(more) = next.logprobs {
            let all = self.logprobs.get_or_insert_default();
            all.tokens.extend(more.tokens);
            all.token_logprobs.extend(more.token_logprobs);
            all.top_logprobs.extend(more.top_logprobs);
            all.text_offset.extend(more.text_offset);
        }
    }

    /// Returns whether a stream can leave it out.
    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty() && self.logprobs.is_none() && self.finish_reason.is_none()
    }
}

/// Builds the text of one choice.
pub(super) struct Writer<'a> {
    index: usize,
    tokenizer: &'a Tokenizer,
    stream: TextStream<'a>,
    stops: StopFilter,
    /// How many of the likeliest tokens are listed with each.
    logprobs: Option<usize>,
    /// Characters of the text so far, including those held back.
    offset: usize,
}

impl<'a> Writer<'a> {
    pub(super) fn new(index: usize, tokenizer: &'a Tokenizer, how: &How) -> Result<Self> {
        let (stream, stops) = (tokenizer.stream(), StopFilter::new(how.stops.clone())?);
        Ok(Self { index, tokenizer, stream, stops, logprobs: how.logprobs, offset: 0 })
    }

    /// Returns the prompt as a piece if `echo` repeats it: the text of its tokens, without special tokens even if the
    /// prompt spelled them out. `scores` are those of all tokens but the first; without them the piece has no
    /// log-probabilities.
    pub(super) fn prompt(
        &mut self,
        prompt: &Prompt,
        echo: bool,
        scores: Option<&[TokenScore]>,
    ) -> Result<Option<Piece>> {
        let (mut text, mut logprobs) = (String::new(), Logprobs::default());
        for (index, &id) in prompt.ids.iter().enumerate() {
            if let Some(scores) = scores {
                let score = index.checked_sub(1).map(|before| &scores[before]);
                self.add_score(&mut logprobs, id, score)?;
            }
            let new = self.stream.push(id)?;
            if echo {
                self.offset += new.chars().count();
                text += &new;
            }
        }
        let logprobs = scores.map(|_| logprobs);
        Ok(echo.then_some(Piece { index: self.index, text, logprobs, finish_reason: None }))
    }

    /// Returns the piece that a token adds. The end-of-sequence token adds no text.
    pub(super) fn token(&mut self, id: u32, score: Option<&TokenScore>) -> Result<Piece> {
        let mut logprobs = self.logprobs.map(|_| Logprobs::default());
        if let Some(logprobs) = &mut logprobs {
            self.add_score(logprobs, id, score)?;
        }
        let new = self.stream.push(id)?;
        self.offset += new.chars().count();
        let passed = self.stops.push(&new);
        let finish_reason = passed.stop.map(|_| "stop");
        Ok(Piece { index: self.index, text: passed.text, logprobs, finish_reason })
    }

    /// Returns the text that was held back.
    pub(super) fn end(mut self, reason: &'static str) -> Piece {
        let passed = self.stops.push(&self.stream.finish());
        let (mut text, mut finish_reason) = (passed.text, reason);
        if passed.stop.is_some() {
            finish_reason = "stop";
        } else {
            text += &self.stops.finish();
        }
        Piece { index: self.index, text, logprobs: None, finish_reason: Some(finish_reason) }
    }

    fn add_score(&self, to: &mut Logprobs, id: u32, score: Option<&TokenScore>) -> Result<()> {
        let token = name(self.tokenizer, id)?;
        to.text_offset.push(self.offset);
        to.token_logprobs.push(score.map(|score| score.logprob.into()));
        to.top_logprobs.push(match score {
            None => None,
            Some(score) => {
                let mut top = Map::new();
                for &(id, logprob) in score.top().iter().take(self.logprobs.unwrap_or(0)) {
                    // Of tokens with the same text, list the likelier.
                    top.entry(name(self.tokenizer, id)?).or_insert(json!(f64::from(logprob)));
                }
                top.entry(token.clone()).or_insert(json!(f64::from(score.logprob)));
                Some(top)
            }
        });
        to.tokens.push(token);
        Ok(())
    }
}

/// Returns a token as text; bytes that are no whole characters are spelled as by OpenAI, `bytes:\xe2\x80`.
fn name(tokenizer: &Tokenizer, id: u32) -> Result<String> {
    let bytes = tokenizer.bytes(id)?;
    if bytes.is_empty() {
        return Ok(tokenizer.id_to_token(id).unwrap_or_default());
    }
    Ok(String::from_utf8(bytes).unwrap_or_else(|e| {
        e.as_bytes().iter().fold("bytes:".to_owned(), |text, byte| format!("{text}\\x{byte:02x}"))
    }))
}
