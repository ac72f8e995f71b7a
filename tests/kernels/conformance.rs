//! Compilers that share no code with naga take every kernel × format × tier: the validator of SPIRV-Tools,
//! DXC for HLSL, and Tint, Chrome's, for WGSL.
//!
//! `./check` installs them. A missing tool is reported; with `REQUIRE_TOOLS=1` it is a failure.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common;
use crate::common::variants::{Variant, variants};
use serde_json::{Value, json};

/// The scripts that run DXC and Tint, and what `./check` fetches for them.
const TOOLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/conformance");

/// The exit code of a script that cannot do its work on this machine.
const CANNOT: i32 = 77;

/// Every version of SPIR-V that wgpu writes, with the Vulkan it goes to.
const ENVIRONMENTS: [((u8, u8), &str); 4] =
    [((1, 0), "vulkan1.0"), ((1, 3), "vulkan1.1"), ((1, 5), "vulkan1.2"), ((1, 6), "vulkan1.3")];

/// Reports what is not checked and why; with `REQUIRE_TOOLS=1` that is a failure.
fn skipped(why: &str) {
    assert!(std::env::var_os("REQUIRE_TOOLS").is_none_or(|value| value != "1"), "REQUIRE_TOOLS=1 but {why}");
    common::skipped(why);
}

/// Runs a command on an input and returns its exit code and output; a missing one returns [`CANNOT`].
fn ask(command: &mut Command, input: &[u8]) -> (Option<i32>, String) {
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match pipes.spawn() {
        Ok(child) => child,
        Err(error) => return (Some(CANNOT), format!("{:?} cannot be run: {error}", command.get_program())),
    };
    // A command that gives up early closes its end.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).trim().to_owned())
}

/// A `spirv-val`.
struct Validator {
    path: PathBuf,
    version: String,
}

impl Validator {
    /// The one on the `PATH`, a distribution's, and the one that `./check` fetches; says which of them does not run.
    fn all() -> Vec<Self> {
        let paths = [PathBuf::from("spirv-val"), Path::new(TOOLS).join("fetched/spirv-val")];
        let version = |path: &PathBuf| {
            let said = Command::new(path).arg("--version").output().ok()?.stdout;
            Some(String::from_utf8(said).ok()?.split_whitespace().nth(1)?.to_owned())
        };
        let found = paths.into_iter().filter_map(|path| {
            let version = version(&path);
            if version.is_none() {
                skipped(&format!("`{}` does not run", path.display()));
            }
            Some(Self { version: version?, path })
        });
        found.collect()
    }

    /// Returns whether it is newer than the extension for cooperative matrices.
    fn knows_matrix_units(&self) -> bool {
        self.version.as_str() >= "v2023.4"
    }

    fn validate(&self, words: &[u32], environment: &str) -> Result<(), String> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        match ask(Command::new(&self.path).args(["--target-env", environment, "-"]), &bytes) {
            (Some(0), _) => Ok(()),
            (_, said) => Err(format!("{} says: {said}", self.version)),
        }
    }

    /// Validates a module but for one rule of 2025 that naga breaks with every array in workgroup memory,
    /// <https://github.com/gfx-rs/wgpu/issues/7696>; every other rule has to hold.
    fn check(&self, words: &[u32], environment: &str) -> Result<(), String> {
        match self.validate(words, environment) {
            Err(error) if error.contains("VUID-StandaloneSpirv-None-10684") => {
                self.validate(&without_stray_layouts(words), environment)
            }
            outcome => outcome,
        }
    }
}

/// Returns whether wgpu offers the variant's tier on devices that take this version of SPIR-V.
fn runs(variant: &Variant, version: (u8, u8)) -> bool {
    // f16 in buffers and subgroups came with Vulkan 1.1, the memory model of cooperative matrices with 1.2.
    let least = match variant.tier {
        _ if variant.needs_matrix_units() => (1, 5),
        tier if tier.f16 || tier.subgroup => (1, 3),
        _ => (1, 0),
    };
    version >= least
}

