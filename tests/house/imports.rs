//! Who imports whom, read from the syntax of the files: `use` trees, paths in code, and paths in the tokens of
//! macros and attributes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use syn::buffer::{Cursor, TokenBuffer};
use syn::ext::IdentExt;
use syn::visit::{self, Visit};
use syn::{Ident, ItemMod, ItemUse, Macro, MetaList, UseTree};

use crate::files;

/// The names from the root of the crate to a module; an inline module is one too.
pub type Module = Vec<String>;

/// Most re-exports that a name is followed through.
const MOST_HOPS: usize = 8;

/// A path that is written in a module.
struct Written {
    file: usize,
    module: Module,
    path: Vec<String>,
}

/// What one file of a module names in another one.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Import {
    pub file: PathBuf,
    pub from: Module,
    pub to: Module,
    /// As it is written.
    pub path: String,
}

/// Files that name each other in a circle.
#[derive(Debug, PartialEq, Eq)]
pub struct Circle {
    pub folder: Module,
    /// Files and folders in it.
    pub names: BTreeSet<String>,
    /// One import for each pair of them.
    pub imports: Vec<String>,
}

impl fmt::Display for Circle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        writeln!(f, "engine/{}: {}", self.folder.join("/"), names.join(", "))?;
        self.imports.iter().try_for_each(|import| writeln!(f, "  {import}"))
    }
}

/// The modules of a crate and every path in them.
#[derive(Default)]
pub struct Tree {
    files: Vec<(PathBuf, Module)>,
    modules: BTreeSet<Module>,
    /// What each name that a `use` brings into a module stands for, seen from that module.
    aliases: BTreeMap<(Module, String), Vec<String>>,
    globs: BTreeMap<Module, Vec<Vec<String>>>,
    written: Vec<Written>,
}

impl Tree {
    /// Reads the crate itself. The program and the library have the same root: `samara` is `crate`.
    pub fn of_crate() -> Self {
        Self::new(&files("engine", "rs"), "engine")
    }

