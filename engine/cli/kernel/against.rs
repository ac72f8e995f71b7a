//! `samara kernel bench --against DIR`: times the built-in version of a kernel and a changed one, interleaved.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use samara::Error;
use samara::gpu::{Gpu, Tuning};
use samara::instruments::document::Environment;
use samara::instruments::versions::{self, Comparison};
use samara::kernels::{Case, Entry, Shaders};

use super::super::table::Table;
use super::super::{COMMIT, Failure, introduce, note, warn_of_software};
use super::bench::BenchArgs;
use super::duration;

/// How often to poll a folder.
const POLL: Duration = Duration::from_millis(200);

/// Compares once, or until interrupted.
pub fn run(args: &BenchArgs, folder: &Path) -> Result<(), Failure> {
    if args.device.shaders.shaders.is_some() {
        let message = "--against compares with the built-in shaders: leave out --shaders";
        return Err(Error::Input(message.to_owned()).into());
    }
    if !folder.is_dir() {
        return Err(Error::Input(format!("--against `{}` is no directory", folder.display())).into());
    }
    let entries = args.selection.entries()?;
    let mut gpu = args.timing.open(&args.device)?;
    // Tuned values were found for the built-in text and would favour it.
    gpu.set_tuning(Tuning::default());
    if !args.quiet {
        introduce(&Environment::of(&gpu, COMMIT));
        warn_of_software(gpu.summary());
    }
    if !args.watch {
        return round(args, &mut gpu, &entries, folder);
    }
    let mut watch = Watch::new(folder);
    loop {
        match round(args, &mut gpu, &entries, folder) {
            Err(Failure::Output(error)) => return Err(error.into()),
            Err(failure) => note(format_args!("error: {failure}")),
            Ok(()) => {}
        }
        // A lost device does not come back.
        gpu.wait()?;
        note(format_args!("watching `{}`; Ctrl-C ends", folder.display()));
        let changed = watch.wait();
        note(format_args!("\nchanged: {}", changed.join(", ")));
    }
}

/// Compares every case that the folder changes.
fn round(args: &BenchArgs, gpu: &mut Gpu, entries: &[&Entry], folder: &Path) -> Result<(), Failure> {
    let changed = Shaders::read(folder)?;
    let cases = affected(args, gpu, entries, folder, &changed)?;
    let mut out = io::stdout().lock();
    let mut wrong = 0;
    for case in &cases {
        let (name, label) = (case.kernel.name(), &case.label);
        match versions::against(gpu, case, &changed, args.timing.samples())? {
            Ok(comparison) => {
                writeln!(out, "{name} [{label}]\n\n{}\n{}\n", table(&comparison), verdict(&comparison))?;
            }
            Err(mismatch) => {
                wrong += 1;
                note(format_args!("not timed: {name} [{label}]: {mismatch}"));
            }
        }
        out.flush()?;
    }
    match wrong {
        0 => Ok(()),
        _ => Err(Failure::Wrong(format!("{wrong} of {} cases are wrong and were not timed", cases.len()))),
    }
}

/// Returns the cases whose text includes a changed file.
fn affected(
    args: &BenchArgs,
    gpu: &Gpu,
    entries: &[&Entry],
    folder: &Path,
    changed: &Shaders,
) -> Result<Vec<Case>, Failure> {
    let mut cases = args.selection.timed(entries, gpu.tier())?;
    cases.retain(|case| changed.change(&case.kernel.source(gpu.tier())));
    if cases.is_empty() {
        let files: Vec<&str> = changed.paths().collect();
        return Err(Error::Input(format!(
            "--against `{}`: none of {} is part of a case of {} at tier {}",
            folder.display(),
            files.join(", "),
            args.selection.name,
            gpu.tier()
        ))
        .into());
    }
    Ok(cases)
}

/// Returns the times of both versions, pair by pair.
fn table(comparison: &Comparison) -> Table {
    let mut table = Table::new([">pair", ">built-in", ">changed", ">ratio"]);
    let pairs = comparison.first.values().iter().zip(comparison.second.values());
    for (index, (first, second)) in pairs.enumerate() {
        let ratio = format!("{:.3}", second / first);
        table.push([(index + 1).to_string(), duration(*first), duration(*second), ratio]);
    }
    table
}

