//! `samara inspect`: the parts of a model and the dispatches of one step.

use std::io::{self, Write};

use clap::Args;
use indicatif::BinaryBytes;
use samara::model::Config;

use super::{Failure, ModelArgs, RuleArgs};

/// Show a model's configuration, weights, formats, memory and, with --graph, every dispatch of a token
#[derive(Args)]
pub struct InspectArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    rules: RuleArgs,
    /// List the dispatches of one decode step, in order
    #[arg(long)]
    graph: bool,
}

/// Runs the subcommand.
pub fn run(args: InspectArgs) -> Result<(), Failure> {
    let model = args.model.load(&args.rules)?;
    let inspection = model.inspect();
    let mut out = io::stdout().lock();

    writeln!(out, "model {} on {} ({})", args.model.model, model.adapter().name, model.adapter().backend)?;
    write_config(&mut out, model.config())?;

    writeln!(out, "\nweights")?;
    for weight in &inspection.weights {
        let shape = format!("[{}, {}]", weight.rows, weight.cols);
        let bytes = BinaryBytes(weight.bytes).to_string();
        let parts = if weight.parts > 1 { format!("  in {} buffers", weight.parts) } else { String::new() };
        writeln!(out, "  {:<48} {shape:>14} {:<5} {bytes:>12}{parts}", weight.name, weight.format)?;
    }
    let values: usize = inspection.weights.iter().map(|weight| weight.rows * weight.cols).sum();

    writeln!(out, "\nmemory")?;
    writeln!(
        out,
        "  weights      {:>12}  ({values} values)",
        BinaryBytes(inspection.weight_bytes).to_string()
    )?;
    writeln!(out, "  KV cache     {:>12}  (full context)", BinaryBytes(inspection.cache_bytes).to_string())?;
    writeln!(
        out,
        "  state        {:>12}  (RoPE table, logits, ids)",
        BinaryBytes(inspection.state_bytes).to_string()
    )?;
    writeln!(
        out,
        "  activations  {:>12}  (one token)",
        BinaryBytes(inspection.activation_bytes).to_string()
    )?;
    let prefill = BinaryBytes(inspection.prefill_activation_bytes).to_string();
    writeln!(out, "               {prefill:>12}  (prefill of {} tokens)", inspection.prefill_chunk)?;

    if args.graph {
        writeln!(out, "\n{} dispatches of one decode step", inspection.dispatches.len())?;
        for (index, step) in inspection.dispatches.iter().enumerate() {
            let [x, y, z] = step.grid;
            let grid = format!("{x}x{y}x{z}");
            writeln!(
                out,
                "  {index:>4}  {:<28} {:<24} {grid:>12} {:>12} bytes {:>12} flops  {}",
                step.label, step.kernel, step.bytes, step.flops, step.overrides
            )?;
        }
    }
    Ok(())
}

fn write_config(out: &mut impl Write, config: &Config) -> io::Result<()> {
    writeln!(out, "\nconfiguration")?;
    writeln!(out, "  model_dim {}, head_dim {}", config.model_dim, config.head_dim)?;
    writeln!(out, "  vocabulary {}, context {}", config.vocab_size, config.max_context_length)?;
    writeln!(out, "  RoPE theta {}, norm eps {:e}", config.rope_theta, config.norm_eps)?;
    writeln!(out, "  BOS {}, EOS {}", config.bos_token_id, config.eos_token_id)?;
    writeln!(out, "  {} layers", config.layers.len())?;
    writeln!(out, "  layer  query heads  KV heads  ffn width")?;
    for (index, layer) in config.layers.iter().enumerate() {
        writeln!(
            out,
            "  {index:>5}  {:>11}  {:>8}  {:>9}",
            layer.query_heads, layer.kv_heads, layer.ffn_dim
        )?;
    }
    Ok(())
}
