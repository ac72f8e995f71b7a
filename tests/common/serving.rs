//! A server in this process, and a client of it.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::LazyLock;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use samara::model::demo;
use samara::server::{Options, Server};
use samara::tokenizer::Tokenizer;
use samara::{LoadOptions, Model};
use serde_json::Value;
use tokio::sync::oneshot;

static MODEL: LazyLock<Model> = LazyLock::new(|| Model::load("demo", LoadOptions::default()).unwrap());

/// The demo model, loaded once.
pub fn model() -> &'static Model {
    &MODEL
}

pub fn tokenizer() -> Tokenizer {
    Tokenizer::from_bytes(demo::TOKENIZER, "demo").unwrap()
}

/// A server on a free port; it ends when this is dropped.
pub struct Served {
    pub address: SocketAddr,
    client: Client,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<samara::Result<()>>>,
}

impl Deref for Served {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// Sends requests to a server.
pub struct Client {
    url: String,
    agent: ureq::Agent,
}

/// A status with the body that came with it.
pub struct Reply {
    pub status: u16,
    pub headers: ureq::http::HeaderMap,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    /// The body of an answer.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()
    }

    /// Checks that a request was refused, and returns the error object.
    pub fn refused(&self, status: u16, parts: &[&str]) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        let error = self.json()["error"].clone();
        let message = error["message"].as_str().unwrap();
        for part in parts {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
        error
    }
}

impl Served {
    pub fn start(options: Options) -> Self {
        Self::start_with(model(), options)
    }

    /// Serves a model whose tokens are those of the demo model, or some of them.
    pub fn start_with(model: &Model, options: Options) -> Self {
        let server = Server::bind("127.0.0.1:0", model, tokenizer(), options).unwrap();
        let (address, (stop, stopped)) = (server.address(), oneshot::channel::<()>());
        let thread = thread::spawn(move || {
            server.run(async {
                let _ = stopped.await;
            })
        });
        let client = Client::new(&format!("http://{address}"));
        Self { address, client, stop: Some(stop), thread: Some(thread) }
    }

    /// Asks the server to end.
    pub fn stop(&mut self) {
        self.stop.take();
    }

    /// Waits until it has ended.
    pub fn join(mut self) -> samara::Result<()> {
        self.stop();
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Client {
    pub fn new(url: &str) -> Self {
        let config = ureq::Agent::config_builder().http_status_as_error(false);
        // Connections are not kept alive, so that a dropped stream disconnects.
        let config = config.max_idle_connections(0).timeout_global(Some(Duration::from_secs(300)));
        Self { url: url.to_owned(), agent: config.build().into() }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    pub fn get(&self, path: &str) -> Reply {
        reply(self.agent.get(self.url(path)).call())
    }

    pub fn post(&self, path: &str, body: &str) -> Reply {
        reply(self.agent.post(self.url(path)).content_type("application/json").send(body))
    }

    pub fn complete(&self, body: &Value) -> Reply {
        self.post("/v1/completions", &body.to_string())
    }

    /// Begins to read a stream.
    pub fn stream(&self, body: &Value) -> Stream {
        let sent = self.agent.post(self.url("/v1/completions")).send(body.to_string());
        let response = sent.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Stream { lines: BufReader::new(Box::new(response.into_body().into_reader())) }
    }

    /// The value of a metric without labels, or with these.
    pub fn metric(&self, name: &str) -> f64 {
        let page = self.get("/metrics").body;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("`{name}` is not in:\n{page}")).parse().unwrap()
    }

    /// Waits until a metric has a value.
    pub fn wait_for(&self, name: &str, value: f64) {
        let start = Instant::now();
        while self.metric(name) != value {
            assert!(start.elapsed() < Duration::from_secs(60), "`{name}` is {}", self.metric(name));
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(thread::panicking() || ended.unwrap().is_ok());
        }
    }
}

fn reply(sent: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Reply {
    let mut response = sent.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = response.body_mut().with_config().limit(1 << 26).read_to_string().unwrap();
    Reply { status, headers, body }
}

/// Server-sent events as they come.
pub struct Stream {
    lines: BufReader<Box<dyn Read + Send>>,
}

impl Stream {
    /// The rest of the stream as one answer.
    pub fn whole(self) -> Value {
        put_together(self)
    }
}

/// Returns the chunks of a stream as one answer: choices with their texts and log-probabilities put together.
pub fn put_together(chunks: impl Iterator<Item = Value>) -> Value {
    let (mut choices, mut answer): (Vec<Value>, Value) = (Vec::new(), Value::Null);
    for chunk in chunks {
        assert!(chunk.get("error").is_none(), "{chunk}");
        for piece in chunk["choices"].as_array().unwrap() {
            match choices.iter_mut().find(|choice| choice["index"] == piece["index"]) {
                None => choices.push(piece.clone()),
                Some(choice) => extend(choice, piece),
            }
        }
        for field in ["id", "object", "model"] {
            assert!(answer.is_null() || answer[field] == chunk[field]);
        }
        answer = chunk;
    }
    choices.sort_by_key(|choice| choice["index"].as_u64());
    answer["choices"] = choices.into();
    answer
}

fn extend(choice: &mut Value, piece: &Value) {
    let text = format!("{}{}", choice["text"].as_str().unwrap(), piece["text"].as_str().unwrap());
    choice["text"] = text.into();
    if !piece["finish_reason"].is_null() {
        choice["finish_reason"] = piece["finish_reason"].clone();
    }
    if choice["logprobs"].is_null() {
        choice["logprobs"] = piece["logprobs"].clone();
    } else if let Some(more) = piece["logprobs"].as_object() {
        for (field, values) in more {
            let all = choice["logprobs"][field].as_array_mut().unwrap();
            all.extend(values.as_array().unwrap().iter().cloned());
        }
    }
}

impl Iterator for Stream {
    type Item = Value;

    /// The next event's data; `None` after the last, which has to be `[DONE]`.
    fn next(&mut self) -> Option<Value> {
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = self.lines.read_until(b'\n', &mut line).unwrap();
            assert!(read > 0, "the stream ended without [DONE]");
            // Every line consists of whole characters.
            let line = std::str::from_utf8(&line).unwrap().trim_end_matches('\n');
            match line.strip_prefix("data: ") {
                None => assert!(line.is_empty(), "{line}"),
                Some("[DONE]") => return None,
                Some(data) => return Some(serde_json::from_str(data).unwrap()),
            }
        }
    }
}
