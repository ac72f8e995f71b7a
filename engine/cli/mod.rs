//! The command line: the program here, one file per subcommand, and files for what they share. No engine logic.

mod ablate;
mod bench;
mod compare;
mod devices;
mod draft;
mod failure;
mod files;
mod generate;
mod inspect;
mod kernel;
mod logits;
mod messages;
mod options;
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
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};

pub use failure::Failure;
pub use messages::note;
use messages::{announce, bar, duration, introduce, warn_of_software};
use options::{ModelArgs, RuleArgs, RunArgs, ShaderArgs, SubmitArgs, TextArgs, TierArgs, TokenizerArgs};

/// The commit of this program, with `-dirty` if the source was changed since.
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

/// The text of `samara --help` after the subcommands.
const AFTER_HELP: &str = "\
Environment:
  SAMARA_TIER           Kernel variants, as --tier
  SAMARA_TUNE=off       Ignore what `samara kernel tune` found
  SAMARA_PIPELINES=off  Neither use nor keep the pipelines that the driver compiled
  SAMARA_LOG            Log to standard error: `info`, `samara=debug` [default: warn]

Exit codes:
  0  Success
  1  A failure while running, wrong kernels or a regression
  2  A mistake in the input, or results that cannot be compared";

/// Run OpenELM language models on any GPU.
#[derive(Parser)]
#[command(version, after_help = AFTER_HELP)]
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
        // Subcommands that run no kernel check this too: a folder that cannot be read is always an error.
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

/// Returns the arguments with llama-bench's `-pg` as `--pg`: clap's short flags have one letter.
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