/// Drops layouts from the types that no buffer holds.
fn without_stray_layouts(words: &[u32]) -> Vec<u32> {
    let mut instructions = Vec::new();
    let mut rest = &words[5..];
    while let [first, ..] = rest {
        let (instruction, next) = rest.split_at((first >> 16) as usize);
        instructions.push((first & 0xffff, instruction));
        rest = next;
    }
    let mut held = BTreeSet::new();
    // Every type follows those that it is made of.
    for (opcode, instruction) in instructions.iter().rev() {
        match (opcode, &instruction[1..]) {
            // OpTypePointer: Uniform, PushConstant, StorageBuffer
            (32, &[_, 2 | 9 | 12, to]) => drop(held.insert(to)),
            // OpTypeArray, OpTypeRuntimeArray
            (28 | 29, &[id, element, ..]) if held.contains(&id) => drop(held.insert(element)),
            // OpTypeStruct
            (30, [id, members @ ..]) if held.contains(id) => held.extend(members),
            _ => {}
        }
    }
    let stray = |opcode: u32, instruction: &[u32]| match (opcode, &instruction[1..]) {
        // OpDecorate: ArrayStride
        (71, [id, 6, ..]) => !held.contains(id),
        // OpMemberDecorate: RowMajor, ColMajor, MatrixStride, Offset
        (72, [id, _, 4 | 5 | 7 | 35, ..]) => !held.contains(id),
        _ => false,
    };
    let kept = instructions.iter().filter(|(opcode, instruction)| !stray(*opcode, instruction));
    words[..5].iter().copied().chain(kept.flat_map(|(_, instruction)| instruction.iter().copied())).collect()
}

#[test]
fn spirv_val_accepts_every_kernel() {
    let validators = Validator::all();
    if validators.is_empty() {
        return;
    }
    let (mut refusals, mut seen) = (Vec::new(), BTreeSet::new());
    for variant in variants() {
        let matrix_units = variant.needs_matrix_units();
        let fit: Vec<_> = validators.iter().filter(|v| !matrix_units || v.knows_matrix_units()).collect();
        if fit.is_empty() {
            skipped(&format!("no spirv-val here is new enough for {}", variant.name()));
        }
        let module = variant.module().unwrap();
        for (version, environment) in ENVIRONMENTS.into_iter().filter(|&(version, _)| runs(&variant, version))
        {
            let words = module.spirv_of(version).unwrap();
            let errors = fit.iter().filter_map(|validator| validator.check(&words, environment).err());
            // Tiers have many modules in common.
            if seen.insert(words.clone()) {
                refusals.extend(errors.map(|error| format!("{} for {environment}: {error}", variant.name())));
            }
        }
    }
    eprintln!("{} modules validated", seen.len());
    assert!(refusals.is_empty(), "{} refusals:\n{}", refusals.len(), refusals.join("\n\n"));
}

/// Gives the modules to a script that compiles them, those that differ by nothing but their names once; what it refuses
/// is a failure.
fn compile(script: &mut Command, modules: impl Iterator<Item = Value>) {
    let mut seen = BTreeSet::new();
    let modules: Vec<Value> = modules
        .filter(|module| {
            let mut unnamed = module.clone();
            unnamed["name"].take();
            seen.insert(unnamed.to_string())
        })
        .collect();
    let count = modules.len();
    assert!(count > 0);
    match ask(script, Value::from(modules).to_string().as_bytes()) {
        (Some(0), said) => eprintln!("{count} modules: {said}"),
        (Some(CANNOT), why) => skipped(&why),
        (_, refusals) => panic!("{refusals}"),
    }
}

#[test]
fn dxc_compiles_every_kernel_without_matrix_units() {
    let library = Path::new(TOOLS).join("fetched/libdxcompiler.so");
    if !library.exists() {
        return skipped("DXC is not installed");
    }
    let module = |variant: Variant| json!({ "name": variant.name(), "text": variant.module().unwrap().hlsl().unwrap(), "f16": variant.tier.f16 });
    let modules = variants().into_iter().filter(|variant| !variant.needs_matrix_units()).map(module);
    compile(Command::new("python3").arg(Path::new(TOOLS).join("dxc.py")).arg(library), modules);
}

#[test]
fn tint_compiles_every_kernel_without_matrix_units() {
    if !Path::new(TOOLS).join("node_modules/webgpu").exists() {
        return skipped("Tint, of the npm package webgpu, is not installed");
    }
    let module = |variant: Variant| {
        // naga does not know this directive yet: it takes subgroups without.
        let enable = if variant.tier.subgroup { "enable subgroups; " } else { "" };
        let overrides: serde_json::Map<String, Value> =
            variant.dispatch.overrides.iter().map(|&(name, value)| (name.to_owned(), value.into())).collect();
        let text = format!("{enable}{}", variant.source.text);
        json!({ "name": variant.name(), "text": text, "overrides": overrides })
    };
    let modules = variants().into_iter().filter(|variant| !variant.needs_matrix_units()).map(module);
    compile(Command::new("node").arg(Path::new(TOOLS).join("tint.mjs")), modules);
}
