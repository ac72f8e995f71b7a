//! `samara bench`: throughput of models, in llama-bench's terms.

mod rows;

use std::str::FromStr;

use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use samara::Error;
use samara::gpu::{self, AdapterSummary};
use samara::instruments::bench::{Repetitions, Test, bench};
use samara::instruments::document::{Ceilings, Environment, Subject};
use samara::instruments::{ceilings, verify};
use samara::kernels::MOST_TOKENS;
use samara::model::Checkpoint;
use samara::quant::Format;

use super::{COMMIT, Failure, ModelArgs, RuleArgs, RunArgs, SubmitArgs, bar, note};
use rows::Rows;

/// Measure the throughput of models
///
/// `pp` is a prompt, `tg` is text generation, one token after another, greedy and with the choice of the
/// token included; tokenizing is not timed. Values separated by commas, and flags given several times, are
/// combined with each other.
///
/// Every model is checked before it is timed: the adapter has to generate the demo's fable in the model's format, and
/// prefill has to agree with decoding.
///
/// `first token` is the time until its id is on the host; `host us` the CPU time of recording and submitting; `of copy`
/// the share of the copy bandwidth that was measured on the adapter before.
#[derive(Args)]
pub struct BenchArgs {
    /// `demo`, a directory, or `synthetic:SIZE[:SEED]` [default: demo]
    #[arg(short, long, value_delimiter = ',')]
    model: Vec<String>,
    /// Prompt tokens; 0 skips this test [default: 512]
    #[arg(short, long, value_name = "N", value_delimiter = ',')]
    prompt: Vec<usize>,
    /// Tokens to generate; 0 skips this test [default: 128]
    #[arg(short = 'n', long, value_name = "N", value_delimiter = ',')]
    tokens: Vec<usize>,
    /// Prompt and generation as one test, `-pg 512,128`; may be given several times
    #[arg(long = "pg", value_name = "P,N")]
    both: Vec<Both>,
    /// Tokens cached before each test [default: 0]
    #[arg(short, long, value_name = "N", value_delimiter = ',')]
    depth: Vec<usize>,
    /// Sequences that are decoded together; 1 is a single session [default: 1]
    #[arg(short, long, value_name = "N", value_delimiter = ',')]
    batch: Vec<usize>,
    #[command(flatten)]
    submit: SubmitArgs,
    /// Timed runs of each test
    #[arg(short, long, value_name = "N", default_value_t = 5)]
    repetitions: usize,
    /// Weight formats: f32, f16, bf16, q8_0, q4_0 [default: as the checkpoint stores the weights]
    #[arg(long, value_delimiter = ',')]
    format: Vec<Format>,
    /// Adapters, by number or a part of the name, or `all` [default: the first, hardware before software]
    #[arg(long, value_name = "N|NAME", value_delimiter = ',')]
    adapter: Vec<String>,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    rules: RuleArgs,
    /// Every size in every format, p 512, n 128, at depths 0 and 1536: one command for a new GPU
    #[arg(long, conflicts_with_all = ["model", "prompt", "tokens", "both", "depth", "batch", "format"])]
    suite: bool,
    /// Time the first run too
    #[arg(long)]
    no_warmup: bool,
    /// Form of the results
    #[arg(short, long, value_enum, default_value_t = Output::Md)]
    output: Output,
    /// No progress on standard error
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A table
    Md,
    /// One document
    Json,
    /// One object per line, as soon as it is measured
    Jsonl,
    /// Comma-separated values, each line as soon as it is measured
    Csv,
}

/// The two numbers of `-pg`.
#[derive(Clone, Copy)]
struct Both([usize; 2]);

impl FromStr for Both {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Option<Vec<usize>> = text.split(',').map(|part| part.parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[prompt, tokens]) if prompt > 0 && tokens > 0 => Ok(Self([prompt, tokens])),
            _ => Err(format!("`{text}` is not a pair of numbers of tokens such as 512,128")),
        }
    }
}

/// Runs the subcommand.
pub fn run(args: &BenchArgs) -> Result<(), Failure> {
    let plan = Plan::new(args)?;
    let bar = bar(args.quiet, "measuring", "{pos} of {len} runs, {msg}");
    bar.set_length(plan.runs(args) as u64);
    let mut rows = Rows::new(args.output, plan.adapters.len() > 1);
    for adapter in &plan.adapters {
        let device = Device::new(args, adapter)?;
        if !args.quiet {
            bar.suspend(|| device.announce());
        }
        for model in &plan.models {
            for &format in &plan.formats {
                let outcome = measure(args, &plan, &device, model, format, &bar, &mut rows);
                match outcome {
                    // A suite runs models of every size: one that does not fit is left out.
                    Err(Failure::Run(error @ (Error::Gpu(_) | Error::Unsupported(_)))) if args.suite => {
                        bar.suspend(|| note(format_args!("left out {model}: {error}")));
                    }
                    other => other?,
                }
            }
        }
    }
    bar.finish_and_clear();
    rows.finish()
}

