//! An HTTP server with OpenAI's `/v1/completions` on a model.
//!
#![doc = include_str!("README.md")]

mod answer;
mod connections;
mod health;
mod metrics;
mod queue;
mod refusal;
mod request;
mod response;
mod routes;
mod scheduler;

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use socket2::SockRef;
use tokio::sync::{Semaphore, oneshot};

use crate::error::{Error, Result};
use crate::kernels::MOST_TOKENS;
use crate::session::Model;
use crate::tokenizer::Tokenizer;
use health::Health;
use metrics::Metrics;
use queue::Queue;
use routes::Shared;
use scheduler::Scheduler;

/// Most prompts that are scored in one step.
const SCORED_TOGETHER: usize = 16;

/// Bytes of an answer that the system buffers for a client: few, so that one that does not read is found out soon.
const SENT_BYTES: usize = 256 << 10;
/// How long the engine may take to end after the last connection: enough for the longest step, or for scoring prompts.
const LAST_STEP: Duration = Duration::from_secs(30);
/// Largest limits that can be set: counts, bytes and seconds.
const MOST_COUNT: usize = 1 << 20;
const MOST_BYTES: usize = 1 << 30;
const MOST_SECONDS: u64 = 24 * 60 * 60;

/// Limits of a server, and the name of its model.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Name of the model in requests.
    pub name: String,
    /// Most sequences that decode together, 1 to 64.
    pub sequences: usize,
    /// Most tokens of a sequence, prompt included; without a number, as many as the model was trained for.
    pub context: Option<usize>,
    /// Most prompts that wait; with more, requests are refused.
    pub queue: usize,
    /// Most tokens of an answer; without a number the context is the limit.
    pub max_tokens: Option<usize>,
    /// Most prompts of one request.
    pub prompts: usize,
    /// Most bytes of the body of a request.
    pub body_bytes: usize,
    /// Most connections; further ones wait.
    pub connections: usize,
    /// How long the head of a request may take to arrive, and then its body.
    pub read_timeout: Duration,
    /// How long a client may leave an answer unread.
    pub write_timeout: Duration,
    /// How long in-flight answers may take once the server is to stop.
    pub drain: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: "samara".to_owned(),
            sequences: 16,
            context: None,
            queue: 128,
            max_tokens: None,
            prompts: 64,
            body_bytes: 1 << 20,
            connections: 256,
            read_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            drain: Duration::from_secs(30),
        }
    }
}

impl Options {
    /// Rejects limits under which nothing could be answered, or that limit nothing.
    ///
    /// # Errors
    /// [`Error::Input`] when one is 0 or too large, named as the command line names it: counts are at most 2^20, bytes
    /// 2^30 and seconds those of a day, sequences 64.
    pub fn check(&self) -> Result<()> {
        let Self { sequences, queue, prompts, body_bytes, connections, .. } = *self;
        if !(1..=MOST_TOKENS).contains(&sequences) {
            return Err(Error::Input(format!("--sequences {sequences}: expected 1 to {MOST_TOKENS}")));
        }
        let counts = [
            ("queue", queue, MOST_COUNT),
            ("prompts", prompts, MOST_COUNT),
            ("body-bytes", body_bytes, MOST_BYTES),
            ("connections", connections, MOST_COUNT),
        ];
        if let Some((flag, count, most)) =
            counts.into_iter().find(|&(_, count, most)| !(1..=most).contains(&count))
        {
            return Err(Error::Input(format!("--{flag} {count}: expected 1 to {most}")));
        }
        let patience = [self.read_timeout, self.write_timeout];
        let most = Duration::from_secs(MOST_SECONDS);
        if let Some(time) = patience.into_iter().find(|time| time.is_zero() || *time > most) {
            let seconds = time.as_secs();
            return Err(Error::Input(format!("--patience {seconds}: expected 1 to {MOST_SECONDS} seconds")));
        }
        if self.drain > most {
            let seconds = self.drain.as_secs();
            return Err(Error::Input(format!("--drain {seconds}: expected 0 to {MOST_SECONDS} seconds")));
        }
        Ok(())
    }
}

/// A model that is ready for requests.
///
/// # Examples
/// ```no_run
/// # fn main() -> samara::Result<()> {
/// use samara::server::{Options, Server};
/// use samara::tokenizer::Tokenizer;
///
/// let model = samara::Model::load("demo", samara::LoadOptions::default())?;
/// let tokenizer = Tokenizer::from_bytes(samara::model::demo::TOKENIZER, "demo")?;
/// let server = Server::bind("127.0.0.1:0", &model, tokenizer, Options::default())?;
/// println!("http://{}", server.address());
/// server.run(samara::server::signal())
/// # }
/// ```
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
    engine: JoinHandle<()>,
    /// The engine drops the senders when it ends.
    ended: oneshot::Receiver<()>,
    done: mpsc::Receiver<()>,
}

