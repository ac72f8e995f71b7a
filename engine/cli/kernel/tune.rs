//! `samara kernel tune`: finds the fastest values of tunables on this adapter and keeps them.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use indicatif::ProgressBar;
use samara::gpu::{Gpu, Tuning};
use samara::instruments::crossing::{self, Both};
use samara::instruments::document::Environment;
use samara::instruments::steps;
use samara::instruments::tune::{Found, trials, tunable, tune};
use samara::kernels::Case;
use samara::model::Checkpoint;
use samara::quant::Format;
use samara::{Error, KvFormat, LoadOptions, Model};

use super::super::table::Table;
use super::super::{COMMIT, Failure, bar, introduce, note, warn_of_software};
use super::{DeviceArgs, Selection, TimingArgs, duration};

/// Search workgroup sizes and tiles of kernels, shape by shape, and keep what is faster
///
/// With -m the shapes of that model are tuned, without it those of the benched cases. Every candidate is
/// checked first. What beats the default beyond the spread is kept for this adapter and driver in the user's
/// cache directory, where every command finds it; SAMARA_TUNE=off ignores it.
#[derive(Args)]
pub struct TuneArgs {
    #[command(flatten)]
    selection: Selection,
    /// Tune the shapes of this model: `demo`, a directory, or `synthetic:SIZE[:SEED]`
    #[arg(short, long)]
    model: Option<String>,
    /// Weight format of the model: f32, f16, bf16, q8_0 or q4_0 [default: as the checkpoint stores the weights]
    #[arg(long, requires = "model")]
    format: Option<Format>,
    /// Number format of the model's KV cache: f16, f32 or q8_0
    #[arg(long, requires = "model", default_value_t)]
    kv: KvFormat,
    /// Tokens of the prompt that the model prefills; 0 tunes decoding alone
    #[arg(short, long, value_name = "N", requires = "model", default_value_t = 128)]
    prompt: usize,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    timing: TimingArgs,
    /// Find instead up to how many tokens a prompt's products are faster row by row than in tiles (with NAME `all`)
    #[arg(long, requires = "model")]
    switch_over: bool,
    /// No progress on standard error
    #[arg(short, long)]
    quiet: bool,
}

/// Runs the subcommand.
pub fn run(args: &TuneArgs) -> Result<(), Failure> {
    if std::env::var_os("SAMARA_TUNE").is_some_and(|value| value == "off") {
        let message = "SAMARA_TUNE is `off`: tuned values would be ignored; unset it to tune";
        return Err(Error::Input(message.to_owned()).into());
    }
    let entries = args.selection.entries()?;
    let mut gpu = args.timing.open(&args.device)?;
    if let Some(model) = args.model.as_ref().filter(|_| args.switch_over) {
        return switch_over(args, gpu, model);
    }
    let cases = match &args.model {
        None => tunable(args.selection.timed(&entries, gpu.tier())?, |case| &*case.kernel),
        Some(model) => of_model(args, &gpu, model)?,
    };
    if cases.is_empty() {
        return Err(Error::Input(format!("kernel `{}` has nothing to tune", args.selection.name)).into());
    }
    if !args.quiet {
        introduce(&Environment::of(&gpu, COMMIT));
        warn_of_software(gpu.summary());
    }
    let wrong = search(args, &mut gpu, &cases)?;
    match wrong {
        0 => Ok(()),
        _ => Err(Failure::Wrong(format!("{wrong} of {} cases are wrong and were not tuned", cases.len()))),
    }
}

/// Tunes cases, keeps the winners and prints the results; returns how many cases were wrong.
fn search(args: &TuneArgs, gpu: &mut Gpu, cases: &[Case]) -> Result<usize, Failure> {
    let bar = bar(args.quiet, "tuning", "{pos} of {len} trials, {msg}");
    bar.set_length(cases.iter().map(|case| trials(case, gpu.tier()) as u64).sum());
    let mut kept = Kept::new(gpu);
    let mut table =
        Table::new(["kernel", "shape", "default", "best", ">default time", ">best time", ">speed-up"]);
    let mut wrong = 0;
    for case in cases {
        bar.set_message(case.kernel.name());
        match tune(gpu, case, args.timing.samples(), || bar.inc(1))? {
            Ok(found) => {
                print_dropped(&bar, &found);
                push(&mut table, &found);
                kept.apply(gpu, &found)?;
            }
            Err(mismatch) => {
                wrong += 1;
                let (name, label) = (case.kernel.name(), &case.label);
                bar.suspend(|| note(format_args!("not tuned: {name} [{label}] is wrong: {mismatch}")));
            }
        }
    }
    bar.finish_and_clear();
    write!(io::stdout().lock(), "{table}")?;
    kept.print();
    Ok(wrong)
}

