//! `samara kernel show`: the text of a kernel, and what naga makes of it for each graphics API.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use rspirv::binary::Disassemble;
use samara::Error;
use samara::files::write_whole;
use samara::kernels::{Case, Choice, Dispatch, Kernel, Operand, Tier};
use samara::quant::Format;
use samara::translate::{Module, Target};

use super::super::{Failure, ShaderArgs, TierArgs, note};
use super::{Selection, entry};

/// Print a kernel's joined WGSL or its translation
///
/// Of the first case that fits, with the default values of its tunables. Needs no GPU.
#[derive(Args)]
pub struct ShowArgs {
    /// Kernel
    name: String,
    /// wgsl, spirv (disassembled), msl or hlsl
    #[arg(long, default_value_t = Target::Wgsl)]
    target: Target,
    /// Format of the weights, or of a KV cache: f16, f32 or q8_0
    #[arg(long)]
    format: Option<Format>,
    /// A case whose label contains TEXT
    #[arg(long, value_name = "TEXT")]
    case: Option<String>,
    /// Write to FILE, SPIR-V as binary
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    shaders: ShaderArgs,
    #[command(flatten)]
    tier: TierArgs,
}

/// Runs the subcommand.
pub fn run(args: &ShowArgs) -> Result<(), Failure> {
    let case = case(args)?;
    let kernel = &*case.kernel;
    let tier = tier(args, kernel)?;
    let source = args.shaders.read()?.source(&kernel.source(tier));
    let dispatch = kernel.dispatch(tier, &Choice::default());
    let module = || Module::new(&source, tier)?.specialise(&dispatch.overrides);
    let bytes = match args.target {
        Target::Wgsl => source.text.clone().into_bytes(),
        Target::Msl => module()?.msl()?.into_bytes(),
        Target::Hlsl => module()?.hlsl()?.into_bytes(),
        Target::Spirv if args.out.is_some() => {
            module()?.spirv()?.iter().flat_map(|w| w.to_le_bytes()).collect()
        }
        Target::Spirv => disassembled(&module()?.spirv()?)?.into_bytes(),
    };
    describe(&case, tier, &dispatch);
    match &args.out {
        Some(file) => write_whole(file, &bytes)?,
        None => {
            let mut out = io::stdout().lock();
            out.write_all(&bytes)?;
            if !bytes.ends_with(b"\n") {
                writeln!(out)?;
            }
        }
    }
    Ok(())
}

/// Returns the first case that fits.
fn case(args: &ShowArgs) -> samara::Result<Case> {
    let ShowArgs { name, format, case, .. } = args;
    let selection = Selection { name: name.clone(), case: case.clone() };
    let matching: Vec<Case> =
        entry(name)?.cases().into_iter().filter(|case| selection.matches(case)).collect();
    if matching.is_empty() {
        return Err(selection.nothing());
    }
    let bound = |case: &Case, format: Format| {
        let operands = case.kernel.operands();
        let named = |operand: &Operand| case.tensors[operand.tensor].dtype.to_string() == format.to_string();
        operands.iter().any(named)
    };
    let found = matching.into_iter().find(|case| format.is_none_or(|format| bound(case, format)));
    found.ok_or_else(|| {
        let format = format.map(|format| format.to_string()).unwrap_or_default();
        Error::Input(format!(
            "--format {format}: no selected case of kernel `{name}` has a tensor in this format"
        ))
    })
}

/// Returns the requested tier, or the first that the kernel has a shader for.
fn tier(args: &ShowArgs, kernel: &dyn Kernel) -> samara::Result<Tier> {
    let first = Tier::ALL.into_iter().find(|tier| kernel.runs_on(*tier)).unwrap_or(Tier::PLAIN);
    match args.tier.tier.unwrap_or(first) {
        tier if kernel.runs_on(tier) => Ok(tier),
        tier => Err(Error::Input(format!("--tier {tier}: kernel `{}` has no shader for it", args.name))),
    }
}

/// Prints what is shown.
fn describe(case: &Case, tier: Tier, dispatch: &Dispatch) {
    let overrides: Vec<String> =
        dispatch.overrides.iter().map(|(name, value)| format!(", {name}={value}")).collect();
    note(format_args!("{} [{}], tier {tier}{}", case.kernel.name(), case.label, overrides.concat()));
}

/// Returns the text of a SPIR-V module.
fn disassembled(words: &[u32]) -> samara::Result<String> {
    let module = rspirv::dr::load_words(words).map_err(|e| {
        Error::Unsupported(format!("the SPIR-V cannot be disassembled: {e:?}; --out writes it"))
    })?;
    Ok(module.disassemble())
}
