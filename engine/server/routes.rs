//! The routes and what answers them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use prometheus_client::registry::Registry;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::Options;
use super::answer::{Piece, Writer};
use super::health::Health;
use super::metrics::{self, Answer, Metrics};
use super::queue::{Event, Queue};
use super::refusal::Refusal;
use super::request::{Asked, Checks, How, Prompt, parse};
use super::response::{Envelope, Usage, Written, gathered, streamed};
use crate::tokenizer::Tokenizer;

/// Pieces of an answer buffered for a client that reads slowly; the rest waits as tokens.
const PIECES: usize = 16;

/// The state that all requests share.
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) tokenizer: Tokenizer,
    pub(super) bos: u32,
    pub(super) eos: u32,
    pub(super) vocab: usize,
    pub(super) context: usize,
    /// Bytes of the longest token.
    pub(super) token_bytes: usize,
    /// One permit per CPU core, for CPU-bound work.
    pub(super) cpus: Semaphore,
    pub(super) queue: Queue,
    pub(super) metrics: Metrics,
    pub(super) registry: Registry,
    pub(super) health: Arc<Health>,
    /// Seconds since 1970 when the server started.
    pub(super) created: u64,
    pub(super) answered: AtomicU64,
}

/// Returns the router of a server.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    let unknown = async |request: Request| Refusal::unknown_path(request.uri().path());
    let method = async |request: Request| Refusal::method(request.method().as_str(), request.uri().path());
    Router::new()
        .route("/v1/completions", post(completions))
        .route("/v1/models", get(models))
        .route("/health", get(health))
        .route("/metrics", get(page))
        .route("/tokenizer_info", get(tokenizer_info))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .method_not_allowed_fallback(method)
        .fallback(unknown)
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), count))
        .with_state(shared)
}

/// Counts answers by status, and requests whose client disconnected first.
async fn count(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    struct Counted<'a>(&'a Metrics, Answer);
    impl Drop for Counted<'_> {
        fn drop(&mut self) {
            self.0.answers.get_or_create(&self.1).inc();
            tracing::info!("{} {}", self.1.path, self.1.status);
        }
    }
    let path = match request.uri().path() {
        "/v1/completions" => "/v1/completions",
        "/v1/models" => "/v1/models",
        "/health" => "/health",
        "/metrics" => "/metrics",
        "/tokenizer_info" => "/tokenizer_info",
        "/tokenize" => "/tokenize",
        "/detokenize" => "/detokenize",
        _ => "other",
    };
    let mut counted = Counted(&shared.metrics, Answer { path, status: 499 });
    let response = next.run(request).await;
    counted.1.status = response.status().as_u16();
    response
}

async fn models(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let Options { name, .. } = &shared.options;
    let model = json!({
        "id": name, "object": "model", "created": shared.created, "owned_by": "samara", "max_model_len": shared.context,
    });
    Json(json!({"object": "list", "data": [model]}))
}

