//! The rules of the house that a compiler does not check.

mod imports;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use imports::{Circle, Import, Module, Tree};
use samara::kernels::PRODUCTS;
use samara::kernels::{LIST, Shaders, Tier};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder` with this extension, relative to the root, with its text.
fn files(folder: &str, extension: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push((
                    path.strip_prefix(root()).unwrap().to_owned(),
                    fs::read_to_string(&path).unwrap(),
                ));
            }
        }
    }
    assert!(!found.is_empty());
    found
}

/// Lines that are not comments.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.starts_with("//"))
}

#[test]
fn only_the_gpu_module_names_wgpu() {
    for (path, text) in files("engine", "rs") {
        let named = code(&text).any(|line| line.contains("wgpu::"));
        assert!(!named || path.starts_with("engine/gpu"), "{} names wgpu", path.display());
    }
}

#[test]
fn lower_rows_never_import_higher_ones() {
    // design: tensor, error < quant, files < kernels < graph, translate < model, gpu, tokenizer, sampler,
    // stop < session < instruments, server < cli
    let rows: [&[&str]; 8] = [
        &["tensor", "error"],
        &["quant", "files"],
        &["kernels"],
        &["graph", "translate"],
        &["model", "gpu", "tokenizer", "sampler", "stop"],
        &["session"],
        &["instruments", "server"],
        &["cli"],
    ];
    let row = |module: &str| rows.iter().position(|row| row.contains(&module));
    for Import { file, from, to, path } in Tree::of_crate().imports() {
        let (Some(module), Some(other)) = (from.first(), to.first()) else { continue };
        let Some(own) = row(module) else { continue };
        let allowed = module == other || row(other).is_none_or(|row| row < own);
        assert!(allowed, "{}: `{module}` imports `{other}`: {path}", file.display());
    }
}

#[test]
fn no_files_of_a_folder_import_each_other_in_a_circle() {
    let circles = Tree::of_crate().circles();
    let found: String = circles.iter().map(Circle::to_string).collect();
    assert!(circles.is_empty(), "{} circles of imports:\n{found}", circles.len());
}

/// The files of a kernel in a folder: one, or those of its family's folder.
fn kernel_files(name: &str, folder: &str, extension: &str) -> Vec<(PathBuf, String)> {
    let own = Path::new(folder).join(if PRODUCTS.contains(&name) { "product" } else { name });
    let file = own.with_extension(extension);
    let mut all = files(folder, extension);
    all.retain(|(path, _)| *path == file || path.starts_with(&own));
    assert!(!all.is_empty(), "{name} has no file {} and no folder {}", file.display(), own.display());
    all
}

#[test]
fn a_kernel_is_a_pair_or_one_of_a_family_in_a_sorted_list_and_imports_no_other() {
    let names: Vec<&str> = LIST.iter().map(|entry| entry.name).collect();
    assert!(names.is_sorted(), "{names:?}");
    for name in &names {
        kernel_files(name, "engine/kernels", "rs");
        for (path, text) in kernel_files(name, "shaders", "wgsl") {
            let header = text.lines().take_while(|line| line.starts_with("//")).count();
            assert!((1..=20).contains(&header), "{} has a header of {header} lines", path.display());
        }
    }
    let kernel = |module: &Module| match &module[..] {
        [row, name, ..] if row == "kernels" => {
            Some(name.clone()).filter(|name| name == "product" || names.contains(&name.as_str()))
        }
        _ => None,
    };
    for Import { file, from, to, path } in Tree::of_crate().imports() {
        let (Some(own), Some(other)) = (kernel(&from), kernel(&to)) else { continue };
        assert!(own == other, "{} imports the kernel {other}: {path}", file.display());
    }
}

#[test]
fn a_kernel_has_one_entry_point_in_every_tier() {
    for case in LIST.iter().flat_map(|entry| entry.cases()) {
        for tier in Tier::ALL.into_iter().filter(|tier| case.kernel.runs_on(*tier)) {
            let source = Shaders::default().source(&case.kernel.source(tier));
            assert_eq!(source.text.matches("@compute").count(), 1, "{} tier {tier}", case.kernel.name());
        }
    }
}

#[test]
fn every_shader_file_is_part_of_a_kernel() {
    let mut used = BTreeSet::new();
    for entry in LIST.iter() {
        for case in entry.cases() {
            for tier in Tier::ALL.into_iter().filter(|tier| case.kernel.runs_on(*tier)) {
                used.extend(
                    case.kernel.source(tier).iter().map(|fragment| Path::new("shaders").join(fragment.path)),
                );
            }
        }
    }
    let found: BTreeSet<PathBuf> = files("shaders", "wgsl").into_iter().map(|(path, _)| path).collect();
    assert_eq!(found, used);
}