impl Server {
    /// Listens on an address such as `127.0.0.1:8080`, port 0 for a free one, and warms up the model
    /// ([`BatchSession::prepare`](crate::BatchSession::prepare), [`Scorer::prepare`](crate::Scorer::prepare)).
    ///
    /// # Errors
    /// When an option is out of range, the address is not available, or the device lacks memory for the caches.
    pub fn bind(address: &str, model: &Model, tokenizer: Tokenizer, options: Options) -> Result<Self> {
        options.check()?;
        let taken = |e| Error::io("listen on", address, e);
        let listener = TcpListener::bind(address).map_err(taken)?;
        listener.set_nonblocking(true).map_err(taken)?;
        // Connections inherit it from the listener.
        SockRef::from(&listener).set_send_buffer_size(SENT_BYTES).map_err(taken)?;
        let address = listener.local_addr().map_err(taken)?;
        // Clients that connect during the warm-up wait; requests do not wait for it later.
        let mut batch = model.batch(options.sequences, options.context)?;
        batch.prepare()?;
        let mut scorer = model.scorer(options.sequences.min(SCORED_TOGETHER), Some(batch.context()))?;
        scorer.prepare()?;
        let (metrics, registry) = Metrics::new();
        let (queue, backlog) = Queue::new(options.queue);
        let health = Arc::new(Health::default());
        let config = model.config();
        let cpus = thread::available_parallelism().map_or(1, NonZero::get);
        let shared = Shared {
            token_bytes: longest(&tokenizer),
            tokenizer,
            cpus: Semaphore::new(cpus),
            bos: config.bos_token_id,
            eos: config.eos_token_id,
            vocab: config.vocab_size,
            context: batch.context(),
            queue,
            metrics: metrics.clone(),
            registry,
            health: Arc::clone(&health),
            created: now(),
            answered: AtomicU64::new(0),
            options,
        };
        let scheduler = Scheduler::new(model, batch, scorer, backlog, metrics, health);
        let ((alive, ended), (works, done)) = (oneshot::channel(), mpsc::channel());
        let engine = thread::Builder::new().name("engine".to_owned()).spawn(move || {
            let _alive: (oneshot::Sender<()>, mpsc::Sender<()>) = (alive, works);
            scheduler.run();
        });
        let engine = engine.map_err(|e| Error::io("start", "the engine's thread", e))?;
        Ok(Self { listener, address, shared: Arc::new(shared), engine, ended, done })
    }

    /// Returns the address that the server listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers requests until `stop`, then finishes those in flight, for at most [`Options::drain`]. The running step
    /// may take half a minute more.
    ///
    /// # Errors
    /// When the system provides no threads, the engine panicked, or it still runs half a minute after the last
    /// connection; then its thread keeps running.
    pub fn run(self, stop: impl Future<Output = ()>) -> Result<()> {
        let Self { listener, address, shared, engine, ended, done } = self;
        let failed = |e| Error::io("listen on", address.to_string(), e);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(failed)?;
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
            let stop = async {
                tokio::select! {
                    () = stop => {}
                    _ = ended => {}
                }
            };
            let router = routes::router(Arc::clone(&shared));
            connections::serve(listener, router, &shared.options, &shared.metrics, stop).await;
            Ok(())
        })?;
        // This drops the remaining connections, so that no job can arrive any more.
        runtime.shutdown_timeout(Duration::from_secs(1));
        drop(shared);
        if done.recv_timeout(LAST_STEP) == Err(RecvTimeoutError::Timeout) {
            let seconds = LAST_STEP.as_secs();
            return Err(Error::Gpu(format!(
                "the device was still busy {seconds} seconds after the last answer"
            )));
        }
        engine.join().map_err(|_| Error::Gpu("the engine panicked: standard error says why".to_owned()))
    }
}

/// Waits for a request to stop: Ctrl-C, or on Unix SIGTERM.
pub async fn signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}

/// Returns the most bytes of text that one token stands for, as the vocabulary spells it or as it is decoded.
fn longest(tokenizer: &Tokenizer) -> usize {
    let bytes = |id| {
        let spelled = tokenizer.id_to_token(id).map_or(0, |token| token.len());
        tokenizer.bytes(id).map_or(0, |bytes| bytes.len()).max(spelled)
    };
    (0..tokenizer.vocab_size() as u32).map(bytes).max().unwrap_or(1)
}

/// Returns the seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