/// The combinations to measure.
struct Plan {
    adapters: Vec<Option<String>>,
    models: Vec<String>,
    formats: Vec<Option<Format>>,
    tests: Vec<Test>,
    per_submit: Option<usize>,
}

impl Plan {
    fn new(args: &BenchArgs) -> samara::Result<Self> {
        let per_submit = args.submit.tokens()?;
        if args.repetitions == 0 {
            return Err(Error::Input("--repetitions 0: at least one run is timed".to_owned()));
        }
        let adapters = adapters(args)?;
        if args.suite {
            let sizes = ["270M", "450M", "1_1B", "3B"];
            return Ok(Self {
                adapters,
                models: sizes.iter().map(|size| format!("synthetic:{size}")).collect(),
                formats: Format::ALL.into_iter().map(Some).collect(),
                tests: tests(&[512], &[128], &[], &[0, 1536], &[1]),
                per_submit,
            });
        }
        let or =
            |given: &[usize], default: usize| if given.is_empty() { vec![default] } else { given.to_vec() };
        // As in llama-bench: if only combined tests are given, nothing else runs.
        let alone = !args.both.is_empty() && args.prompt.is_empty() && args.tokens.is_empty();
        let default = |tokens| if alone { 0 } else { tokens };
        let (prompts, tokens) = (or(&args.prompt, default(512)), or(&args.tokens, default(128)));
        let batches = or(&args.batch, 1);
        if let Some(batch) = batches.iter().find(|batch| !(1..=MOST_TOKENS).contains(*batch)) {
            return Err(Error::Input(format!("--batch {batch}: expected 1 to {MOST_TOKENS} sequences")));
        }
        let depth = args.depth.iter().find(|&&depth| depth > 0);
        if let (Some(batch), Some(depth)) = (batches.iter().find(|&&batch| batch > 1), depth)
            && (prompts.iter().any(|&prompt| prompt > 0) || !args.both.is_empty())
        {
            return Err(Error::Input(format!(
                "--batch {batch} with --depth {depth} measures generation alone: give --prompt 0 and no -pg"
            )));
        }
        let tests = tests(&prompts, &tokens, &args.both, &or(&args.depth, 0), &batches);
        if tests.is_empty() {
            return Err(Error::Input("--prompt 0 and --tokens 0 leave nothing to measure".to_owned()));
        }
        let models = if args.model.is_empty() { vec!["demo".to_owned()] } else { args.model.clone() };
        // A model that cannot be opened is reported before anything is timed.
        models.iter().try_for_each(|model| Checkpoint::source(model).map(drop))?;
        let formats: Vec<_> = args.format.iter().copied().map(Some).collect();
        let formats = if formats.is_empty() { vec![None] } else { formats };
        Ok(Self { adapters, models, formats, tests, per_submit })
    }

    fn runs(&self, args: &BenchArgs) -> usize {
        let each = args.repetitions + usize::from(!args.no_warmup);
        self.adapters.len() * self.models.len() * self.formats.len() * self.tests.len() * each
    }
}

fn adapters(args: &BenchArgs) -> samara::Result<Vec<Option<String>>> {
    if args.adapter.iter().any(|adapter| adapter == "all") {
        let all = gpu::adapters(args.run.backend)?;
        return Ok(all.iter().map(|adapter| Some(adapter.index.to_string())).collect());
    }
    let named: Vec<_> = args.adapter.iter().cloned().map(Some).collect();
    Ok(if named.is_empty() { vec![None] } else { named })
}

fn tests(
    prompts: &[usize],
    tokens: &[usize],
    both: &[Both],
    depths: &[usize],
    batches: &[usize],
) -> Vec<Test> {
    let prompts = prompts.iter().map(|&prompt| [prompt, 0]);
    let tokens = tokens.iter().map(|&generated| [0, generated]);
    let pairs: Vec<_> =
        prompts.chain(tokens).chain(both.iter().map(|both| both.0)).filter(|pair| *pair != [0, 0]).collect();
    let test =
        |depth, batch| pairs.iter().map(move |&[prompt, generated]| Test { prompt, generated, depth, batch });
    let at = |depth| batches.iter().flat_map(move |&batch| test(depth, batch));
    depths.iter().flat_map(|&depth| at(depth)).collect()
}

