//! The body of `/v1/completions`: OpenAI's fields, samara's additions, and their limits.

use std::hash::{BuildHasher, RandomState};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::Options;
use super::refusal::Refusal;
use crate::sampler::{Sampler, SamplerOptions};
use crate::tokenizer::Tokenizer;

/// Most of the likeliest tokens that are listed with each token.
const MOST_LOGPROBS: u64 = 5;
const MOST_STOPS: usize = 4;
/// Most bytes of a stop string: this much of an answer may be held back.
const STOP_BYTES: usize = 256;

/// The body as it is sent. Fields without effect here are accepted at their neutral value.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    model: Option<String>,
    prompt: Value,
    max_tokens: Option<u64>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    seed: Option<i64>,
    stop: Option<Value>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    echo: Option<bool>,
    logprobs: Option<u64>,
    n: Option<u64>,
    best_of: Option<u64>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    logit_bias: Option<Map<String, Value>>,
    suffix: Option<String>,
    #[serde(rename = "user")]
    _user: Option<Value>,
    // Not OpenAI's.
    top_k: Option<i64>,
    min_p: Option<f32>,
    repeat_penalty: Option<f32>,
    repeat_window: Option<u64>,
    add_special_tokens: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// A valid request.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) prompts: Vec<Prompt>,
    pub(super) how: How,
    pub(super) stream: bool,
    /// Report the usage at the end of the stream.
    pub(super) usage: bool,
}

/// The options of every prompt of a request.
#[derive(Clone, Debug)]
pub(super) struct How {
    pub(super) max_tokens: usize,
    pub(super) sampling: SamplerOptions,
    pub(super) stops: Vec<String>,
    pub(super) echo: bool,
    /// How many of the likeliest tokens are listed with each token.
    pub(super) logprobs: Option<usize>,
}

/// A prompt to continue.
#[derive(Debug, PartialEq)]
pub(super) struct Prompt {
    pub(super) ids: Vec<u32>,
}

/// The limits that requests are checked against.
pub(super) struct Checks<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) bos: u32,
    pub(super) vocab: usize,
    pub(super) context: usize,
    /// Bytes of the longest token.
    pub(super) token_bytes: usize,
    pub(super) options: &'a Options,
}

/// Reads JSON; an error names the field at fault.
pub(super) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    // serde would accept a list of the fields in order.
    if body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
        return Err(Refusal::invalid("the body of the request is a list: expected an object"));
    }
    let mut reader = serde_json::Deserializer::from_slice(body);
    let no_json =
        |e: &serde_json::Error| Refusal::invalid(format!("the body of the request is not JSON: {e}"));
    let parsed = serde_path_to_error::deserialize(&mut reader).map_err(|e| match e.path().to_string() {
        _ if !e.inner().is_data() => no_json(e.inner()),
        path if path == "." => Refusal::invalid(format!("the body of the request: {}", e.inner())),
        path => Refusal::invalid(format!("`{path}`: {}", e.inner())),
    })?;
    reader.end().map_err(|e| no_json(&e))?;
    Ok(parsed)
}