async fn health(State(shared): State<Arc<Shared>>) -> Response {
    match shared.health.fault() {
        None => Json(json!({"status": "ready"})).into_response(),
        Some(fault) => {
            let body = Json(json!({"status": "failing", "message": fault}));
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
    }
}

async fn page(State(shared): State<Arc<Shared>>) -> Response {
    shared.metrics.queued.set(shared.queue.len() as i64);
    match metrics::page(&shared.registry) {
        Ok(page) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], page).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// In vLLM's form, so that clients such as lm-evaluation-harness need no local tokenizer.
async fn tokenizer_info(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let token = |id| shared.tokenizer.id_to_token(id);
    Json(json!({
        "bos_token": token(shared.bos), "eos_token": token(shared.eos), "model_max_length": shared.context,
    }))
}

#[derive(Deserialize)]
struct Tokenize {
    prompt: String,
    add_special_tokens: Option<bool>,
}

async fn tokenize(State(shared): State<Arc<Shared>>, request: Request) -> Result<Json<Value>, Refusal> {
    let body = shared.body(request).await?;
    shared
        .compute(|| {
            let Tokenize { prompt, add_special_tokens } = parse(&body)?;
            let bos = add_special_tokens.unwrap_or(true).then_some(shared.bos);
            let tokens = shared.tokenizer.encode(&prompt, bos);
            let tokens = tokens.map_err(|e| Refusal::field("prompt", e.to_string()))?;
            Ok(Json(json!({"tokens": tokens, "count": tokens.len(), "max_model_len": shared.context})))
        })
        .await
}

#[derive(Deserialize)]
struct Detokenize {
    tokens: Vec<u32>,
}

async fn detokenize(State(shared): State<Arc<Shared>>, request: Request) -> Result<Json<Value>, Refusal> {
    let body = shared.body(request).await?;
    shared
        .compute(|| {
            let Detokenize { tokens } = parse(&body)?;
            let text =
                shared.tokenizer.decode(&tokens).map_err(|e| Refusal::field("tokens", e.to_string()))?;
            Ok(Json(json!({"prompt": text})))
        })
        .await
}

async fn completions(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, Refusal> {
    let body = shared.body(request).await?;
    let asked = shared.compute(|| shared.checks().asked(&body)).await?;
    drop(body);
    let envelope = shared.envelope();
    let Asked { prompts, how, stream, usage } = asked;
    let ids = prompts.iter().map(|prompt| prompt.ids.clone()).collect();
    let replies = shared.queue.push(ids, &how)?;
    let (pieces, out) = mpsc::channel(PIECES);
    let counts = Usage { prompt: prompts.iter().map(|prompt| prompt.ids.len()).sum(), generated: 0 };
    for (index, (prompt, events)) in prompts.into_iter().zip(replies).enumerate() {
        let choice =
            Choice { shared: Arc::clone(&shared), index, prompt, how: how.clone(), pieces: pieces.clone() };
        tokio::spawn(choice.write(events));
    }
    drop(pieces);
    if stream {
        Ok(streamed(envelope, out, usage.then_some(counts)))
    } else {
        gathered(envelope, out, counts).await
    }
}

impl Shared {
    /// Reads a body within the limits of size and time.
    async fn body(&self, request: Request) -> Result<Bytes, Refusal> {
        let Options { body_bytes, read_timeout, .. } = self.options;
        let body = Limited::new(request.into_body(), body_bytes);
        let read = timeout(read_timeout, Body::new(body).collect()).await;
        match read.map_err(|_| Refusal::too_slow(read_timeout.as_secs_f64()))? {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if is_too_large(&error) => Err(Refusal::too_large(body_bytes)),
            Err(error) => Err(Refusal::invalid(format!("the body of the request broke off: {error}"))),
        }
    }

    /// Runs CPU-bound work, for at most as many requests at once as there are CPU cores.
    async fn compute<T>(&self, work: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Refusal> {
        let _cpu = self.cpus.acquire().await.map_err(|_| Refusal::stopped())?;
        tokio::task::block_in_place(work)
    }

    fn checks(&self) -> Checks<'_> {
        let Self { tokenizer, bos, vocab, context, token_bytes, options, .. } = self;
        Checks { tokenizer, bos: *bos, vocab: *vocab, context: *context, token_bytes: *token_bytes, options }
    }

    fn envelope(&self) -> Envelope {
        let id = format!("cmpl-{}-{}", self.created, self.answered.fetch_add(1, Ordering::Relaxed));
        Envelope { id, created: super::now(), model: self.options.name.clone() }
    }
}

/// Returns whether a body ended because it was longer than allowed.
fn is_too_large(error: &axum::Error) -> bool {
    let mut error: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(this) = error {
        if this.is::<LengthLimitError>() {
            return true;
        }
        error = this.source();
    }
    false
}

/// Turns the events of one prompt into pieces. It ends when nobody reads them, and ends the sequence too.
struct Choice {
    shared: Arc<Shared>,
    index: usize,
    prompt: Prompt,
    how: How,
    pieces: mpsc::Sender<Written>,
}

impl Choice {
    async fn write(self, mut events: mpsc::Receiver<Event>) {
        if let Err(refusal) = self.try_write(&mut events).await {
            let _ = self.pieces.send(Err(refusal)).await;
        }
        if self.pieces.is_closed() {
            self.shared.metrics.cancelled.inc();
        }
    }

    async fn try_write(&self, events: &mut mpsc::Receiver<Event>) -> Result<(), Refusal> {
        let failed = |error| Refusal::failed(&error);
        let mut writer = Writer::new(self.index, &self.shared.tokenizer, &self.how).map_err(failed)?;
        if !self.how.scores_prompt() {
            let echo = writer.prompt(&self.prompt, self.how.echo, None).map_err(failed)?;
            if let Some(echo) = echo
                && !self.send(echo, 0).await
            {
                return Ok(());
            }
        }
        loop {
            let event = tokio::select! {
                biased;
                () = self.pieces.closed() => return Ok(()),
                event = events.recv() => event.ok_or_else(Refusal::stopped)?,
            };
            let (piece, tokens) = match event {
                Event::Prompt(scores) => {
                    let piece = writer.prompt(&self.prompt, true, Some(&scores)).map_err(failed)?;
                    (piece.unwrap_or_default(), 0)
                }
                Event::Token(id, score) => (writer.token(id, score.as_ref()).map_err(failed)?, 1),
                Event::End(reason) => {
                    self.send(writer.end(reason), 0).await;
                    return Ok(());
                }
                Event::Failed(refusal) => return Err(refusal),
            };
            let ended = piece.finish_reason.is_some();
            if !self.send(piece, tokens).await || ended {
                return Ok(());
            }
        }
    }

    /// Sends a piece, and returns whether somebody still reads.
    async fn send(&self, piece: Piece, tokens: usize) -> bool {
        self.pieces.send(Ok((piece, tokens))).await.is_ok()
    }
}
