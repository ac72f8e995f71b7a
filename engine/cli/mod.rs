//! The command line: one file per subcommand, and here what they share. No engine logic.

mod ablate;
mod bench;
mod compare;
mod devices;
mod draft;
mod files;
mod generate;
mod inspect;
mod kernel;
mod logits;
mod perplexity;
mod profile;
mod report;
mod score;
#[cfg(feature = "server")]
mod serve;
mod synth;
mod table;
mod tokenize;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use samara::gpu::{AdapterSummary, Gpu, GpuOptions, asked_tier, pipeline_folder};
use samara::instruments::document::{Ceilings, Environment};
use samara::kernels::{Shaders, Tier};
use samara::model::{Checkpoint, demo};
use samara::quant::Format;
use samara::session::{MAX_TOKENS_PER_SUBMIT, Progress};
use samara::tokenizer::Tokenizer;
use samara::{Backend, Error, Fusion, KvFormat, LoadOptions, Model};

/// The commit of this program, `-dirty` where it was changed since.
const COMMIT: &str = git_version::git_version!(args = ["--always", "--dirty=-dirty"], fallback = "unknown");

/// When the program began.
static BEGAN: OnceLock<Instant> = OnceLock::new();

/// Notes that the program began.
pub fn begin() {
    BEGAN.get_or_init(Instant::now);
}

/// Returns the time since the program began.
fn running() -> Duration {
    BEGAN.get_or_init(Instant::now).elapsed()
}

/// Run OpenELM language models on any GPU.
#[derive(Parser)]
#[command(version)]
pub struct Cli {
    #[command(flatten)]
    shaders: ShaderArgs,
    #[command(flatten)]
    tier: TierArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Generate(generate::GenerateArgs),
    Logits(logits::LogitsArgs),
    Tokenize(tokenize::TokenizeArgs),
    Perplexity(perplexity::PerplexityArgs),
    Score(score::ScoreArgs),
    Devices(devices::DevicesArgs),
    Inspect(inspect::InspectArgs),
    Synth(synth::SynthArgs),
    Bench(bench::BenchArgs),
    Profile(profile::ProfileArgs),
    Ablate(ablate::AblateArgs),
    Compare(compare::CompareArgs),
    Report(report::ReportArgs),
    #[cfg(feature = "server")]
    Serve(serve::ServeArgs),
    #[command(subcommand)]
    Kernel(kernel::KernelCommand),
}

impl Cli {
    /// Runs the subcommand.
    pub fn run(self) -> Result<(), Failure> {
        // Also for subcommands that run no kernel: a folder that cannot be used is a mistake.
        self.shaders.read()?;
        match self.command {
            Command::Generate(args) => generate::run(args),
            Command::Logits(args) => logits::run(args),
            Command::Tokenize(args) => tokenize::run(args),
            Command::Perplexity(args) => perplexity::run(args),
            Command::Score(args) => score::run(&args),
            Command::Devices(args) => devices::run(args),
            Command::Inspect(args) => inspect::run(args),
            Command::Synth(args) => synth::run(args),
            Command::Bench(args) => bench::run(&args),
            Command::Profile(args) => profile::run(&args),
            Command::Ablate(args) => ablate::run(&args),
            Command::Compare(args) => compare::run(&args),
            Command::Report(args) => report::run(&args),
            #[cfg(feature = "server")]
            Command::Serve(args) => serve::run(args),
            Command::Kernel(command) => kernel::run(&command),
        }
    }
}

/// Returns the arguments with llama-bench's `-pg`, which is no short flag of one letter, as `--pg`.
pub fn arguments(given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = given.collect();
    if arguments.get(1).is_some_and(|command| command == "bench") {
        arguments
            .iter_mut()
            .skip(2)
            .filter(|argument| *argument == "-pg")
            .for_each(|flag| *flag = "--pg".into());
    }
    arguments
}