impl Checks<'_> {
    /// Returns the request in a body.
    pub(super) fn asked(&self, body: &[u8]) -> Result<Asked, Refusal> {
        let body: Body = parse(body)?;
        self.model(body.model.as_deref())?;
        body.refuse_unsupported()?;
        let how = self.how(&body)?;
        let special = body.add_special_tokens.unwrap_or(true);
        let prompts = self.prompts(&body.prompt, special)?;
        prompts.iter().try_for_each(|prompt| self.fits(prompt, how.max_tokens))?;
        let stream = body.stream.unwrap_or(false);
        if body.stream_options.is_some() && !stream {
            return Err(Refusal::field("stream_options", "`stream_options` needs `stream` to be true"));
        }
        let usage = body.stream_options.and_then(|options| options.include_usage).unwrap_or(false);
        Ok(Asked { prompts, how, stream, usage })
    }

    fn model(&self, asked: Option<&str>) -> Result<(), Refusal> {
        match asked {
            Some(asked) if asked != self.options.name => {
                Err(Refusal::unknown_model(asked, &self.options.name))
            }
            _ => Ok(()),
        }
    }

    fn how(&self, body: &Body) -> Result<How, Refusal> {
        let most = self.options.max_tokens.unwrap_or(self.context).min(self.context) as u64;
        let max_tokens = body.max_tokens.unwrap_or(16.min(most));
        if max_tokens > most {
            let message = format!("`max_tokens` is {max_tokens}: the most is {most}");
            return Err(Refusal::field("max_tokens", message));
        }
        if let Some(asked) = body.logprobs.filter(|&asked| asked > MOST_LOGPROBS) {
            let message = format!("`logprobs` is {asked}: the most is {MOST_LOGPROBS}");
            return Err(Refusal::field("logprobs", message));
        }
        Ok(How {
            max_tokens: max_tokens as usize,
            sampling: body.sampling()?,
            stops: stops(body.stop.as_ref())?,
            echo: body.echo.unwrap_or(false),
            logprobs: body.logprobs.map(|count| count as usize),
        })
    }

    /// Returns the prompts: a text, texts, ids or lists of ids.
    fn prompts(&self, prompt: &Value, special: bool) -> Result<Vec<Prompt>, Refusal> {
        let wrong = || {
            let message =
                "`prompt`: expected a text, a list of texts, a list of token ids or a list of such lists";
            Refusal::field("prompt", message)
        };
        let prompts: Vec<Prompt> = match prompt {
            Value::String(text) => vec![self.text(text, special)?],
            Value::Array(list) => match list.first() {
                None => return Err(Refusal::field("prompt", "`prompt` is an empty list")),
                Some(Value::Number(_)) => vec![self.ids(list)?],
                Some(_) => {
                    self.count(list.len())?;
                    let each = list.iter().map(|prompt| match prompt {
                        Value::String(text) => self.text(text, special),
                        Value::Array(ids) => self.ids(ids),
                        _ => Err(wrong()),
                    });
                    each.collect::<Result<_, _>>()?
                }
            },
            _ => return Err(wrong()),
        };
        Ok(prompts)
    }

    fn count(&self, prompts: usize) -> Result<(), Refusal> {
        let most = self.options.prompts.min(self.options.queue);
        if prompts > most {
            let message = format!("`prompt` is a list of {prompts}: the most is {most}");
            return Err(Refusal::field("prompt", message));
        }
        Ok(())
    }

    fn text(&self, text: &str, special: bool) -> Result<Prompt, Refusal> {
        // Checked before tokenizing takes time: so few tokens cannot hold so much text.
        let most = self.context.saturating_mul(self.token_bytes);
        if text.len() > most {
            let message = format!(
                "a prompt has {} bytes: a context of {} tokens holds at most {most}",
                text.len(),
                self.context
            );
            return Err(Refusal::context(message));
        }
        let ids = self.tokenizer.encode(text, special.then_some(self.bos));
        let ids = ids.map_err(|e| Refusal::field("prompt", e.to_string()))?;
        if ids.is_empty() {
            return Err(Refusal::field("prompt", "`prompt` is empty: there is no token to go on from"));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocab) {
            return Err(Refusal::field(
                "prompt",
                format!("`prompt`: the tokenizer gives token id {id}, but the model has {}", self.vocab),
            ));
        }
        Ok(Prompt { ids })
    }

    fn ids(&self, list: &[Value]) -> Result<Prompt, Refusal> {
        if list.is_empty() {
            return Err(Refusal::field("prompt", "`prompt` is an empty list of token ids"));
        }
        let known = self.vocab.min(self.tokenizer.vocab_size());
        let read = |(index, value): (usize, &Value)| {
            let id = value.as_u64().filter(|&id| id < known as u64).and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| {
                let message = format!(
                    "`prompt`: entry {index} is {value}, expected a token id, an integer from 0 to {}",
                    known - 1
                );
                Refusal::field("prompt", message)
            })
        };
        let ids = list.iter().enumerate().map(read).collect::<Result<_, _>>()?;
        Ok(Prompt { ids })
    }

    fn fits(&self, prompt: &Prompt, max_tokens: usize) -> Result<(), Refusal> {
        let (tokens, context) = (prompt.ids.len(), self.context);
        if tokens + max_tokens > context {
            let message = format!(
                "the prompt has {tokens} tokens, and `max_tokens` is {max_tokens}: that is {}, but the context holds \
                 {context}",
                tokens + max_tokens
            );
            return Err(Refusal::context(message));
        }
        Ok(())
    }
}

