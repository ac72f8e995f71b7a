//! The text of a kernel: files that replace its fragments, and the module that they are joined into.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{Fragment, LIST, Tier};
use crate::error::{Error, Result};

/// Shader files that replace built-in ones.
///
/// Like those they run without bounds checks; `samara kernel test` finds accesses out of bounds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shaders {
    folder: PathBuf,
    texts: BTreeMap<String, String>,
}

impl Shaders {
    /// Reads every `.wgsl` file below a folder; each replaces the built-in one of the same relative path.
    ///
    /// # Errors
    /// When a file cannot be read, there is none, or one has a path that no built-in shader has.
    pub fn read(folder: &Path) -> Result<Self> {
        let known = paths();
        let mut texts = BTreeMap::new();
        for path in files(folder)? {
            let relative =
                path.strip_prefix(folder).expect("it lies below").to_string_lossy().replace('\\', "/");
            if !known.contains(relative.as_str()) {
                return Err(Error::Input(format!(
                    "`{}` replaces no built-in shader: there is no `{relative}` among {}",
                    path.display(),
                    known.iter().copied().collect::<Vec<_>>().join(", ")
                )));
            }
            texts.insert(relative, fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?);
        }
        if texts.is_empty() {
            return Err(Error::Input(format!("`{}` holds no .wgsl file", folder.display())));
        }
        Ok(Self { folder: folder.to_owned(), texts })
    }

    /// Yields the paths that are replaced, relative to the folder.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.texts.keys().map(String::as_str)
    }

    /// Returns whether a replaced file is among these fragments.
    pub fn change(&self, fragments: &[Fragment]) -> bool {
        fragments.iter().any(|fragment| self.texts.contains_key(fragment.path))
    }

    /// Joins fragments, or what replaces them, into one module.
    pub fn source(&self, fragments: &[Fragment]) -> Source {
        let file = |fragment: &Fragment| match self.texts.get(fragment.path) {
            Some(text) => (self.folder.join(fragment.path).display().to_string(), text.clone()),
            None => (format!("shaders/{}", fragment.path), fragment.text.to_owned()),
        };
        Source::new(fragments.iter().map(file).collect())
    }
}

/// Returns the paths of all shader files.
fn paths() -> BTreeSet<&'static str> {
    let mut paths = BTreeSet::new();
    for case in LIST.iter().flat_map(|entry| entry.cases()) {
        for tier in Tier::ALL.into_iter().filter(|tier| case.kernel.runs_on(*tier)) {
            paths.extend(case.kernel.source(tier).iter().map(|fragment| fragment.path));
        }
    }
    paths
}

/// Returns the `.wgsl` files below a folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| Error::io("read", folder, e))? {
        let path = entry.map_err(|e| Error::io("read", folder, e))?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "wgsl") {
            found.push(path);
        }
    }
    Ok(found)
}

/// The text of one WGSL module, with the origin of each of its lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The module.
    pub text: String,
    /// Name and text of each file.
    pub files: Vec<(String, String)>,
    lines: Vec<Line>,
}

/// Where a line begins in the module, and in which file at which offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    start: usize,
    file: usize,
    offset: usize,
}

impl Source {
    /// Joins files, with `enable` directives first, as WGSL requires.
    fn new(files: Vec<(String, String)>) -> Self {
        let (mut text, mut lines) = (String::new(), Vec::new());
        let mut enabled = BTreeSet::new();
        let all =
            || files.iter().enumerate().flat_map(|(file, (_, text))| each_line(text).map(move |l| (file, l)));
        for (file, (offset, line)) in all().filter(|(_, (_, line))| line.starts_with("enable ")) {
            if enabled.insert(line) {
                lines.push(Line { start: text.len(), file, offset });
                text.push_str(line);
                text.push('\n');
            }
        }
        for (file, (offset, line)) in all() {
            lines.push(Line { start: text.len(), file, offset });
            // An empty line replaces a directive.
            text.push_str(if line.starts_with("enable ") { "" } else { line });
            text.push('\n');
        }
        Self { text, files, lines }
    }

    /// Returns the index in `files`, and the bytes of that file, that a part of the module comes from.
    pub(crate) fn locate(&self, range: Range<usize>) -> (usize, Range<usize>) {
        let at = |offset: usize| {
            let line = self.lines[self.lines.partition_point(|line| line.start <= offset).max(1) - 1];
            (line.file, (line.offset + offset - line.start).min(self.files[line.file].1.len()))
        };
        let ((file, start), (last, end)) = (at(range.start), at(range.end));
        (file, start..if last == file { end.max(start) } else { self.files[file].1.len() })
    }
}

/// Yields the lines of a text, without their ends, and where they begin.
fn each_line(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.split_inclusive('\n').scan(0, |next, line| {
        let start = *next;
        *next += line.len();
        Some((start, line.trim_end_matches(['\n', '\r'])))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::fragment;

    fn source(texts: &[&str]) -> Source {
        let files = texts.iter().enumerate().map(|(i, text)| (format!("{i}.wgsl"), (*text).to_owned()));
        Source::new(files.collect())
    }

    #[test]
    fn every_byte_of_a_module_is_found_in_its_file() {
        let source =
            source(&["// a\nfn f() {}\n", "enable f16;\r\n// b\r\nfn g() {}", "enable f16;\nfn h() {}\n"]);
        assert_eq!(source.text, "enable f16;\n// a\nfn f() {}\n\n// b\nfn g() {}\n\nfn h() {}\n");
        for (name, file) in [("fn f", 0), ("// b", 1), ("fn g", 1), ("fn h", 2), ("enable", 1)] {
            let start = source.text.find(name).unwrap();
            let (found, range) = source.locate(start..start + name.len());
            assert_eq!((found, &source.files[found].1[range]), (file, name));
        }
    }

    #[test]
    fn a_part_that_ends_in_another_file_ends_with_its_own() {
        let source = source(&["fn f() {\n", "}\n"]);
        assert_eq!(source.locate(3..source.text.len()), (0, 3..9));
        assert_eq!(source.locate(0..0), (0, 0..0));
    }

    #[test]
    fn files_replace_built_in_ones_and_strangers_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let message = || Shaders::read(folder.path()).unwrap_err().to_string();
        assert!(message().contains("holds no .wgsl file"), "{}", message());
        fs::create_dir(folder.path().join("product")).unwrap();
        fs::write(folder.path().join("product/rows.wgsl"), "// mine").unwrap();
        fs::write(folder.path().join("notes.txt"), "not a shader").unwrap();
        let shaders = Shaders::read(folder.path()).unwrap();
        assert_eq!(shaders.paths().collect::<Vec<_>>(), ["product/rows.wgsl"]);
        let (rows, add) = (fragment!("product/rows.wgsl"), fragment!("add.wgsl"));
        assert!(shaders.change(&[add, rows]) && !shaders.change(&[add]));
        let source = shaders.source(&[add, rows]);
        assert!(source.text.starts_with("// Residual connection") && source.text.ends_with("// mine\n"));
        fs::write(folder.path().join("adds.wgsl"), "").unwrap();
        assert!(message().contains("adds.wgsl") && message().contains("add.wgsl,"), "{}", message());
    }
}