/// Why a subcommand ended early.
#[derive(Debug)]
pub enum Failure {
    /// The library refused or failed.
    Run(Error),
    /// Standard output took no more.
    Output(io::Error),
    /// Everything went well, and what was measured became slower.
    Regression(String),
    /// Kernels compute something else than their references.
    Wrong(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(error) => error.fmt(f),
            Self::Output(error) => write!(f, "cannot write to standard output: {error}"),
            Self::Regression(what) => f.write_str(what),
            Self::Wrong(what) => f.write_str(what),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Run(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// Writes a line to standard error; that it may be closed is no reason to stop.
pub fn note(line: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Which model runs, and how: the flags of every subcommand that loads one.
#[derive(Args)]
struct ModelArgs {
    /// `demo` (built in), a directory with config.json and safetensors, or `synthetic:SIZE[:SEED]`
    #[arg(short, long, default_value = "demo")]
    model: String,
    /// Adapter: its number in `samara devices`, or a part of its name
    #[arg(long, value_name = "N|NAME")]
    adapter: Option<String>,
    /// Graphics API: vulkan, metal or dx12
    #[arg(long)]
    backend: Option<Backend>,
    /// Weight format on the GPU: f32, f16, bf16, q8_0 or q4_0 [default: as stored]
    #[arg(long)]
    format: Option<Format>,
    /// Number format of the KV cache: f16, f32 or q8_0
    #[arg(long, default_value_t)]
    kv: KvFormat,
    /// Workgroups that share the keys of a head from 768 keys on, 1 to 16 [default: 4, and 1 in software]
    #[arg(long, value_name = "N")]
    splits: Option<usize>,
    /// Most tokens of one prefill step, 1 to 4096 [default: 512 on matrix units, 64 in software, between on other GPUs]
    #[arg(long, value_name = "N")]
    prefill_chunk: Option<usize>,
    /// Print results only: no progress, no statistics
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    shaders: ShaderArgs,
    #[command(flatten)]
    tier: TierArgs,
}

/// Files in place of built-in shaders: a flag of the program, which every struct that needs it repeats; clap
/// hands its value down wherever it was given.
#[derive(Args, Clone)]
struct ShaderArgs {
    /// Run the .wgsl files below DIR in place of the built-in ones of the same relative path
    #[arg(long, value_name = "DIR", global = true)]
    shaders: Option<PathBuf>,
}

/// Which variants of the kernels run: a flag of the program, as the one above.
#[derive(Args, Clone, Copy)]
struct TierArgs {
    /// Kernel variants: plain, f16, subgroup, coop or int8 [default: SAMARA_TIER, or what the adapter offers]
    #[arg(long, value_name = "NAME", global = true)]
    tier: Option<Tier>,
}

impl TierArgs {
    /// Returns the tier that was asked for, by the flag or in the environment.
    fn asked(self) -> samara::Result<Option<Tier>> {
        self.tier.map_or_else(asked_tier, |tier| Ok(Some(tier)))
    }

    /// Opens an adapter at the tier.
    fn open(self, adapter: Option<&str>, backend: Option<Backend>) -> samara::Result<Gpu> {
        let (adapter, tier) = (adapter.map(str::to_owned), self.asked()?);
        Gpu::open_with(&GpuOptions { adapter, backend, tier, ..GpuOptions::default() })
    }
}

impl ShaderArgs {
    /// Reads the files; nothing is replaced without the flag.
    fn read(&self) -> samara::Result<Shaders> {
        match self.shaders.as_deref() {
            None => Ok(Shaders::default()),
            Some(folder) if folder.is_dir() => Shaders::read(folder),
            Some(folder) => Err(Error::Input(format!("--shaders `{}` is no directory", folder.display()))),
        }
    }
}

impl ModelArgs {
    /// Loads the model, with a progress bar where someone sees it.
    fn load(&self, rules: &RuleArgs) -> samara::Result<Model> {
        self.load_with(LoadOptions { fusion: rules.fusion()?, ..self.options() })
    }

    /// Returns how the flags ask for the model to be loaded, every fusion rule on; the shaders follow when it is.
    fn options(&self) -> LoadOptions {
        LoadOptions {
            format: self.format,
            kv: self.kv,
            splits: self.splits,
            prefill_chunk: self.prefill_chunk,
            adapter: self.adapter.clone(),
            backend: self.backend,
            tier: self.tier.tier,
            ..LoadOptions::default()
        }
    }

    /// Loads the model with other options than the flags alone give.
    fn load_with(&self, options: LoadOptions) -> samara::Result<Model> {
        let model = self.load_from(&self.model, None, options)?;
        if !self.quiet {
            warn_of_software(model.adapter());
        }
        Ok(model)
    }

    /// Loads another model onto the device of the first.
    fn load_beside(&self, model: &Model, spec: &str, rules: &RuleArgs) -> samara::Result<Model> {
        self.load_from(spec, Some(model), LoadOptions { fusion: rules.fusion()?, ..self.options() })
    }

    fn load_from(&self, spec: &str, beside: Option<&Model>, options: LoadOptions) -> samara::Result<Model> {
        let bar = self.bar("loading", "{bytes} of {total_bytes}");
        let shown = bar.clone();
        let progress = move |done, total| {
            shown.set_length(total);
            shown.set_position(done);
        };
        let (shaders, progress) = (self.shaders.read()?, Some(Box::new(progress) as Progress));
        let options = LoadOptions { shaders, progress, pipelines: pipeline_folder()?, ..options };
        let model = match beside {
            Some(model) => model.load_beside(spec, options),
            None => Model::load(spec, options),
        };
        bar.finish_and_clear();
        model
    }

    fn bar(&self, label: &'static str, counts: &str) -> ProgressBar {
        bar(self.quiet, label, counts)
    }
}

/// Refuses a number of tokens that no submission has.
fn check_tokens_per_submit(tokens: Option<usize>) -> samara::Result<()> {
    match tokens {
        Some(tokens) if !(1..=MAX_TOKENS_PER_SUBMIT).contains(&tokens) => {
            Err(Error::Input(format!("--tokens-per-submit {tokens}: expected 1 to {MAX_TOKENS_PER_SUBMIT}")))
        }
        _ => Ok(()),
    }
}

/// Which fusion rules are on: the flag of the subcommands that run one choice of them.
#[derive(Args)]
struct RuleArgs {
    /// Switch off a fusion rule: matmul-swiglu, norm-matvec, matvec-add, add-rms-norm, qk-norm-rope-attention,
    /// qk-norm-rope or `all` of them; or rms-norm, which makes RMSNorm itself a chain of elementary kernels. May
    /// be given several times
    #[arg(long, value_name = "RULE")]
    no_fuse: Vec<String>,
}

impl RuleArgs {
    /// Returns the rules that are on.
    fn fusion(&self) -> samara::Result<Fusion> {
        self.no_fuse.iter().try_fold(Fusion::all(), |fusion, rule| fusion.without(rule))
    }
}

/// Returns a progress bar on standard error; it stays hidden when that is no terminal, or when `quiet`.
fn bar(quiet: bool, label: &'static str, counts: &str) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(&format!("{{prefix}} [{{bar:30}}] {counts}"))
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style.progress_chars("=> ")).with_prefix(label)
}

/// Says so where an adapter is a program on the CPU.
fn warn_of_software(adapter: &AdapterSummary) {
    if adapter.software {
        note(format_args!("warning: `{}` is a software adapter: this runs on the CPU", adapter.name));
    }
}

/// Says where, how and with what something is measured.
fn introduce(environment: &Environment) {
    let Environment { adapter, backend, driver, tier, clock, commit, tuned, replaced_shaders, .. } =
        environment;
    note(format_args!("{adapter}, {backend}, {driver}"));
    note(format_args!("tier {tier}, clock {clock}, {tuned} tuned shapes, commit {commit}"));
    if !replaced_shaders.is_empty() {
        note(format_args!("replaced shaders: {}", replaced_shaders.join(", ")));
    }
}

/// Says the same, and what the adapter can do at most.
fn announce(environment: &Environment, ceilings: &Ceilings) {
    introduce(environment);
    let matrix = ceilings.matrix_gflop_s.map(|rate| format!(", matrix units {rate:.0} GFLOP/s"));
    note(format_args!(
        "measured ceilings: copy {:.1} GB/s, multiply-adds {:.0} GFLOP/s{}",
        ceilings.copy_gb_s,
        ceilings.fma_gflop_s,
        matrix.unwrap_or_default()
    ));
}

/// Where the tokenizer comes from: a flag of the subcommands that read or print text.
#[derive(Args)]
struct TokenizerArgs {
    /// A tokenizer.json [default: the one in the model's directory]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
}

impl TokenizerArgs {
    /// Loads the tokenizer for the model `spec`.
    fn load(&self, spec: &str) -> samara::Result<Tokenizer> {
        if let Some(file) = &self.tokenizer {
            return Tokenizer::from_file(file);
        }
        if spec == "demo" {
            return Tokenizer::from_bytes(demo::TOKENIZER, "the demo model's tokenizer");
        }
        let missing = |what: &str| Error::Input(format!("{what} has no tokenizer: give --tokenizer FILE"));
        if spec.starts_with("synthetic:") {
            return Err(missing(&format!("the model `{spec}`")));
        }
        let directory = Path::new(spec);
        if !directory.is_dir() {
            // The model is missing, which says more than that its tokenizer is.
            Checkpoint::source(spec)?;
        }
        let file = directory.join("tokenizer.json");
        if !file.exists() {
            return Err(missing(&format!("the model directory `{spec}`")));
        }
        Tokenizer::from_file(file)
    }
}

/// Text from an argument, a file or standard input.
#[derive(Args)]
struct TextArgs {
    /// The text; without it and without -f, standard input is read to its end
    #[arg(value_name = "PROMPT", conflicts_with = "file")]
    text: Option<String>,
    /// Read the text from FILE, every byte of it, also a last line break
    #[arg(short, long)]
    file: Option<PathBuf>,
}

impl TextArgs {
    /// Returns the text.
    fn read(self) -> samara::Result<String> {
        match (self.text, self.file) {
            (Some(text), _) => Ok(text),
            (None, Some(file)) => files::read_text(&file),
            (None, None) => files::read_stdin(),
        }
    }
}

/// Returns a duration for people: milliseconds below a second.
fn duration(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds < 1.0 => format!("{:.1} ms", seconds * 1e3),
        seconds => format!("{seconds:.2} s"),
    }
}