impl Body {
    fn sampling(&self) -> Result<SamplerOptions, Refusal> {
        let options = SamplerOptions {
            temperature: self.temperature.unwrap_or(1.0),
            // vLLM's -1 means all.
            top_k: self.top_k.map_or(0, |k| usize::try_from(k).unwrap_or(0)),
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(0.0),
            repeat_penalty: self.repeat_penalty.unwrap_or(1.0),
            repeat_window: self.repeat_window.map_or(0, |window| window as usize),
            seed: self.seed.map_or_else(|| RandomState::new().hash_one(()), i64::cast_unsigned),
        };
        let SamplerOptions { temperature, top_p, min_p, repeat_penalty, .. } = options;
        for (field, value, valid, range) in [
            ("temperature", temperature, temperature >= 0.0, "0 or more"),
            ("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "above 0 and up to 1"),
            ("min_p", min_p, (0.0..=1.0).contains(&min_p), "from 0 to 1"),
            ("repeat_penalty", repeat_penalty, repeat_penalty > 0.0, "above 0"),
        ] {
            if !valid || !value.is_finite() {
                return Err(Refusal::field(
                    field,
                    format!("`{field}` is {value}: expected a number {range}"),
                ));
            }
        }
        if let Some(k) = self.top_k.filter(|&k| k < -1) {
            return Err(Refusal::field("top_k", format!("`top_k` is {k}: expected -1 or more")));
        }
        Sampler::new(options.clone()).map_err(|e| Refusal::invalid(e.to_string()))?;
        Ok(options)
    }

    /// Rejects fields of OpenAI's that samara does not support.
    fn refuse_unsupported(&self) -> Result<(), Refusal> {
        let only = |field, value: String, neutral: &str| {
            let message = format!("`{field}` is {value}: only {neutral} is supported");
            Err(Refusal::field(field, message))
        };
        match self {
            Self { n: Some(n), .. } if *n != 1 => only("n", n.to_string(), "1"),
            Self { best_of: Some(n), .. } if *n != 1 => only("best_of", n.to_string(), "1"),
            Self { presence_penalty: Some(x), .. } if *x != 0.0 => {
                only("presence_penalty", x.to_string(), "0")
            }
            Self { frequency_penalty: Some(x), .. } if *x != 0.0 => {
                only("frequency_penalty", x.to_string(), "0")
            }
            Self { logit_bias: Some(bias), .. } if !bias.is_empty() => {
                only("logit_bias", format!("a map of {}", bias.len()), "an empty one")
            }
            Self { suffix: Some(suffix), .. } if !suffix.is_empty() => {
                only("suffix", format!("{suffix:?}"), "an empty text")
            }
            _ => Ok(()),
        }
    }
}

/// Returns the stop strings.
fn stops(stop: Option<&Value>) -> Result<Vec<String>, Refusal> {
    let refuse = |message: String| Refusal::field("stop", message);
    let list = match stop {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(list)) => {
            let text = |value: &Value| value.as_str().map(str::to_owned);
            let texts: Option<Vec<String>> = list.iter().map(text).collect();
            texts.ok_or_else(|| refuse("`stop`: expected a text or a list of texts".to_owned()))?
        }
        Some(_) => return Err(refuse("`stop`: expected a text or a list of texts".to_owned())),
    };
    if list.len() > MOST_STOPS {
        return Err(refuse(format!("`stop` is a list of {}: the most is {MOST_STOPS}", list.len())));
    }
    if let Some(long) = list.iter().map(String::len).find(|&bytes| bytes > STOP_BYTES) {
        return Err(refuse(format!("`stop` has a text of {long} bytes: the most is {STOP_BYTES}")));
    }
    if list.iter().any(String::is_empty) {
        return Err(refuse("`stop` has an empty text: expected what to stop before".to_owned()));
    }
    Ok(list)
}

impl How {
    /// Returns whether the tokens of the prompt have to be scored.
    pub(super) fn scores_prompt(&self) -> bool {
        self.echo && self.logprobs.is_some()
    }

    /// Returns options that request the likeliest tokens and nothing else.
    #[cfg(test)]
    pub(super) fn greedy(max_tokens: usize) -> Self {
        Self {
            max_tokens,
            sampling: SamplerOptions::default(),
            stops: Vec::new(),
            echo: false,
            logprobs: None,
        }
    }
}