    /// Reads files that all lie below `root`.
    fn new(texts: &[(PathBuf, String)], root: &str) -> Self {
        let module = |path: &Path| {
            let path = path.strip_prefix(root).unwrap().with_extension("");
            let hub = path.ends_with("mod") || ["lib", "main"].iter().any(|name| path == Path::new(name));
            let folder = if hub { path.parent().unwrap() } else { &path };
            folder.iter().map(|name| name.to_str().unwrap().to_owned()).collect()
        };
        let files: Vec<(PathBuf, Module)> =
            texts.iter().map(|(path, _)| (path.clone(), module(path))).collect();
        let modules = files.iter().map(|(_, module)| module.clone()).collect();
        let mut tree = Self { files, modules, ..Self::default() };
        for (file, (path, text)) in texts.iter().enumerate() {
            let syntax = syn::parse_file(text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let module = tree.files[file].1.clone();
            Reader { tree: &mut tree, file, module }.visit_file(&syntax);
        }
        tree
    }

    /// Returns what files name outside themselves, each once.
    pub fn imports(&self) -> BTreeSet<Import> {
        let import = |Written { file, module, path }: &Written| {
            let (file, from) = self.files[*file].clone();
            let to = self.find(module, path, MOST_HOPS)?;
            (to != from).then(|| Import { file, from, to, path: path.join("::") })
        };
        self.written.iter().filter_map(import).collect()
    }

    /// Returns the file of the module that has what a path names; `None` for paths outside the crate.
    fn find(&self, from: &[String], path: &[String], hops: usize) -> Option<Module> {
        let mut at = from.to_vec();
        for (index, name) in path.iter().enumerate() {
            match name.as_str() {
                "crate" | "samara" => at.clear(),
                "self" => {}
                "super" => drop(at.pop()),
                _ => {
                    at.push(name.clone());
                    if self.modules.contains(&at) {
                        continue;
                    }
                    at.pop();
                    let found = self.follow(&at, name, &path[index + 1..], hops);
                    // What no `use` brings in is an item of the module, if the path led to it.
                    return found.or_else(|| (index > 0).then(|| self.file_of(at)));
                }
            }
        }
        Some(self.file_of(at))
    }

    /// Follows a path through the `use` of a name, or of everything, in a module.
    fn follow(&self, at: &Module, name: &str, rest: &[String], hops: usize) -> Option<Module> {
        let hops = hops.checked_sub(1)?;
        if let Some(alias) = self.aliases.get(&(at.clone(), name.to_owned())) {
            return self.find(at, &[alias, rest].concat(), hops);
        }
        self.globs.get(at)?.iter().find_map(|glob| {
            let within = self.find(at, glob, hops)?;
            let child = [&within[..], &[name.to_owned()]].concat();
            let has = self.modules.contains(&child)
                || self.aliases.contains_key(&(within.clone(), name.to_owned()));
            has.then(|| self.find(&within, &[&["self".to_owned(), name.to_owned()], rest].concat(), hops))?
        })
    }

    /// Returns the innermost module of a path that is a file.
    fn file_of(&self, mut module: Module) -> Module {
        while !self.modules.contains(&module) {
            module.pop();
        }
        module
    }

    /// Returns the circles among the files and folders of every folder. A folder's `mod.rs` joins them and is in none.
    pub fn circles(&self) -> Vec<Circle> {
        let mut folders: BTreeMap<Module, BTreeMap<(String, String), String>> = BTreeMap::new();
        for Import { file, from, to, path } in self.imports() {
            let shared = from.iter().zip(&to).take_while(|(from, to)| from == to).count();
            let (Some(source), Some(target)) = (from.get(shared), to.get(shared)) else { continue };
            let pairs = folders.entry(from[..shared].to_vec()).or_default();
            let text = format!("{} imports {target}: {path}", file.display());
            pairs.entry((source.clone(), target.clone())).or_insert(text);
        }
        folders.into_iter().flat_map(|(folder, pairs)| circles_of(&folder, &pairs)).collect()
    }
}

/// Returns the strongly connected parts of a folder that have more than one file.
fn circles_of(folder: &Module, pairs: &BTreeMap<(String, String), String>) -> Vec<Circle> {
    let reached = |start: &String| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![start.clone()]);
        while let Some(name) = open.pop() {
            let next = pairs.keys().filter(|(from, _)| *from == name).map(|(_, to)| to.clone());
            open.extend(next.filter(|to| seen.insert(to.clone())));
        }
        seen
    };
    let names: BTreeSet<&String> = pairs.keys().map(|(from, _)| from).collect();
    let reach: BTreeMap<&String, BTreeSet<String>> =
        names.into_iter().map(|name| (name, reached(name))).collect();
    let circle = |(name, all): (&&String, &BTreeSet<String>)| -> BTreeSet<String> {
        let back = |other: &&String| reach.get(other).is_some_and(|reach| reach.contains(*name));
        all.iter().filter(back).cloned().collect()
    };
    let distinct: BTreeSet<BTreeSet<String>> =
        reach.iter().map(circle).filter(|names| names.len() > 1).collect();
    let circle = |names: BTreeSet<String>| {
        let within = |(from, to): &(String, String)| names.contains(from) && names.contains(to);
        let imports = pairs.iter().filter(|(pair, _)| within(pair)).map(|(_, text)| text.clone()).collect();
        Circle { folder: folder.clone(), names, imports }
    };
    distinct.into_iter().map(circle).collect()
}

/// Records every path of a file.
struct Reader<'a> {
    tree: &'a mut Tree,
    file: usize,
    module: Module,
}

impl Reader<'_> {
    fn note(&mut self, path: Vec<String>) {
        self.tree.written.push(Written { file: self.file, module: self.module.clone(), path });
    }

    /// Records each path of a `use`, and the name that it brings in.
    fn note_use(&mut self, tree: &UseTree, mut path: Vec<String>) {
        let (name, renamed) = match tree {
            UseTree::Path(part) => {
                path.push(part.ident.unraw().to_string());
                return self.note_use(&part.tree, path);
            }
            UseTree::Group(group) => {
                return group.items.iter().for_each(|tree| self.note_use(tree, path.clone()));
            }
            UseTree::Glob(_) => {
                self.tree.globs.entry(self.module.clone()).or_default().push(path.clone());
                return self.note(path);
            }
            UseTree::Name(name) => (&name.ident, &name.ident),
            UseTree::Rename(rename) => (&rename.ident, &rename.rename),
        };
        // `self` in a group is what the group belongs to.
        let mut known = renamed.unraw().to_string();
        if name != "self" {
            path.push(name.unraw().to_string());
        } else if known == "self" {
            known = path.last().cloned().unwrap_or_default();
        }
        self.tree.aliases.insert((self.module.clone(), known), path.clone());
        self.note(path);
    }

    /// Records the paths of two names or more; a single name may be anything.
    fn note_tokens(&mut self, mut at: Cursor<'_>) {
        while !at.eof() {
            if let Some((inside, _, _, after)) = at.any_group() {
                self.note_tokens(inside);
                at = after;
            } else if let Some((first, mut after)) = at.ident() {
                let mut path = vec![first.unraw().to_string()];
                while let Some((name, next)) = joined(after) {
                    path.push(name.unraw().to_string());
                    after = next;
                }
                at = after;
                if path.len() > 1 {
                    self.note(path);
                }
            } else {
                at = at.token_tree().map_or_else(Cursor::empty, |(_, after)| after);
            }
        }
    }
}