/// Returns a case for each selected kernel and shape of a model's steps.
fn of_model(args: &TuneArgs, gpu: &Gpu, model: &str) -> samara::Result<Vec<Case>> {
    let checkpoint = Checkpoint::source(model)?;
    let options = LoadOptions { format: args.format, kv: args.kv, ..LoadOptions::default() };
    let mut cases = steps::cases(&checkpoint, gpu, &options, args.prompt)?;
    let name = &args.selection.name;
    cases.retain(|case| name == "all" || case.kernel.name() == name);
    if cases.is_empty() {
        return Err(Error::Input(format!(
            "model `{model}` runs no kernel `{name}` that has something to tune"
        )));
    }
    cases.retain(|case| args.selection.matches(case));
    if cases.is_empty() { Err(args.selection.nothing()) } else { Ok(cases) }
}

/// Times steps of a model by rows and by tiles, prints them and keeps where tiles begin to be faster.
fn switch_over(args: &TuneArgs, gpu: Gpu, model: &str) -> Result<(), Failure> {
    if args.selection.name != "all" || args.selection.case.is_some() {
        let message = "--switch-over times whole steps: give `all` instead of a kernel, and no --case";
        return Err(Error::Input(message.to_owned()).into());
    }
    if !args.quiet {
        introduce(&Environment::of(&gpu, COMMIT));
        warn_of_software(gpu.summary());
    }
    let bar = bar(args.quiet, "timing", "{pos} of {len} steps");
    let options = LoadOptions { format: args.format, kv: args.kv, ..LoadOptions::default() };
    let model = Model::from_checkpoint(&Checkpoint::source(model)?, gpu, options)?;
    bar.set_length(crossing::steps(&model).count() as u64);
    let both = crossing::measure(&model, args.timing.samples(), || bar.inc(1))?;
    bar.finish_and_clear();
    let mut table = Table::new([">tokens", ">by rows", ">in tiles", ">tiles / rows"]);
    for Both { tokens, times } in &both {
        let [rows, tiles] = [&times.first, &times.second].map(|samples| duration(samples.median()));
        table.push([tokens.to_string(), rows, tiles, format!("{:.2}", times.ratios().median())]);
    }
    write!(io::stdout().lock(), "{table}")?;
    let (gpu, few) = (model.gpu(), crossing::few_tokens(&both));
    let mut tuning = gpu.tuning().clone();
    tuning.set_few_tokens(gpu.tier(), model.format(), few);
    let path = tuning.save(gpu.summary())?;
    note(format_args!(
        "rows up to {few} tokens in {}, then tiles; written: {}",
        model.format(),
        path.display()
    ));
    Ok(())
}

/// Prints which values were rejected or wrong.
fn print_dropped(bar: &ProgressBar, found: &Found) {
    for (choice, why) in &found.dropped {
        bar.suspend(|| note(format_args!("dropped {} [{}] {choice}: {why}", found.kernel, found.shape)));
    }
}

fn push(table: &mut Table, found: &Found) {
    let Found { kernel, shape, default, best, .. } = found;
    let (best, times, speed_up) = match best {
        Some((choice, comparison)) => {
            let times = [&comparison.first, &comparison.second].map(|samples| duration(samples.median()));
            let gain = 1.0 / comparison.ratios().median();
            let wins = found.wins();
            let best = if wins { choice.to_string() } else { "the default".to_owned() };
            (best, times, if wins { format!("{gain:.2}") } else { format!("none ({gain:.2}, {choice})") })
        }
        None => ("the default".to_owned(), [String::new(), String::new()], "no other fits".to_owned()),
    };
    let [first, second] = times;
    table.push([kernel.clone(), shape.clone(), default.to_string(), best, first, second, speed_up]);
}

/// The user's tuned values, written after every change: a long search may be interrupted.
struct Kept {
    tuning: Tuning,
    path: Option<PathBuf>,
}

impl Kept {
    fn new(gpu: &Gpu) -> Self {
        Self { tuning: gpu.tuning().clone(), path: None }
    }

    fn apply(&mut self, gpu: &Gpu, found: &Found) -> samara::Result<()> {
        let before = self.tuning.clone();
        found.apply(&mut self.tuning);
        if self.tuning != before {
            self.path = Some(self.tuning.save(gpu.summary())?);
        }
        Ok(())
    }

    fn print(&self) {
        match &self.path {
            Some(path) => note(format_args!("written: {}", path.display())),
            None => note("nothing was written; the kept values stay as they were"),
        }
    }
}
