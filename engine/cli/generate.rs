//! `samara generate`: continues a text and prints it as it grows.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use samara::files::write_whole;
use samara::instruments::document::{Environment, Start, Subject, VERSION};
use samara::sampler::{Sampler, SamplerOptions};
use samara::session::{Acceptance, Drafter, LoadTimes, Tokens};
use samara::stop::StopFilter;
use samara::tokenizer::Tokenizer;
use samara::{Error, Model, Session};

use super::draft::{self, DraftArgs};
use super::{
    COMMIT, Failure, ModelArgs, RuleArgs, SubmitArgs, TextArgs, TokenizerArgs, duration, files, note, running,
};

/// Continue a text
///
/// Prints the prompt and then what the model adds, token by token, until the model ends the text, the
/// context is full, or one of the limits below is met. Timing goes to standard error. Decoding is greedy unless
/// a sampling flag is given.
#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct GenerateArgs {
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    rules: RuleArgs,
    #[command(flatten)]
    tokenizer: TokenizerArgs,
    /// Add at most N tokens [default: until the model ends the text or the context is full]
    #[arg(short = 'n', long, value_name = "N")]
    tokens: Option<usize>,
    /// Stop before this text, which is not printed; may be given several times
    #[arg(long, value_name = "STRING", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Hold N tokens, prompt included [default: the model's whole context: 2048, the demo's 512]
    #[arg(long, value_name = "N")]
    ctx: Option<usize>,
    #[command(flatten)]
    submit: SubmitArgs,
    /// Write the times of the start, the prefill and the decoding to this JSON file
    #[arg(long, value_name = "OUT")]
    stats: Option<PathBuf>,
    /// Print the prompt's token ids and pieces on standard error
    #[arg(long)]
    verbose_prompt: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    drafting: DraftArgs,
}

#[derive(Args)]
#[command(next_help_heading = "Sampling (in this order)")]
struct SamplingArgs {
    /// Divide positive and multiply negative logits of tokens that occurred; 1 is off
    ///
    /// The published base models repeat themselves; Apple's examples use 1.2.
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repeat_penalty: f32,
    /// Apply the penalty to the last N tokens; 0 is all
    #[arg(long, value_name = "N", default_value_t = 0)]
    repeat_window: usize,
    /// Temperature; 0 takes the most likely token
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    temp: f32,
    /// Keep the K most likely tokens; 0 is off
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Keep the most likely tokens whose probabilities sum to P; 1 is off
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Keep tokens at least P times as likely as the most likely one; 0 is off
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Seed of the random numbers
    ///
    /// A random number depends on the seed and the position only.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

impl SamplingArgs {
    fn options(&self) -> SamplerOptions {
        SamplerOptions {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            repeat_window: self.repeat_window,
            seed: self.seed,
        }
    }
}

/// Runs the subcommand.
pub fn run(args: GenerateArgs) -> Result<(), Failure> {
    // Bad flags are reported before the model loads.
    let sampler = Sampler::new(args.sampling.options())?;
    let stops = StopFilter::new(args.stop)?;
    args.drafting.check()?;
    let per_submit = args.submit.tokens()?;
    let prompt = args.text.read()?;
    if prompt.is_empty() {
        return Err(Error::Input("the prompt is empty".to_owned()).into());
    }
    let tokenizer = args.tokenizer.load(&args.model.model)?;

    let start = Instant::now();
    let model = args.model.load(&args.rules)?;
    let mut session = model.session(args.ctx)?;
    let drafter = args.drafting.drafter(&model, &args.model, &args.rules, session.context())?;
    let loading = start.elapsed();

    let ids = tokenizer.encode(&prompt, Some(model.config().bos_token_id))?;
    if args.verbose_prompt {
        for &id in &ids {
            note(format_args!("{id:>6} {:?}", tokenizer.id_to_token(id).unwrap_or_default()));
        }
    }
    files::check_ids(&ids, model.config().vocab_size)?;
    if ids.len() > session.context() {
        let (prompt, context) = (ids.len(), session.context());
        return Err(
            Error::Input(format!("the prompt has {prompt} tokens: the context holds {context}")).into()
        );
    }

    let mut out = io::stdout().lock();
    out.write_all(prompt.as_bytes())?;
    out.flush()?;
    let limit = args.tokens.unwrap_or(usize::MAX);
    let how = How { sampler, limit, drafter, per_submit };
    let timing = continue_text(&tokenizer, &mut session, &ids, how, stops, &mut out)?;
    out.write_all(b"\n")?;
    out.flush()?;
    if !args.model.quiet {
        let LoadTimes { device, weights, pipelines } = model.load_times();
        let [loading, device, weights, pipelines] = [loading, device, weights, pipelines].map(duration);
        note(format_args!(
            "loaded in {loading} (device {device}, weights {weights}, pipelines in parallel {pipelines}); {timing}"
        ));
    }
    if let Some(path) = args.stats {
        let start = started(&model, &args.model.model, loading, &timing);
        write_whole(&path, start.to_json().as_bytes())?;
    }
    Ok(())
}

/// Returns the document of a run's times.
fn started(model: &Model, spec: &str, loading: Duration, timing: &Timing) -> Start {
    let LoadTimes { device, weights, pipelines } = model.load_times();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    Start {
        kind: "start".to_owned(),
        version: VERSION,
        environment: Environment::of(model.gpu(), COMMIT),
        subject: Subject::of(model, spec),
        device_ms: ms(device),
        weights_ms: ms(weights),
        pipelines_ms: ms(pipelines),
        load_ms: ms(loading),
        prompt: timing.prompt,
        prefill_ms: ms(timing.prefill),
        first_token_ms: timing.since_start.map(ms),
        generated: timing.tokens,
        decode_tok_s: (timing.tokens > 1).then(|| rate(timing.tokens - 1, timing.decode)),
    }
}

/// How a text is continued.
struct How {
    sampler: Sampler,
    /// Most tokens.
    limit: usize,
    drafter: Option<Drafter>,
    per_submit: Option<usize>,
}

impl How {
    /// Returns the tokens that follow.
    fn tokens(self, session: &mut Session) -> samara::Result<Tokens<'_>> {
        let mut tokens = session.generate(self.sampler).limit(self.limit);
        if let Some(count) = self.per_submit {
            tokens = tokens.tokens_per_submit(count)?;
        }
        match self.drafter {
            Some(drafter) => tokens.speculate(drafter),
            None => Ok(tokens),
        }
    }
}

