//! `samara profile`: the time of each dispatch of a step.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use samara::files::write_whole;
use samara::gpu::Clock;
use samara::instruments::document::{Document, Environment, Profile, StepProfile, Subject};
use samara::instruments::profile::{Total, profile};
use samara::instruments::{ceilings, verify};
use samara::{Error, LoadOptions};

use super::table::Table;
use super::{COMMIT, Failure, ModelArgs, RuleArgs, announce};

/// Time every dispatch of a prefill and a decode step
///
/// GPU timestamps time each dispatch, from the end of the one before to its own end. Without timestamps, each dispatch
/// is repeated and timed by the wall clock, and the output says so. Times are medians, summed by kernel and by layer,
/// next to two ceilings measured on the adapter: a copy, and multiply-adds from registers. The model is checked first.
#[derive(Args)]
pub struct ProfileArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    rules: RuleArgs,
    /// Tokens of the prefill step
    #[arg(short, long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=4096))]
    prompt: u16,
    /// Tokens cached before it
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    depth: usize,
    /// Runs of each step
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    repetitions: u16,
    /// Clock: timestamps, pass-timestamps or wall [default: the best that the adapter has]
    #[arg(long)]
    clock: Option<Clock>,
    /// Write the steps as a trace in Chrome's format, which Perfetto opens
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Form of the results
    #[arg(short, long, value_enum, default_value_t = Output::Md)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Tables by kernel and by layer
    Md,
    /// One document with every dispatch
    Json,
}

/// Runs the subcommand.
pub fn run(args: &ProfileArgs) -> Result<(), Failure> {
    let prompt = usize::from(args.prompt);
    let gpu = args.model.run.tier.open(args.model.adapter.as_deref(), args.model.run.backend)?;
    let ceilings = ceilings::measure(&gpu)?;
    drop(gpu);
    let options = LoadOptions { fusion: args.rules.fusion()?, ..args.model.options() };
    // The prompt is one step.
    let prefill_chunk = Some(options.prefill_chunk.unwrap_or(0).max(prompt));
    let model = args.model.load_with(LoadOptions { prefill_chunk, clock: args.clock, ..options })?;
    verify::verify(&model)?;
    let environment = Environment::of(model.gpu(), COMMIT);
    let subject = Subject::of(&model, &args.model.model);
    let steps = [args.depth, prompt];
    let profile = profile(&model, environment, subject, ceilings, steps, usize::from(args.repetitions))?;

    if let Some(path) = &args.trace {
        let text = serde_json::to_string(&profile.trace()).map_err(|e| Error::io("write", path, e.into()))?;
        write_whole(path, text.as_bytes())?;
    }
    let mut out = io::stdout().lock();
    match args.output {
        Output::Json => out.write_all(Document::Profile(profile).to_json().as_bytes())?,
        Output::Md => {
            if !args.model.quiet {
                announce(&profile.environment, &profile.ceilings);
            }
            profile.steps.iter().try_for_each(|step| write_step(&mut out, &profile, step))?;
        }
    }
    Ok(())
}

fn write_step(out: &mut impl Write, profile: &Profile, step: &StepProfile) -> io::Result<()> {
    let (total, wall) = (step.ns(), step.wall_ns.median());
    writeln!(
        out,
        "\n{} of {} {}, T {} after {} cached: {} dispatches in {:.1} us; the whole step {:.1} us\n",
        step.name,
        profile.subject.model,
        profile.subject.format,
        step.tokens,
        step.position,
        step.dispatches.len(),
        total / 1e3,
        wall / 1e3,
    )?;
    write!(out, "{}", by_kernel(&step.by_kernel(&profile.ceilings), total))?;
    write!(out, "\n{}", by_layer(step, profile, total))
}

fn by_kernel(totals: &[Total], all: f64) -> Table {
    let mut table = Table::new([
        "kernel",
        ">calls",
        ">us",
        ">share",
        ">MB",
        ">MFLOP",
        ">GB/s",
        ">GFLOP/s",
        "bound",
        ">of bound",
    ]);
    for total in totals {
        table.push([
            total.name.clone(),
            total.calls.to_string(),
            format!("{:.1}", total.ns / 1e3),
            format!("{:.1} %", 100.0 * total.ns / all),
            format!("{:.3}", total.cost.bytes() as f64 / 1e6),
            format!("{:.2}", total.cost.flops as f64 / 1e6),
            format!("{:.1}", total.gb_s()),
            format!("{:.1}", total.gflop_s()),
            total.bound().to_owned(),
            format!("{:.0} %", 100.0 * total.share_of_bound()),
        ]);
    }
    table
}

fn by_layer(step: &StepProfile, profile: &Profile, all: f64) -> Table {
    let mut table =
        Table::new(["layer", ">calls", ">us", ">attn us", ">ffn us", ">share", ">MB", ">of bound"]);
    let of = |layer: &str, part: &str| {
        let own = step.dispatches.iter().filter(|dispatch| dispatch.part() == (layer, part));
        own.map(|dispatch| dispatch.ns.median()).sum::<f64>() / 1e3
    };
    for total in step.by_layer(&profile.ceilings) {
        let [attn, ffn] = ["attn", "ffn"].map(|part| of(&total.name, part));
        let part = |us: f64| if us > 0.0 { format!("{us:.1}") } else { String::new() };
        table.push([
            total.name.clone(),
            total.calls.to_string(),
            format!("{:.1}", total.ns / 1e3),
            part(attn),
            part(ffn),
            format!("{:.1} %", 100.0 * total.ns / all),
            format!("{:.3}", total.cost.bytes() as f64 / 1e6),
            format!("{:.0} %", 100.0 * total.share_of_bound()),
        ]);
    }
    table
}
