//! An answer as a response: whole, or piece by piece as server-sent events.

use std::convert::Infallible;

use axum::Json;
use axum::response::sse::{Event as Sent, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::answer::Piece;
use super::refusal::Refusal;

/// The fields around the choices of every answer.
pub(super) struct Envelope {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
}

impl Envelope {
    fn with(&self, choices: &[Piece]) -> Value {
        let Self { id, created, model } = self;
        json!({"id": id, "object": "text_completion", "created": created, "model": model, "choices": choices})
    }
}

/// The tokens of an answer, all choices together.
#[derive(Clone, Copy)]
pub(super) struct Usage {
    pub(super) prompt: usize,
    pub(super) generated: usize,
}

impl Usage {
    fn object(self) -> Value {
        let Self { prompt, generated } = self;
        json!({"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated})
    }
}

/// A piece, and how many generated tokens it stands for.
pub(super) type Written = Result<(Piece, usize), Refusal>;

/// Returns the whole answer.
pub(super) async fn gathered(
    envelope: Envelope,
    mut pieces: mpsc::Receiver<Written>,
    mut usage: Usage,
) -> Result<Response, Refusal> {
    let mut choices: Vec<Piece> = Vec::new();
    while let Some(written) = pieces.recv().await {
        let (piece, tokens) = written?;
        usage.generated += tokens;
        while choices.len() <= piece.index {
            choices.push(Piece { index: choices.len(), ..Piece::default() });
        }
        let index = piece.index;
        choices[index].extend(piece);
    }
    let mut answer = envelope.with(&choices);
    answer["usage"] = usage.object();
    Ok(Json(answer).into_response())
}

/// Returns the answer as it grows, as server-sent events; `usage` comes at the end if requested.
pub(super) fn streamed(
    envelope: Envelope,
    pieces: mpsc::Receiver<Written>,
    usage: Option<Usage>,
) -> Response {
    let begin = Streaming { envelope, pieces, usage, with_usage: usage.is_some(), done: false };
    let events = stream::unfold(begin, async |mut streaming| {
        let data = streaming.next().await?;
        Some((Ok::<_, Infallible>(Sent::default().data(data)), streaming))
    });
    Sse::new(events).into_response()
}

struct Streaming {
    envelope: Envelope,
    pieces: mpsc::Receiver<Written>,
    /// Counted so far; `None` once sent, or if not requested.
    usage: Option<Usage>,
    /// Whether every chunk has the field `usage`.
    with_usage: bool,
    done: bool,
}

impl Streaming {
    /// Returns the data of the next event.
    async fn next(&mut self) -> Option<String> {
        if self.done {
            return None;
        }
        while let Some(written) = self.pieces.recv().await {
            match written {
                Ok((piece, tokens)) => {
                    if let Some(usage) = &mut self.usage {
                        usage.generated += tokens;
                    }
                    if !piece.is_empty() {
                        return Some(self.chunk(&[piece], Value::Null));
                    }
                }
                Err(refusal) => {
                    self.done = true;
                    return Some(refusal.object().to_string());
                }
            }
        }
        if let Some(usage) = self.usage.take() {
            return Some(self.chunk(&[], usage.object()));
        }
        self.done = true;
        Some("[DONE]".to_owned())
    }

    fn chunk(&self, choices: &[Piece], usage: Value) -> String {
        let mut chunk = self.envelope.with(choices);
        if self.with_usage {
            chunk["usage"] = usage;
        }
        chunk.to_string()
    }
}
