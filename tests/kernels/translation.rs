//! Every kernel × format × tier validates and translates to SPIR-V, MSL and HLSL without a GPU, within
//! WebGPU's default limits, and binds what its Rust half says it binds.

use std::collections::{BTreeMap, HashSet};

use crate::common::variants::{Variant, variants};
use samara::kernels::{Access, Kernel, LIST, Shaders, Tier};
use samara::quant::Format;
use samara::tensor::Tensors;
use samara::translate::{Binding, Footprint, Module};

/// WebGPU's default limits, which no kernel may pass but for the workgroup memory of a tier.
const MAX_STORAGE_BUFFERS: usize = 8;
const MAX_INVOCATIONS: u32 = 256;
const MAX_GROUPS: u32 = 65535;

fn fits(footprint: Footprint, tier: Tier) -> bool {
    let Footprint { invocations, workgroup_bytes, storage_buffers } = footprint;
    invocations <= MAX_INVOCATIONS
        && workgroup_bytes <= tier.workgroup_bytes()
        && storage_buffers <= MAX_STORAGE_BUFFERS
}

/// Translates one module; returns what is wrong with it.
fn check(variant: &Variant) -> Result<(), String> {
    let translate = || {
        let module = variant.module()?;
        module.spirv()?;
        module.msl()?;
        if !variant.needs_matrix_units() {
            module.hlsl()?;
        }
        samara::Result::Ok((module.bindings(), module.footprint()?))
    };
    let (bindings, footprint) = translate().map_err(|e| e.to_string())?;
    let expected = expected_bindings(&*variant.case.kernel, &variant.case.tensors);
    if bindings != expected {
        return Err(format!("bindings {bindings:?}, operands {expected:?}"));
    }
    if !fits(footprint, variant.tier) {
        return Err(format!("{footprint:?}"));
    }
    let grid = variant.dispatch.grid;
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
    let variants = variants();
    let failures: Vec<String> = variants
        .iter()
        .filter_map(|variant| check(variant).err().map(|error| format!("{}: {error}", variant.name())))
        .collect();
    eprintln!("{} modules translated", variants.len());
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn whatever_is_tuned_keeps_a_kernel_within_default_limits() {
    let (mut seen, mut largest) = (HashSet::new(), BTreeMap::new());
    for tier in Tier::ALL {
        let cases = LIST.iter().flat_map(|entry| entry.cases());
        for case in cases.filter(|case| case.kernel.runs_on(tier)) {
            let kernel = &*case.kernel;
            let source = Shaders::default().source(&kernel.source(tier));
            for choice in kernel.choices(tier) {
                let overrides = kernel.dispatch(tier, &choice).overrides;
                if seen.insert((source.text.clone(), format!("{overrides:?}"))) {
                    let module = Module::new(&source, tier).unwrap().specialise(&overrides).unwrap();
                    let footprint = module.footprint().unwrap();
                    let most: &mut u32 = largest.entry(tier.workgroup_bytes()).or_default();
                    *most = footprint.workgroup_bytes.max(*most);
                    assert!(
                        fits(footprint, tier),
                        "{} [{}] {choice}: {footprint:?}",
                        kernel.name(),
                        case.label
                    );
                }
            }
        }
    }
    // The largest tile takes all of WebGPU's default; of matrix units, nearly all of theirs.
    assert_eq!(largest, BTreeMap::from([(16 << 10, 16 << 10), (32 << 10, 31488)]), "{} modules", seen.len());
}
