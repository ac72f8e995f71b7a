//! Every kernel × format × tier validates and translates to SPIR-V, MSL and HLSL without a GPU, within
//! WebGPU's default limits, and binds what its Rust half says it binds.

use std::collections::BTreeSet;

use samara::kernels::{Access, Choice, Kernel, LIST, Shaders, Tier};
use samara::quant::Format;
use samara::tensor::Tensors;
use samara::translate::{Binding, Footprint, Module};

/// WebGPU's default limits, which no kernel may pass.
const MAX_STORAGE_BUFFERS: usize = 8;
const MAX_WORKGROUP_BYTES: u32 = 16 * 1024;
const MAX_INVOCATIONS: u32 = 256;
const MAX_GROUPS: u32 = 65535;

/// Translates one kernel; returns what is wrong with it.
fn check(kernel: &dyn Kernel, tensors: &Tensors, tier: Tier) -> Result<(), String> {
    let translate = || {
        let module = Module::new(&Shaders::default().source(&kernel.source(tier)), tier)?;
        let specialised = module.specialise(&kernel.dispatch(tier, &Choice::default()).overrides)?;
        specialised.spirv()?;
        specialised.msl()?;
        // naga has no cooperative matrices in HLSL: no such kernel is offered on DX12.
        if kernel.runs_on(Tier::SUBGROUP) {
            specialised.hlsl()?;
        }
        samara::Result::Ok((module.bindings(), specialised.footprint()?))
    };
    let (bindings, footprint) = translate().map_err(|e| e.to_string())?;
    let expected = expected_bindings(kernel, tensors);
    if bindings != expected {
        return Err(format!("bindings {bindings:?}, operands {expected:?}"));
    }
    let Footprint { invocations, workgroup_bytes, storage_buffers } = footprint;
    if invocations > MAX_INVOCATIONS
        || workgroup_bytes > MAX_WORKGROUP_BYTES
        || storage_buffers > MAX_STORAGE_BUFFERS
    {
        return Err(format!("{footprint:?}"));
    }
    let grid = kernel.dispatch(tier, &Choice::default()).grid;
    if grid.iter().any(|&n| n == 0 || n > MAX_GROUPS) {
        return Err(format!("grid {grid:?}"));
    }
    Ok(())
}

/// The params, the operands in order and access, and the planes of the weights.
fn expected_bindings(kernel: &dyn Kernel, tensors: &Tensors) -> Vec<Binding> {
    let mut expected = vec![Binding { group: 0, binding: 0, writes: false }];
    let mut next = [1, 0];
    for operand in kernel.operands() {
        let (group, planes) = match operand.access {
            Access::Weight => (1, Format::of(tensors[operand.tensor].dtype).unwrap().row_words(64).len()),
            _ => (0, 1),
        };
        for _ in 0..planes {
            let binding = Binding { group, binding: next[group as usize], writes: operand.access.writes() };
            next[group as usize] += 1;
            expected.push(binding);
        }
    }
    expected.sort_unstable();
    expected
}

#[test]
fn every_kernel_format_and_tier_translates_within_default_limits() {
    let mut failures = Vec::new();
    let mut seen = BTreeSet::new();
    let without_f16 = Tier { f16: false, ..Tier::SUBGROUP };
    for tier in Tier::ALL.into_iter().chain([without_f16]) {
        for entry in LIST {
            for case in (entry.cases)().iter().filter(|case| case.kernel.runs_on(tier)) {
                let kernel = &*case.kernel;
                let paths: Vec<&str> = kernel.source(tier).iter().map(|fragment| fragment.path).collect();
                if !seen.insert((
                    paths,
                    format!("{:?}", kernel.dispatch(tier, &Choice::default()).overrides),
                    tier.to_string(),
                )) {
                    continue;
                }
                if let Err(error) = check(kernel, &case.tensors, tier) {
                    failures.push(format!("{} [{}] tier {tier}: {error}", entry.name, case.label));
                }
            }
        }
    }
    eprintln!("{} modules translated", seen.len());
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}
