//! A context and a continuation as tokens: lm-evaluation-harness's `_encode_pair`, its `loglikelihood` for an empty
//! context, and what its models for causal transformers cut off (lm_eval 0.4.13, api/model.py and models/huggingface.py).

use samara::session::Scoring;
use samara::tokenizer::Tokenizer;

use super::tasks::{Content, Task};

/// A continuation with what comes before it.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// Context, then continuation.
    pub tokens: Vec<u32>,
    /// Tokens of the continuation.
    pub scored: usize,
    /// Characters and bytes of the continuation's text, the delimiter not counted.
    pub length: Option<(usize, usize)>,
}

impl Pair {
    /// Returns the request: the last tokens that fit a context. The model does not read the very last one.
    pub fn scoring(&self, context: usize) -> Scoring {
        let tokens = self.tokens[self.tokens.len().saturating_sub(context + 1)..].to_vec();
        Scoring { from: tokens.len() - self.scored, tokens, top: 0 }
    }
}

/// Encodes texts.
pub struct Encoder<'a> {
    /// Required for text.
    pub tokenizer: Option<&'a Tokenizer>,
    /// Stands for an empty context: the beginning-of-text token.
    pub prefix: u32,
    /// Whether that token is put before every context.
    pub bos: bool,
    /// Tokens that the model knows.
    pub vocab: usize,
    /// Most tokens that the model reads.
    pub context: usize,
}

impl Encoder<'_> {
    /// Returns the pairs of a task, or what is wrong with it.
    pub fn pairs(&self, task: &Task) -> Result<Vec<Pair>, String> {
        let pair = |index: usize| {
            let pair = match &task.content {
                Content::Ids { context, continuations } => Pair {
                    tokens: [context.as_slice(), &continuations[index]].concat(),
                    scored: continuations[index].len(),
                    length: None,
                },
                Content::Text { context, delimiter, continuations } => {
                    let text = &continuations[index];
                    let length = Some((text.chars().count(), text.len()));
                    let (tokens, scored) = self.encode(context, &format!("{delimiter}{text}"))?;
                    Pair { tokens, scored, length }
                }
            };
            self.check(&pair).map(|()| pair).map_err(|why| format!("continuation {index} {why}"))
        };
        (0..task.len()).map(pair).collect()
    }

    /// Returns the tokens of a context and a continuation, and how many are the continuation's.
    fn encode(&self, context: &str, continuation: &str) -> Result<(Vec<u32>, usize), String> {
        if context.is_empty() {
            let mut tokens = self.tokens(continuation, false)?;
            if tokens.first() != Some(&self.prefix) {
                tokens.insert(0, self.prefix);
            }
            let scored = tokens.len() - 1;
            return Ok((tokens, scored));
        }
        let bare = context.trim_end_matches(is_space);
        let whole = self.tokens(&format!("{context}{continuation}"), self.bos)?;
        let before = self.tokens(bare, self.bos)?.len();
        let scored = whole.len().saturating_sub(before);
        Ok((whole, scored))
    }

    /// Returns the tokens of a text, on request after a beginning-of-text token unless the text begins with one.
    fn tokens(&self, text: &str, bos: bool) -> Result<Vec<u32>, String> {
        let tokenizer = self.tokenizer.ok_or("there is no tokenizer")?;
        let written = tokenizer.id_to_token(self.prefix).is_some_and(|token| text.starts_with(&token));
        let bos = Some(self.prefix).filter(|_| bos && !written);
        tokenizer.encode(text, bos).map_err(|e| e.to_string())
    }

    /// Refuses what cannot be scored.
    fn check(&self, pair: &Pair) -> Result<(), String> {
        let (count, most) = (pair.scored, self.context);
        if let Some(id) = pair.tokens.iter().find(|&&id| id as usize >= self.vocab) {
            return Err(format!("has token id {id}, but the model has {} tokens", self.vocab));
        }
        if count == 0 {
            return Err("adds no token to its context".into());
        }
        if count == pair.tokens.len() {
            return Err("has no token before it".into());
        }
        if count > most {
            return Err(format!("has {count} tokens, but the context has room for {most}"));
        }
        Ok(())
    }
}

/// Returns whether Python's `str.rstrip` removes a character.
fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

#[cfg(test)]
mod tests {
    use samara::model::demo;

    use super::*;

    fn encode(context: &str, continuation: &str, bos: bool) -> (Vec<u32>, usize) {
        let tokenizer = Tokenizer::from_bytes(demo::TOKENIZER, "demo").unwrap();
        let encoder = Encoder { tokenizer: Some(&tokenizer), prefix: 1, bos, vocab: 2048, context: 64 };
        encoder.encode(context, continuation).unwrap()
    }

    #[test]
    fn spaces_at_the_end_of_a_context_go_to_the_continuation() {
        let (tokens, scored) = encode("The Fox", " ran", true);
        assert_eq!(tokens[0], 1);
        assert_eq!(encode("The Fox ", "ran", true), (tokens.clone(), scored));
        assert_eq!(encode("The Fox", " ran", false), (tokens[1..].to_vec(), scored));
        // Two spaces and a separator that Python treats as a space.
        let (_, more) = encode("The Fox \u{1f} ", "ran", true);
        assert!(more > scored);
    }

    #[test]
    fn an_empty_context_is_the_beginning_of_text() {
        let (tokens, scored) = encode("", "The Fox", false);
        assert_eq!((tokens[0], scored), (1, tokens.len() - 1));
        assert_eq!(encode("", "<s>The Fox", false).0[0], 1);
        assert_eq!(encode("<s>The Fox", " ran", true), encode("<s>The Fox", " ran", false));
    }

    #[test]
    fn the_beginning_of_a_long_text_is_left_out() {
        let pair = Pair { tokens: (0..10).collect(), scored: 3, length: None };
        assert_eq!(pair.scoring(9), Scoring { tokens: (0..10).collect(), from: 7, top: 0 });
        assert_eq!(pair.scoring(4), Scoring { tokens: (5..10).collect(), from: 2, top: 0 });
        assert_eq!(pair.scoring(3), Scoring { tokens: (6..10).collect(), from: 1, top: 0 });
    }
}
