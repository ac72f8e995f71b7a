//! `samara devices`: the adapters that models can run on.

use std::io::{self, Write};

use clap::Args;
use indicatif::BinaryBytes;
use samara::kernels::MatrixShape;
use samara::{Backend, gpu};

use super::Failure;

/// List the graphics adapters, with drivers, tiers and limits
#[derive(Args)]
pub struct DevicesArgs {
    /// Only this graphics API: vulkan, metal or dx12
    #[arg(long)]
    backend: Option<Backend>,
}

/// Runs the subcommand.
pub fn run(args: DevicesArgs) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    for adapter in gpu::adapters(args.backend)? {
        writeln!(out, "{:>2}  {} ({})", adapter.index, adapter.name, adapter.kind)?;
        writeln!(out, "    backend {}, driver {}, tier {}", adapter.backend, adapter.driver, adapter.tier)?;
        let subgroups = match adapter.subgroup_sizes {
            Some((least, most)) if least == most => format!("subgroups of {least}"),
            Some((least, most)) => format!("subgroups of {least} to {most}"),
            None => "no subgroups".to_owned(),
        };
        let matrix_units = match adapter.matrix_units {
            Some(MatrixShape::Sixteen) => ", matrix units of 16 x 16 (tier coop)",
            Some(MatrixShape::Eight) => ", matrix units of 8 x 8 (tier coop)",
            None => "",
        };
        let integer_dots = if adapter.integer_dots { ", integer products (tier int8)" } else { "" };
        writeln!(
            out,
            "    binding {}, buffer {}, workgroup memory {}, {} invocations, {subgroups}{matrix_units}{integer_dots}",
            BinaryBytes(adapter.max_binding_bytes),
            BinaryBytes(adapter.max_buffer_bytes),
            BinaryBytes(adapter.workgroup_memory_bytes.into()),
            adapter.max_invocations,
        )?;
        if adapter.software {
            writeln!(out, "    SOFTWARE ADAPTER: it runs on the CPU; timings say nothing about a GPU")?;
        }
    }
    Ok(())
}
