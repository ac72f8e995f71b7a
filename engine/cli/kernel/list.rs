//! `samara kernel list`: every kernel with its variants, and the cases of one.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use clap::Args;
use samara::kernels::{Case, Choice, Entry, Fragment, LIST, Tier};
use samara::translate::{Footprint, Module};

use super::super::table::Table;
use super::super::{Failure, ShaderArgs};
use super::entry;

/// List the kernels, or the cases of one
///
/// Formats are those of weights or KV caches; tiers those at which the shader differs. Invocations, workgroup
/// bytes and buffers are the largest of any case, with the default values of the tunables. Needs no GPU.
#[derive(Args)]
pub struct ListArgs {
    /// Kernel whose cases are listed
    name: Option<String>,
    #[command(flatten)]
    shaders: ShaderArgs,
}

/// Runs the subcommand.
pub fn run(args: &ListArgs) -> Result<(), Failure> {
    let table = match &args.name {
        Some(name) => cases(entry(name)?),
        None => kernels(args)?,
    };
    Ok(write!(io::stdout().lock(), "{table}")?)
}

fn cases(entry: &Entry) -> Table {
    let mut table = Table::new(["case", "shape", "benched", ">seed", ">tolerance"]);
    for case in entry.cases() {
        table.push([
            case.label.clone(),
            case.kernel.shape(),
            if case.bench { "yes" } else { "" }.to_owned(),
            format!("{:#x}", case.seed),
            format!("{:e}", case.tolerance),
        ]);
    }
    table
}

fn kernels(args: &ListArgs) -> samara::Result<Table> {
    let names =
        ["kernel", "formats", "tiers", "tunables", ">invocations", ">workgroup bytes", ">buffers", ">cases"];
    let mut table = Table::new(names);
    for entry in LIST.iter() {
        let cases = entry.cases();
        let most = footprint(args, &cases)?;
        table.push([
            entry.name.to_owned(),
            formats(&cases),
            tiers(&cases),
            tunables(&cases),
            most.invocations.to_string(),
            most.workgroup_bytes.to_string(),
            most.storage_buffers.to_string(),
            cases.len().to_string(),
        ]);
    }
    Ok(table)
}

/// Returns the element types of those operands that have different ones in different cases.
fn formats(cases: &[Case]) -> String {
    let mut found: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for case in cases {
        for (index, operand) in case.kernel.operands().into_iter().enumerate() {
            let name = case.tensors[operand.tensor].dtype.to_string();
            let names = found.entry(index).or_default();
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    let varying: BTreeSet<String> =
        found.into_values().filter(|names| names.len() > 1).map(|names| names.join(" ")).collect();
    varying.into_iter().collect::<Vec<_>>().join("; ")
}

/// Returns the tiers at which the text of some case differs from the tier before.
fn tiers(cases: &[Case]) -> String {
    let mut names = Vec::new();
    let mut before: Option<Vec<Vec<Fragment>>> = None;
    for tier in Tier::ALL.into_iter().filter(|tier| cases.iter().any(|case| case.kernel.runs_on(*tier))) {
        let texts: Vec<Vec<Fragment>> = cases.iter().map(|case| case.kernel.source(tier)).collect();
        if before.as_ref() != Some(&texts) {
            names.push(tier.to_string());
        }
        before = Some(texts);
    }
    names.join(" ")
}

/// Returns names, defaults and values, `WG=64 of 32 64 128 256`.
fn tunables(cases: &[Case]) -> String {
    let mut found: BTreeMap<&str, (BTreeSet<u32>, BTreeSet<u32>)> = BTreeMap::new();
    for tunable in cases.iter().flat_map(|case| case.kernel.tunables()) {
        let (defaults, values) = found.entry(tunable.name).or_default();
        defaults.insert(tunable.default);
        values.extend(tunable.values);
    }
    let joined = |values: &BTreeSet<u32>, by| values.iter().map(u32::to_string).collect::<Vec<_>>().join(by);
    let shown = |(name, (defaults, values)): (&&str, &(BTreeSet<u32>, BTreeSet<u32>))| {
        format!("{name}={} of {}", joined(defaults, " or "), joined(values, " "))
    };
    found.iter().map(shown).collect::<Vec<_>>().join("; ")
}

/// Returns the largest footprint of the cases at any tier.
fn footprint(args: &ListArgs, cases: &[Case]) -> samara::Result<Footprint> {
    let shaders = args.shaders.read()?;
    let mut most = Footprint { invocations: 0, workgroup_bytes: 0, storage_buffers: 0 };
    let mut seen = BTreeSet::new();
    for tier in Tier::ALL {
        for case in cases.iter().filter(|case| case.kernel.runs_on(tier)) {
            let (fragments, dispatch) =
                (case.kernel.source(tier), case.kernel.dispatch(tier, &Choice::default()));
            let paths: Vec<&str> = fragments.iter().map(|fragment| fragment.path).collect();
            if seen.insert((paths, format!("{:?}", dispatch.overrides))) {
                let module = Module::new(&shaders.source(&fragments), tier)?;
                let found = module.specialise(&dispatch.overrides)?.footprint()?;
                most.invocations = most.invocations.max(found.invocations);
                most.workgroup_bytes = most.workgroup_bytes.max(found.workgroup_bytes);
                most.storage_buffers = most.storage_buffers.max(found.storage_buffers);
            }
        }
    }
    Ok(most)
}
