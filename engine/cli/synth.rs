//! `samara synth`: writes a checkpoint of synthetic weights.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use samara::model::config::PUBLISHED_VOCAB;
use samara::model::{Size, synth};
use samara::tensor::DType;

use super::Failure;

/// Write a checkpoint of a published size with synthetic weights
///
/// Its text is noise, but it takes the memory and time of the real one: for tests and measurements without
/// a download.
#[derive(Args)]
pub struct SynthArgs {
    /// micro, 270M, 450M, 1.1B or 3B
    size: Size,
    /// Directory to write
    dir: PathBuf,
    /// Number format in the file: f32, f16 or bf16
    #[arg(long, default_value = "bf16", value_parser = dtype)]
    dtype: DType,
    /// Seed of the weights
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Number of tokens
    #[arg(long, value_name = "N", default_value_t = PUBLISHED_VOCAB)]
    vocab: usize,
    /// Replace a checkpoint that exists
    #[arg(long)]
    force: bool,
}

/// Runs the subcommand.
pub fn run(args: SynthArgs) -> Result<(), Failure> {
    synth::write_checkpoint(args.size, &args.dir, args.dtype, args.seed, args.vocab, args.force)?;
    let (dir, dtype, seed) = (args.dir.display(), args.dtype, args.seed);
    writeln!(io::stdout(), "wrote {} to {dir} ({dtype}, seed {seed})", args.size)?;
    Ok(())
}

fn dtype(name: &str) -> Result<DType, String> {
    match name {
        "f32" => Ok(DType::F32),
        "f16" => Ok(DType::F16),
        "bf16" => Ok(DType::Bf16),
        _ => Err(format!("number format `{name}`: expected f32, f16 or bf16")),
    }
}