/// An adapter with its ceilings.
struct Device {
    adapter: Option<String>,
    summary: AdapterSummary,
    environment: Environment,
    ceilings: Ceilings,
}

impl Device {
    fn new(args: &BenchArgs, adapter: &Option<String>) -> samara::Result<Self> {
        let mut gpu = args.run.tier.open(adapter.as_deref(), args.run.backend)?;
        // The ceilings are those of the built-in kernels.
        let ceilings = ceilings::measure(&gpu)?;
        gpu.set_shaders(args.run.shaders.read()?);
        let environment = Environment::of(&gpu, COMMIT);
        Ok(Self { adapter: adapter.clone(), summary: gpu.summary().clone(), environment, ceilings })
    }

    fn announce(&self) {
        super::announce(&self.environment, &self.ceilings);
        super::warn_of_software(&self.summary);
    }
}

/// Loads and checks one model, then runs every test.
fn measure(
    args: &BenchArgs,
    plan: &Plan,
    device: &Device,
    model: &str,
    format: Option<Format>,
    bar: &ProgressBar,
    rows: &mut Rows,
) -> Result<(), Failure> {
    let spec = model.to_owned();
    bar.set_message(format!("loading {spec}"));
    let options = ModelArgs {
        model: spec.clone(),
        adapter: device.adapter.clone(),
        format,
        run: args.run.clone(),
        quiet: true,
    };
    let model = options.load(&args.rules)?;
    verify::verify(&model)?;
    let environment = Environment::of(model.gpu(), COMMIT);
    let subject = Subject::of(&model, &spec);
    let (timed, warm_up, per_submit) = (args.repetitions, !args.no_warmup, plan.per_submit);
    let repetitions = Repetitions { timed, warm_up, per_submit };
    for &test in &plan.tests {
        bar.set_message(format!("{spec} {} {test}", subject.format));
        let row = bench(&model, &environment, &subject, device.ceilings, test, repetitions, || bar.inc(1))?;
        if !args.quiet && !rows.streams() {
            // An interrupted run has already printed what it measured.
            bar.suspend(|| note(format_args!("{spec} {} {test}: {:.2} tok/s", subject.format, row.tok_s)));
        }
        bar.suspend(|| rows.push(row))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn plan(flags: &[&str]) -> Plan {
        let args = super::super::arguments(["samara", "bench"].iter().chain(flags).map(Into::into));
        let args = Command::parse_from(args.into_iter().skip(1)).args;
        Plan::new(&args).unwrap()
    }

    fn names(plan: &Plan) -> Vec<String> {
        plan.tests.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn tests_are_those_of_llama_bench() {
        assert_eq!(names(&plan(&[])), ["pp512", "tg128"]);
        assert_eq!(names(&plan(&["-p", "8,16", "-n", "0"])), ["pp8", "pp16"]);
        assert_eq!(names(&plan(&["-pg", "8,4"])), ["pp8+tg4"]);
        let all = ["-p", "8", "-n", "4", "-pg", "8,4", "-d", "0", "-d", "32"];
        assert_eq!(names(&plan(&all)), ["pp8", "tg4", "pp8+tg4", "pp8 @ d32", "tg4 @ d32", "pp8+tg4 @ d32"]);
    }

    #[test]
    fn a_suite_is_every_size_in_every_format_at_two_depths() {
        let plan = plan(&["--suite"]);
        assert_eq!(plan.models, ["synthetic:270M", "synthetic:450M", "synthetic:1_1B", "synthetic:3B"]);
        assert_eq!(plan.formats.len(), Format::ALL.len());
        assert_eq!(names(&plan), ["pp512", "tg128", "pp512 @ d1536", "tg128 @ d1536"]);
    }

    #[test]
    fn models_formats_and_adapters_are_listed_with_commas() {
        let plan =
            plan(&["-m", "demo,synthetic:micro", "-m", "demo", "--format", "q8_0,f16", "--adapter", "0,1"]);
        assert_eq!(plan.models, ["demo", "synthetic:micro", "demo"]);
        assert_eq!(plan.formats, [Some(Format::Q8_0), Some(Format::F16)]);
        assert_eq!(plan.adapters, [Some("0".to_owned()), Some("1".to_owned())]);
    }
}