/// Returns the name that follows with `::`.
fn joined(at: Cursor<'_>) -> Option<(Ident, Cursor<'_>)> {
    let (first, at) = at.punct()?;
    let (second, at) = at.punct()?;
    if first.as_char() == ':' && second.as_char() == ':' { at.ident() } else { None }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        self.module.push(item.ident.unraw().to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        if item.leading_colon.is_none() {
            self.note_use(&item.tree, Vec::new());
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() {
            self.note(path.segments.iter().map(|segment| segment.ident.unraw().to_string()).collect());
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast Macro) {
        self.note_tokens(TokenBuffer::new2(item.tokens.clone()).begin());
        visit::visit_macro(self, item);
    }

    fn visit_meta_list(&mut self, list: &'ast MetaList) {
        self.note_tokens(TokenBuffer::new2(list.tokens.clone()).begin());
        visit::visit_meta_list(self, list);
    }
}

/// A crate of these files below `src`.
fn made_up(texts: &[(&str, &str)]) -> Tree {
    let texts: Vec<_> =
        texts.iter().map(|(path, text)| (Path::new("src").join(path), (*text).to_owned())).collect();
    Tree::new(&texts, "src")
}

#[test]
fn imports_are_seen_in_groups_renames_globs_paths_macros_and_attributes() {
    let files = [
        ("lib.rs", "pub use a::B; pub mod a; mod c; mod d; mod e;"),
        ("a/mod.rs", "mod b; pub(crate) use b::{B, f as g};"),
        ("a/b.rs", "pub struct B;"),
        ("c.rs", "pub fn f() {}"),
        ("d.rs", ""),
    ];
    let seen = |text: &str| -> Vec<String> {
        let tree = made_up(&[&files[..], &[("e.rs", text)]].concat());
        let imports = tree.imports().into_iter().filter(|import| import.from == ["e"]);
        let to: BTreeSet<String> = imports.map(|import| import.to.join("/")).collect();
        to.into_iter().filter(|to| !to.is_empty()).collect()
    };
    assert_eq!(seen("use crate::{a::B, c};"), ["a/b", "c"]);
    assert_eq!(seen("use crate::{self, B, a::{self, g as h}};"), ["a", "a/b"]);
    assert_eq!(seen("use super::*; fn f() { c::f() }"), ["c"]);
    assert_eq!(seen("use super::*; struct S(B);"), ["a/b"]);
    assert_eq!(seen("mod tests { use super::super::a::*; fn f() { g() } }"), ["a", "a/b"]);
    assert_eq!(seen("use crate as root; fn f() { root::c::f(); }"), ["c"]);
    assert_eq!(seen("use super::a; fn f() -> Vec<a::B> { vec![] }"), ["a", "a/b"]);
    assert_eq!(seen("fn f() { println!(\"{:?}\", (1, [crate::c::f()])) }"), ["c"]);
    assert_eq!(seen("#[serde(default = crate::d::X)] struct S;"), ["d"]);
    assert_eq!(
        seen("impl crate::a::B { fn f(x: u8) { match x { super::c::X => {} _ => {} } } }"),
        ["a/b", "c"]
    );
    assert!(seen("// crate::c\nuse std::c; use ::c::f; const C: &str = \"crate::c\"; mod c {}").is_empty());
}

#[test]
fn a_circle_is_found_and_named_with_its_imports() {
    let tree = made_up(&[
        ("lib.rs", "mod a; mod z;"),
        ("a/mod.rs", "mod b; mod c; mod d; mod e; pub use b::B; use c::C;"),
        ("a/b.rs", "use crate::{a::C, z};"),
        ("a/c.rs", "fn f() { super::d::f() }"),
        ("a/d.rs", "use super::B; use super::e;"),
        ("a/e.rs", "use crate::z;"),
        ("z.rs", ""),
    ]);
    let circles = tree.circles();
    assert_eq!(circles.len(), 1, "{circles:?}");
    assert_eq!(circles[0].folder, ["a"]);
    assert!(circles[0].names.iter().eq(["b", "c", "d"]), "{circles:?}");
    let found = |text: &str| circles[0].imports.iter().any(|import| import.replace('\\', "/") == text);
    assert!(found("src/a/b.rs imports c: crate::a::C"), "{circles:?}");
    assert!(found("src/a/c.rs imports d: super::d::f"), "{circles:?}");
    assert!(found("src/a/d.rs imports b: super::B"), "{circles:?}");
}