/// Reads the prompt `ids` and prints what follows them.
fn continue_text(
    tokenizer: &Tokenizer,
    session: &mut Session,
    ids: &[u32],
    how: How,
    mut stops: StopFilter,
    out: &mut impl Write,
) -> Result<Timing, Failure> {
    let limit = how.limit;
    let mut stream = tokenizer.stream();
    for &id in ids {
        // Printed already; the stream has to know that the continuation does not begin a text.
        stream.push(id)?;
    }
    let start = Instant::now();
    session.prefill(ids)?;
    // Reading the logits waits for the GPU: without it, prefill would be counted as decoding.
    session.next_logits()?;
    let prefill = start.elapsed();

    let room = session.context().saturating_sub(ids.len());
    let (mut first, mut since_start, mut last, mut tokens, mut stop) = (None, None, prefill, 0, None);
    let mut new = how.tokens(session)?;
    for id in new.by_ref() {
        let text = stream.push(id?)?;
        last = start.elapsed();
        first.get_or_insert(last);
        since_start.get_or_insert_with(running);
        tokens += 1;
        let passed = stops.push(&text);
        out.write_all(passed.text.as_bytes())?;
        out.flush()?;
        if let Some(found) = passed.stop {
            stop = Some(format!("{found:?}"));
            break;
        }
    }
    if stop.is_none() {
        let mut rest = stops.push(&stream.finish());
        rest.text += &stops.finish();
        out.write_all(rest.text.as_bytes())?;
    }
    let end = stop.unwrap_or_else(|| match tokens {
        n if n >= limit => "--tokens".to_owned(),
        n if n >= room => "the context is full".to_owned(),
        _ => "the text ended".to_owned(),
    });
    let acceptance = new.acceptance();
    let (prompt, decode) = (ids.len(), last - prefill);
    Ok(Timing { prompt, prefill, first, since_start, tokens, decode, acceptance, end })
}

fn rate(tokens: usize, time: Duration) -> f64 {
    tokens as f64 / time.as_secs_f64().max(1e-9)
}

/// The statistics of a run.
struct Timing {
    prompt: usize,
    prefill: Duration,
    /// From the start of the prefill to the first new token.
    first: Option<Duration>,
    /// From the start of the program to the first new token.
    since_start: Option<Duration>,
    tokens: usize,
    /// From the end of the prefill to the last new token. The prefill computed the logits of the first, so
    /// this is the time of `tokens - 1` steps.
    decode: Duration,
    acceptance: Acceptance,
    end: String,
}

impl std::fmt::Display for Timing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let prefill = rate(self.prompt, self.prefill);
        write!(f, "prefill {} tokens, {prefill:.1} tok/s; ", self.prompt)?;
        if let (Some(first), Some(since_start)) = (self.first, self.since_start) {
            write!(f, "first token after {}, {} from the start; ", duration(first), duration(since_start))?;
        }
        write!(f, "decode {} tokens", self.tokens)?;
        if self.tokens > 1 {
            write!(f, ", {:.1} tok/s", rate(self.tokens - 1, self.decode))?;
        }
        if self.acceptance.steps > 0 {
            write!(f, "; {}", draft::summary(self.acceptance))?;
        }
        write!(f, "; stopped: {}", self.end)
    }
}
