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

/// Exit status of a program that was broken off, as shells tell it of Ctrl-C.
const INTERRUPTED: i32 = 130;

/// Serve a model over HTTP
///
/// Answers OpenAI's /v1/completions (also streamed, with echo, logprobs, stop and seed) and /v1/models, and has
/// /health and, for Prometheus, /metrics. Requests that come together decode together; an answer does not depend
/// on the others. The address is printed once the server is ready. Ctrl-C or SIGTERM ends it when what was begun
/// is answered, a second one at once.
#[derive(Args)]
pub struct ServeArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    rules: RuleArgs,
    #[command(flatten)]
    tokenizer: TokenizerArgs,
    /// Address to listen on; 0.0.0.0 is every one that the machine has
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 is a free one
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// What requests call the model [default: the last part of -m]
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
    /// Seconds that a client may take to send a request, or not to read an answer
    #[arg(long, value_name = "S", default_value_t = Options::default().read_timeout.as_secs())]
    patience: u64,
    /// Seconds that answers may take once the server is to end; the step under way then may take 30 more
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

/// Returns what waits until the program is asked to stop. A thread of its own ends it at once when it is asked again,
/// whatever the others do.
fn asked_to_stop() -> io::Result<impl Future<Output = ()>> {
    let (ask, asked) = oneshot::channel();
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            signal().await;
            // If the server has ended already, nobody waits.
            let _ = ask.send(());
            signal().await;
        });
        process::exit(INTERRUPTED);
    })?;
    Ok(async {
        let _ = asked.await;
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
    let stop = asked_to_stop()?;
    let mut out = io::stdout().lock();
    writeln!(out, "listening on http://{}", server.address())?;
    out.flush()?;
    drop(out);
    Ok(server.run(stop)?)
}