/// Returns the verdict of a comparison, in one line.
fn verdict(comparison: &Comparison) -> String {
    let ratios = comparison.ratios();
    let (median, least, most) = (ratios.median(), ratios.min(), ratios.max());
    let what = match (comparison.differs(), comparison.first.median() > comparison.second.median()) {
        (false, _) => "no difference beyond the spread",
        (true, true) => "the changed version is faster",
        (true, false) => "the changed version is slower",
    };
    let (faster, pairs) =
        (ratios.values().iter().filter(|ratio| **ratio < 1.0).count(), ratios.values().len());
    format!("ratio {median:.3} ({least:.3} to {most:.3}), faster in {faster} of {pairs} pairs: {what}")
}

/// Time and length of each shader file below a folder.
type Stamps = BTreeMap<PathBuf, (Option<SystemTime>, u64)>;

/// Detects which shader files are saved, created or deleted.
struct Watch {
    folder: PathBuf,
    seen: Stamps,
}

impl Watch {
    fn new(folder: &Path) -> Self {
        let mut seen = Stamps::new();
        stamp(folder, &mut seen);
        Self { folder: folder.to_owned(), seen }
    }

    /// Returns the files that changed since the last call, sorted by name.
    fn changes(&mut self) -> Vec<String> {
        let mut now = Stamps::new();
        stamp(&self.folder, &mut now);
        let gone = self.seen.keys().filter(|path| !now.contains_key(*path));
        let new =
            now.iter().filter(|(path, stamp)| self.seen.get(*path) != Some(stamp)).map(|(path, _)| path);
        let shown = |path: &PathBuf| path.strip_prefix(&self.folder).unwrap_or(path).display().to_string();
        let mut changes: Vec<String> = gone.chain(new).map(shown).collect();
        changes.sort();
        self.seen = now;
        changes
    }

    /// Waits for a change, and then until nothing changes any more: an editor may write a file in several steps.
    fn wait(&mut self) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            thread::sleep(POLL);
            let changes = self.changes();
            if changes.is_empty() && !all.is_empty() {
                return all;
            }
            all.extend(changes);
            all.sort();
            all.dedup();
        }
    }
}

/// Records the time and length of each shader file below a folder. Files that cannot be read are left out: reading the
/// shaders reports why.
fn stamp(folder: &Path, stamps: &mut Stamps) {
    let Ok(entries) = folder.read_dir() else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            stamp(&path, stamps);
        } else if path.extension().is_some_and(|extension| extension == "wgsl")
            && let Ok(metadata) = path.metadata()
        {
            stamps.insert(path, (metadata.modified().ok(), metadata.len()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use samara::instruments::samples::Samples;

    use super::*;

    #[test]
    fn files_that_are_made_saved_or_deleted_are_changes_and_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        fs::write(file("add.wgsl"), "a").unwrap();
        let mut watch = Watch::new(folder.path());
        assert!(watch.changes().is_empty());
        fs::create_dir(file("lib")).unwrap();
        fs::write(file("lib/keys.wgsl"), "b").unwrap();
        fs::write(file("notes.txt"), "c").unwrap();
        assert_eq!(watch.changes(), [Path::new("lib").join("keys.wgsl").display().to_string()]);
        assert!(watch.changes().is_empty());
        // The same length at another time, and another length.
        let time = SystemTime::now() + Duration::from_secs(9);
        fs::File::options().write(true).open(file("add.wgsl")).unwrap().set_modified(time).unwrap();
        assert_eq!(watch.changes(), ["add.wgsl"]);
        fs::write(file("add.wgsl"), "longer").unwrap();
        assert_eq!(watch.changes(), ["add.wgsl"]);
        fs::remove_file(file("add.wgsl")).unwrap();
        assert_eq!(watch.changes(), ["add.wgsl"]);
        fs::remove_dir_all(folder.path()).unwrap();
        assert_eq!(watch.changes().len(), 1);
    }

    #[test]
    fn a_verdict_names_the_median_ratio_its_range_and_who_is_faster() {
        let verdict = |first: [f64; 3], second: [f64; 3]| {
            verdict(&Comparison {
                first: Samples::new(first.to_vec()),
                second: Samples::new(second.to_vec()),
            })
        };
        assert_eq!(
            verdict([100.0, 100.0, 100.0], [50.0, 40.0, 60.0]),
            "ratio 0.500 (0.400 to 0.600), faster in 3 of 3 pairs: the changed version is faster"
        );
        assert_eq!(
            verdict([50.0, 40.0, 60.0], [100.0, 100.0, 120.0]),
            "ratio 2.000 (2.000 to 2.500), faster in 0 of 3 pairs: the changed version is slower"
        );
        assert_eq!(
            verdict([90.0, 100.0, 110.0], [99.0, 100.0, 99.0]),
            "ratio 1.000 (0.900 to 1.100), faster in 1 of 3 pairs: no difference beyond the spread"
        );
    }
}
