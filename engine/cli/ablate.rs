//! `samara ablate`: what each fusion rule is worth.

use std::io::{self, Write};

use clap::{Args, ValueEnum};
use samara::instruments::ablate::{Workload, ablate};
use samara::instruments::document::{Ablation, Document};
use samara::instruments::samples::Samples;
use samara::instruments::verify;

use super::table::Table;
use super::{COMMIT, Failure, ModelArgs};

/// Measure what each fusion rule is worth
///
/// Decodes and prefills with every rule on, with each one off, with all off, and with each RMSNorm as the chain
/// of elementary kernels that naive framework code launches. All configurations are checked to give the same
/// logits, then timed interleaved; `relative` is the median of the ratios to `all on` in the same round.
#[derive(Args)]
pub struct AblateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Prompt tokens
    #[arg(short, long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    prompt: u16,
    /// Tokens to generate after the prompt
    #[arg(short = 'n', long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    tokens: u16,
    /// Timed runs of each configuration
    #[arg(short, long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    repetitions: u16,
    /// Form of the results
    #[arg(short, long, value_enum, default_value_t = Output::Md)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A table
    Md,
    /// One document
    Json,
}

/// Runs the subcommand.
pub fn run(args: &AblateArgs) -> Result<(), Failure> {
    let [prompt, generated, repetitions] = [args.prompt, args.tokens, args.repetitions].map(usize::from);
    let workload = Workload { prompt, generated, repetitions };
    let model = args.model.load_with(args.model.options())?;
    verify::verify(&model)?;
    let bar = args.model.bar("measuring", "{pos} of {len} runs");
    bar.set_length(workload.runs() as u64);
    let ablation = ablate(&model, &args.model.model, COMMIT, workload, || bar.inc(1));
    bar.finish_and_clear();
    let ablation = ablation?;
    let mut out = io::stdout().lock();
    match args.output {
        Output::Json => out.write_all(Document::Ablation(ablation).to_json().as_bytes())?,
        Output::Md => write_table(&mut out, &ablation)?,
    }
    Ok(())
}

fn write_table(out: &mut impl Write, ablation: &Ablation) -> io::Result<()> {
    let (environment, subject) = (&ablation.environment, &ablation.subject);
    writeln!(
        out,
        "{}, {}, {}; tier {}, commit {}",
        environment.adapter, environment.backend, environment.driver, environment.tier, environment.commit
    )?;
    writeln!(
        out,
        "{} {}, KV cache {}; prefill of {} tokens, {} decoded after them\n",
        subject.model, subject.format, subject.kv, ablation.prompt, ablation.generated
    )?;
    let mut table = Table::new([
        "rules",
        ">decode tok/s",
        ">relative",
        ">prefill tok/s",
        ">relative",
        ">dispatches decode/prefill",
        ">norms",
        ">norm dispatches",
    ]);
    let all_on = &ablation.rows[0];
    for row in &ablation.rows {
        table.push([
            row.name.clone(),
            format!("{:.2}", row.decode_tok_s),
            format!("{:.2}", relative(&row.decode_tok_s, &all_on.decode_tok_s)),
            format!("{:.2}", row.prefill_tok_s),
            format!("{:.2}", relative(&row.prefill_tok_s, &all_on.prefill_tok_s)),
            format!("{}/{}", row.decode_dispatches, row.prefill_dispatches),
            row.norms.to_string(),
            row.norm_dispatches.to_string(),
        ]);
    }
    write!(out, "{table}")
}

/// Returns the median of the per-round ratios: what slows a whole round down does not change it.
fn relative(of: &Samples, to: &Samples) -> f64 {
    Samples::new(of.values().iter().zip(to.values()).map(|(of, to)| of / to).collect()).median()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_that_is_slow_for_all_changes_no_ratio() {
        let (of, to) = (Samples::new(vec![6.0, 2.0, 9.0]), Samples::new(vec![3.0, 1.0, 6.0]));
        assert_eq!((relative(&of, &to), relative(&to, &to)), (2.0, 1.0));
    }
}
