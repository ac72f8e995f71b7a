//! Every kernel × format × tier validates and translates to SPIR-V, MSL and HLSL without a GPU, within
//! WebGPU's default limits, and binds what its Rust half says it binds.

use std::collections::BTreeSet;

use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ValidationFlags, Validator};
use naga::{AddressSpace, Module, ShaderStage, StorageAccess};
use samara::kernels::{Access, Kernel, LIST, Tier, join};
use samara::quant::Format;
use samara::tensor::Tensors;

/// WebGPU's default limits, which no kernel may pass.
const MAX_STORAGE_BUFFERS: usize = 8;
const MAX_WORKGROUP_BYTES: u32 = 16 * 1024;
const MAX_INVOCATIONS: u32 = 256;
const MAX_GROUPS: u32 = 65535;

fn capabilities(tier: Tier) -> Capabilities {
    let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    capabilities.set(Capabilities::SHADER_FLOAT16, tier.f16);
    capabilities.set(Capabilities::SUBGROUP, tier.subgroup);
    capabilities
}

/// Parses, validates, specialises and translates one kernel; returns what is wrong with it.
fn check(kernel: &dyn Kernel, tensors: &Tensors, tier: Tier) -> Result<(), String> {
    let text = join(&kernel.source(tier));
    let module = naga::front::wgsl::parse_str(&text).map_err(|e| e.emit_to_string(&text))?;
    let validate = |module: &Module| {
        Validator::new(ValidationFlags::all(), capabilities(tier))
            .validate(module)
            .map_err(|e| e.emit_to_string(&text))
    };
    let info = validate(&module)?;
    check_bindings(kernel, tensors, &module)?;

    let dispatch = kernel.dispatch(tier);
    let constants = dispatch.overrides.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
    let entry = (ShaderStage::Compute, "main");
    let (module, info) =
        naga::back::pipeline_constants::process_overrides(&module, &info, Some(entry), &constants)
            .map_err(|e| e.to_string())?;
    check_limits(kernel, tier, &module)?;

    let main = Some((ShaderStage::Compute, "main".to_owned()));
    let options = spv::Options { lang_version: (1, 3), ..Default::default() };
    spv::write_vec(&module, &info, &options, None).map_err(|e| format!("SPIR-V: {e}"))?;

    let options = msl::Options { lang_version: (2, 4), ..Default::default() };
    let pipeline = msl::PipelineOptions { entry_point: main.clone(), ..Default::default() };
    msl::write_string(&module, &info, &options, &pipeline).map_err(|e| format!("MSL: {e}"))?;

    let options = hlsl::Options { shader_model: hlsl::ShaderModel::V6_2, ..Default::default() };
    let pipeline = hlsl::PipelineOptions { entry_point: main };
    let mut out = String::new();
    let mut writer = hlsl::Writer::new(&mut out, &options, &pipeline);
    writer.write(&module, &info, None).map_err(|e| format!("HLSL: {e}"))?;
    Ok(())
}

/// The module's bindings are the params, the operands in order and access, and the weight's planes.
fn check_bindings(kernel: &dyn Kernel, tensors: &Tensors, module: &Module) -> Result<(), String> {
    let mut expected = BTreeSet::from([(0, 0, false)]);
    let mut next = [1, 0];
    for operand in kernel.operands() {
        let planes = match operand.access {
            Access::Weight => Format::of(tensors[operand.tensor].dtype).unwrap().row_words(64).len(),
            _ => 1,
        };
        let group = usize::from(operand.access == Access::Weight);
        for _ in 0..planes {
            expected.insert((group as u32, next[group], operand.access.writes()));
            next[group] += 1;
        }
    }
    let found = module.global_variables.iter().filter_map(|(_, variable)| {
        let binding = variable.binding?;
        let writes = match variable.space {
            AddressSpace::Storage { access } => access.contains(StorageAccess::STORE),
            _ => false,
        };
        Some((binding.group, binding.binding, writes))
    });
    let found: BTreeSet<_> = found.collect();
    if found == expected {
        Ok(())
    } else {
        Err(format!("bindings (group, binding, writes) {found:?}, operands {expected:?}"))
    }
}

fn check_limits(kernel: &dyn Kernel, tier: Tier, module: &Module) -> Result<(), String> {
    let [main] = &module.entry_points[..] else { return Err("one entry point is expected".into()) };
    let invocations: u32 = main.workgroup_size.iter().product();
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).map_err(|e| e.to_string())?;
    let globals = || module.global_variables.iter().map(|(_, variable)| variable);
    let workgroup: u32 =
        globals().filter(|v| v.space == AddressSpace::WorkGroup).map(|v| layouter[v.ty].size).sum();
    let storage = globals().filter(|v| matches!(v.space, AddressSpace::Storage { .. })).count();
    let grid = kernel.dispatch(tier).grid;
    if invocations > MAX_INVOCATIONS || workgroup > MAX_WORKGROUP_BYTES || storage > MAX_STORAGE_BUFFERS {
        return Err(format!(
            "{invocations} invocations, {workgroup} B of workgroup memory, {storage} storage buffers"
        ));
    }
    if grid.iter().any(|&n| n == 0 || n > MAX_GROUPS) {
        return Err(format!("grid {grid:?}"));
    }
    Ok(())
}

#[test]
fn every_kernel_format_and_tier_translates_within_default_limits() {
    let mut failures = Vec::new();
    let mut seen = BTreeSet::new();
    let without_f16 = Tier { f16: false, subgroup: true };
    for tier in Tier::ALL.into_iter().chain([without_f16]) {
        for entry in LIST {
            for case in (entry.cases)() {
                let kernel = &*case.kernel;
                let paths: Vec<&str> = kernel.source(tier).iter().map(|fragment| fragment.path).collect();
                if !seen.insert((paths, format!("{:?}", kernel.dispatch(tier).overrides), tier.to_string())) {
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
