//! `samara serve`: answers completion requests over HTTP.

use std::future::Future;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;
use std::{process, thread};

use clap::Args;
use samara::server::{Options, Server, signal};
use tokio::runtime;
use tokio::sync::oneshot;

use super::{Failure, ModelArgs, RuleArgs, TokenizerArgs};

/// Exit status of an interrupted program, as shells report it for Ctrl-C.
const INTERRUPTED: i32 = 130;

/// Serve a model over HTTP
///
/// Answers OpenAI's /v1/completions (text or token ids; streamed; echo, logprobs, stop, seed; also top_k, min_p and
/// repeat_penalty) and /v1/models, and has /health, /metrics (Prometheus), /tokenizer_info, /tokenize and /detokenize.
/// Requests that arrive together are decoded together; an answer does not depend on the others. The address is printed
/// once the server is ready. Ctrl-C or SIGTERM drains in-flight requests for at most --drain seconds; a second one
/// stops immediately.
#[derive(Args)]
pub struct ServeArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    rules: RuleArgs,
    #[command(flatten)]
    tokenizer: TokenizerArgs,
    /// Address to listen on; 0.0.0.0 is every address of the machine
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Name of the model in requests [default: the last part of -m]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    limits: Limits,
}

#[derive(Args)]
#[command(next_help_heading = "Limits")]
struct Limits {
    /// Decode at most N sequences together, 1 to 64
    #[arg(long, value_name = "N", default_value_t = Options::default().sequences)]
    sequences: usize,
    /// Hold N tokens for each sequence, prompt included [default: the model's whole context]
    #[arg(long, visible_alias = "ctx", value_name = "N")]
    context: Option<usize>,
    /// Let at most N prompts wait; with more, requests are refused with status 429
    #[arg(long, value_name = "N", default_value_t = Options::default().queue)]
    queue: usize,
    /// Refuse requests for more than N tokens [default: the context is the limit]
    #[arg(long, value_name = "N")]
    max_tokens_limit: Option<usize>,
    /// Refuse requests with more than N prompts
    #[arg(long, value_name = "N", default_value_t = Options::default().prompts)]
    prompts: usize,
    /// Refuse requests of more than N bytes
    #[arg(long, value_name = "N", default_value_t = Options::default().body_bytes)]
    body_bytes: usize,
    /// Hold at most N connections; further ones wait
    #[arg(long, value_name = "N", default_value_t = Options::default().connections)]
    connections: usize,
    /// Seconds that a client may take to send a request, or may leave an answer unread
    #[arg(long, value_name = "S", default_value_t = Options::default().read_timeout.as_secs())]
    patience: u64,
    /// Seconds that in-flight answers may take once the server is to stop; the running step may take 30 more
    #[arg(long, value_name = "S", default_value_t = Options::default().drain.as_secs())]
    drain: u64,
}

impl ServeArgs {
    fn options(&self) -> Options {
        let Limits { sequences, context, queue, max_tokens_limit, prompts, body_bytes, connections, .. } =
            self.limits;
        let patience = Duration::from_secs(self.limits.patience);
        Options {
            name: self.name.clone().unwrap_or_else(|| name(&self.model.model)),
            sequences,
            context,
            queue,
            max_tokens: max_tokens_limit,
            prompts,
            body_bytes,
            connections,
            read_timeout: patience,
            write_timeout: patience,
            drain: Duration::from_secs(self.limits.drain),
        }
    }
}

/// Returns the last part of a path.
fn name(spec: &str) -> String {
    Path::new(spec).file_name().map_or_else(|| spec.to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Returns a future of the first request to stop. A separate thread ends the program at the second one, whatever other
/// threads do.
fn stop_requested() -> io::Result<impl Future<Output = ()>> {
    let (sender, receiver) = oneshot::channel();
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            signal().await;
            // The receiver is gone if the server has already ended.
            let _ = sender.send(());
            signal().await;
        });
        process::exit(INTERRUPTED);
    })?;
    Ok(async {
        let _ = receiver.await;
    })
}

/// Runs the subcommand.
pub fn run(args: ServeArgs) -> Result<(), Failure> {
    let options = args.options();
    options.check()?;
    let tokenizer = args.tokenizer.load(&args.model.model)?;
    let model = args.model.load(&args.rules)?;
    let address = format!("{}:{}", args.host, args.port);
    let server = Server::bind(&address, &model, tokenizer, options)?;
    let stop = stop_requested()?;
    let mut out = io::stdout().lock();
    writeln!(out, "listening on http://{}", server.address())?;
    out.flush()?;
    drop(out);
    Ok(server.run(stop)?)
}
