//! `samara kernel` and `--shaders` as their users run them.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use crate::common::program::{errors, refused, run, samara, stdout};
use crate::common::{has_gpu, write_changed};
use samara::instruments::document::Document;
use samara::kernels::LIST;

/// A folder with changed shaders.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    /// Saves `add.wgsl` with another sum than `a + b`.
    fn add(&self, sum: &str) -> &Self {
        write_changed(self.0.path(), "add.wgsl", "a[id.x] + b[id.x]", sum);
        self
    }
}

const CORRECT: &str = "b[id.x] + a[id.x]";
const WRONG: &str = "a[id.x] - b[id.x]";
const BROKEN: &str = "a[id.x] + c[id.x]";

#[test]
fn bad_arguments_are_refused_by_name_and_value() {
    let empty = Folder::new();
    let cases: [(&[&str], &[&str]); 15] = [
        (&["kernel", "test", "nope"], &["no kernel `nope`", "matvec, matvec_add"]),
        (&["kernel", "list", "nope"], &["no kernel `nope`"]),
        (&["kernel", "show", "nope"], &["no kernel `nope`"]),
        (&["kernel", "show", "add", "--target", "glsl"], &["--target", "`glsl`"]),
        (&["kernel", "show", "add", "--format", "q4_0"], &["--format q4_0", "`add`"]),
        (&["kernel", "show", "add", "--tier", "fast"], &["--tier", "`fast`"]),
        (&["kernel", "show", "add", "--case", "nowhere"], &["--case `nowhere`", "`add`"]),
        (&["kernel", "show", "matrix_multiply_add", "--tier", "plain"], &["--tier plain"]),
        (&["kernel", "test", "add", "--seed", "-1"], &["--seed"]),
        (&["kernel", "bench", "add", "--samples", "4"], &["--samples", "5.."]),
        (&["kernel", "bench", "add", "--watch"], &["--against"]),
        (&["kernel", "bench", "add", "--against", "no/such/folder"], &["no/such/folder"]),
        (&["kernel", "tune", "add", "--format", "f16"], &["--model"]),
        (&["kernel", "test", "add", "--shaders", "no/such/folder"], &["--shaders `no/such/folder`"]),
        (&["--shaders", empty.path(), "devices"], &[empty.path(), "holds no .wgsl file"]),
    ];
    for (args, parts) in cases {
        refused(&run(args), 2, parts);
    }
    let off = samara().args(["kernel", "tune", "add"]).env("SAMARA_TUNE", "off").output().unwrap();
    refused(&off, 2, &["SAMARA_TUNE"]);
    fs::write(empty.0.path().join("adds.wgsl"), "").unwrap();
    refused(&run(&["kernel", "list", "--shaders", empty.path()]), 2, &["adds.wgsl", "add.wgsl"]);
}

#[test]
fn kernels_are_listed_and_shown_without_a_gpu() {
    let run =
        |args: &[&str]| samara().args(args).env("VK_DRIVER_FILES", "/nonexistent.json").output().unwrap();
    let list = stdout(&run(&["kernel", "list"]));
    for entry in LIST.iter() {
        let row = list.lines().find(|line| line.starts_with(&format!("| {} ", entry.name))).unwrap();
        assert_eq!(row.matches('|').count(), 9, "{row}");
    }
    let row = list.lines().find(|line| line.starts_with("| matvec ")).unwrap();
    for part in ["f32 f16 bf16 q8_0 q4_0", "plain subgroup", "WG=32 or 64 or 128 of 8 16 32 64 128"] {
        assert!(row.contains(part), "{row}");
    }
    assert!(stdout(&run(&["kernel", "list", "add"])).contains("| decode, T 1, D 1280 "));

    let show = |args: &[&str]| run(&[&["kernel", "show", "matvec", "--format", "q8_0"], args].concat());
    let wgsl = stdout(&show(&[]));
    let of_loop = include_str!("../../shaders/product/rows.wgsl").trim_end();
    assert!(wgsl.starts_with(of_loop) && wgsl.contains("fn weight_chunk"), "{wgsl}");
    assert!(errors(&show(&[])).contains("q8_0], tier plain, WG=64"));
    assert!(stdout(&show(&["--target", "msl"])).contains("kernel void main_"));
    assert!(stdout(&show(&["--target", "hlsl"])).contains("[numthreads(64, 1, 1)]"));
    let plain = stdout(&show(&["--target", "spirv"]));
    assert!(plain.contains("OpEntryPoint GLCompute") && !plain.contains("OpGroupNonUniform"), "{plain}");
    let subgroup = stdout(&show(&["--target", "spirv", "--tier", "subgroup"]));
    assert!(subgroup.contains("OpGroupNonUniformFAdd"), "{subgroup}");

    let folder = Folder::new();
    let file = folder.0.path().join("matvec.spv");
    assert_eq!(stdout(&show(&["--target", "spirv", "--out", file.to_str().unwrap()])), "");
    let binary = fs::read(file).unwrap();
    assert_eq!((&binary[..4], binary.len() % 4), (&[0x03, 0x02, 0x23, 0x07][..], 0));
    let broken = run(&["kernel", "show", "add", "--target", "msl", "--shaders", folder.add(BROKEN).path()]);
    refused(&broken, 2, &["identifier: `c`", "add.wgsl:20:", "^"]);
    assert!(stdout(&run(&["kernel", "show", "add", "--shaders", folder.path()])).contains(BROKEN));
}

#[test]
fn a_failing_case_is_named_with_the_command_that_runs_it_again() {
    if !has_gpu() {
        return;
    }
    let output = run(&["kernel", "test", "add"]);
    assert!(stdout(&output).contains("plain       9 of   9 cases pass"), "{}", stdout(&output));
    assert!(
        errors(&output).contains("commit") && errors(&output).contains("passed: "),
        "{}",
        errors(&output)
    );

    let folder = Folder::new();
    let test = ["kernel", "test", "add", "--tier", "plain", "--case", "one vector", "--shaders"];
    let output = run(&[&test[..], &[folder.add(WRONG).path()]].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("0 of   1 cases pass") && text.contains("`out`: NMSE"), "{text}");
    assert!(errors(&output).contains("replaced shaders: add.wgsl"), "{}", errors(&output));
    assert!(errors(&output).ends_with("error: 1 of 1 cases failed\n"), "{}", errors(&output));
    let command = text.lines().find_map(|line| line.trim().strip_prefix("samara ")).unwrap();
    let words = words(command);
    assert!(words.contains(&"--seed".to_owned()), "{command}");
    let again = samara().args(&words).output().unwrap();
    assert_eq!((again.status.code(), &again.stdout), (Some(1), &output.stdout), "{command}");

    // Another seed, other inputs.
    let seeds = ["1", "0x2"].map(|seed| {
        let flags = ["--seed", seed, "--shaders", folder.path()];
        String::from_utf8(run(&[&test[..7], &flags].concat()).stdout).unwrap()
    });
    assert!(seeds[0].contains("seed 0x1:") && seeds[1].contains("seed 0x2:"), "{seeds:?}");
    let broken = run(&[&test[..], &[folder.add(BROKEN).path()]].concat());
    assert_eq!(broken.status.code(), Some(2));
    assert_eq!(errors(&broken).matches("identifier: `c`").count(), 1, "{}", errors(&broken));
}

/// Splits a command at spaces outside quotes.
fn words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in command.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            _ => words.last_mut().unwrap().push(c),
        }
    }
    words
}

#[test]
fn times_are_printed_as_tables_documents_and_values() {
    if !has_gpu() {
        return;
    }
    let bench = |args: &[&str]| run(&[&["kernel", "bench", "add", "--case", "T 1, D 1280"], args].concat());
    let output = bench(&["--samples", "5"]);
    let table = stdout(&output);
    assert!(table.starts_with("| add ") && table.contains("% memory"), "{table}");
    for part in ["tier ", "clock ", "commit ", "measured ceilings"] {
        assert!(errors(&output).contains(part), "{}", errors(&output));
    }
    let software = samara::gpu::adapters(None).unwrap()[0].software;
    assert_eq!(errors(&output).contains("software adapter"), software);

    let folder = Folder::new();
    let file = folder.0.path().join("kernels.json");
    let output = bench(&["-q", "-o", "json", "--shaders", folder.add(CORRECT).path()]);
    fs::write(&file, stdout(&output)).unwrap();
    assert!(output.stderr.is_empty(), "{}", errors(&output));
    let Document::Kernels(document) = Document::read(&file).unwrap() else { panic!("another kind") };
    assert_eq!(document.environment.replaced_shaders, ["add.wgsl"]);
    let row = &document.rows[0];
    assert_eq!((document.rows.len(), row.ns.values().len(), row.bytes), (1, 9, 15360));
    assert!(row.share > 0.0 && row.copies == 256, "{row:?}");

    let values = stdout(&bench(&["-q", "-o", "csv", "--samples", "5"]));
    let mut reader = csv::Reader::from_reader(values.as_bytes());
    let column = reader.headers().unwrap().iter().position(|name| name == "case").unwrap();
    let cases: Vec<String> = reader.records().map(|record| record.unwrap()[column].to_owned()).collect();
    assert_eq!(cases, ["decode, T 1, D 1280"]);

    let wrong = bench(&["-q", "--shaders", folder.add(WRONG).path()]);
    assert_eq!((wrong.status.code(), wrong.stdout.len()), (Some(1), 0));
    assert!(errors(&wrong).contains("not timed: add [decode, T 1, D 1280] is wrong"), "{}", errors(&wrong));
}

#[test]
fn versions_are_compared_pair_by_pair() {
    if !has_gpu() {
        return;
    }
    let folder = Folder::new();
    let compare = |name: &str| {
        run(&["kernel", "bench", name, "--case", "D 1280", "--samples", "5", "--against", folder.path()])
    };
    folder.add(CORRECT);
    for name in ["add", "all"] {
        let text = stdout(&compare(name));
        assert_eq!(text.matches("add [").count(), 2, "{text}");
        let pairs = text.lines().filter(|line| line.starts_with("|    ")).count();
        assert_eq!((pairs, text.matches("\nratio ").count()), (10, 2), "{text}");
    }
    refused_after_heading(&compare("rms_norm"), 2, "none of add.wgsl is part of a case of rms_norm");
    folder.add(WRONG);
    refused_after_heading(&compare("add"), 1, "the changed version is wrong: `out`");
    folder.add(BROKEN);
    refused_after_heading(&compare("add"), 2, "add.wgsl:20:");
    let both = ["kernel", "bench", "add", "--shaders", folder.path(), "--against", folder.path()];
    refused(&run(&both), 2, &["--against", "--shaders"]);
}

/// Checks a run that failed after it printed its device.
fn refused_after_heading(output: &Output, code: i32, part: &str) {
    let message = errors(output);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(message.contains(part) && !message.contains("panicked") && output.stdout.is_empty(), "{message}");
}

/// A child process that is killed with the test, however that ends.
struct Running {
    child: Child,
    results: Receiver<String>,
    messages: Receiver<String>,
}

impl Running {
    /// Starts the program and gathers what it prints.
    fn start(args: &[&str]) -> Self {
        let mut child = samara().args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (results, messages) = (lines(child.stdout.take().unwrap()), lines(child.stderr.take().unwrap()));
        Self { child, results, messages }
    }
}

/// Yields the lines of a stream as they come.
fn lines(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (send, lines) = mpsc::channel();
    let gather = move || BufReader::new(stream).lines().map_while(Result::ok).try_for_each(|l| send.send(l));
    std::thread::spawn(gather);
    lines
}

/// Waits until a line has a part.
fn wait_for(lines: &Receiver<String>, part: &str) {
    let mut seen = Vec::new();
    loop {
        match lines.recv_timeout(Duration::from_secs(120)) {
            Ok(line) if line.contains(part) => return,
            Ok(line) => seen.push(line),
            Err(_) => panic!("`{part}` is not in:\n{}", seen.join("\n")),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_watched_folder_is_compared_again_at_every_save() {
    if !has_gpu() {
        return;
    }
    let folder = Folder::new();
    folder.add(CORRECT);
    let args = ["kernel", "bench", "add", "--case", "T 1, D 1280", "--samples", "5", "--watch", "--against"];
    let mut running = Running::start(&[&args[..], &[folder.path()]].concat());
    let (results, messages) = (&running.results, &running.messages);
    wait_for(results, "ratio ");
    wait_for(messages, "watching");
    folder.add(BROKEN);
    wait_for(messages, "changed: add.wgsl");
    wait_for(messages, "no definition in scope for identifier: `c`");
    wait_for(messages, "watching");
    folder.add(WRONG);
    wait_for(messages, "the changed version is wrong");
    wait_for(messages, "watching");
    folder.add("a[id.x] + b[id.x] + 0.0");
    wait_for(results, "ratio ");
    assert!(running.child.try_wait().unwrap().is_none(), "it goes on");
}

#[test]
fn shaders_are_replaced_for_every_command_wherever_the_flag_stands() {
    if !has_gpu() {
        return;
    }
    let folder = Folder::new();
    // The last sum before the head: a change of it changes the logits.
    let generate = ["generate", "The Fox and the Grapes", "-q", "-n", "8", "--no-fuse", "all"];
    let built_in = stdout(&run(&generate));
    folder.add(CORRECT);
    assert_eq!(stdout(&run(&[&generate[..], &["--shaders", folder.path()]].concat())), built_in);
    folder.add("a[id.x] - 3.0 * b[id.x]");
    let behind = run(&[&generate[..], &["--shaders", folder.path()]].concat());
    let before = run(&[&["--shaders", folder.path()], &generate[..]].concat());
    assert_ne!(stdout(&behind), built_in);
    assert_eq!(stdout(&behind), stdout(&before));
    let broken = run(&[
        "perplexity",
        "-q",
        "--no-fuse",
        "all",
        "--shaders",
        folder.add(BROKEN).path(),
        "-f",
        "Cargo.toml",
    ]);
    refused(&broken, 2, &["identifier: `c`", "add.wgsl:20:"]);
}

#[cfg(unix)]
mod tuned {
    use samara::LoadOptions;
    use samara::gpu::{Gpu, Tuned, Tuning};
    use samara::instruments::steps;
    use samara::kernels::{Choice, Shaders};
    use samara::model::Checkpoint;

    use super::*;

    /// A user's cache directory with values for the demo model on the default adapter.
    struct Cache {
        folder: tempfile::TempDir,
        file: PathBuf,
    }

    impl Cache {
        /// Writes `WG` for every kernel of a decode step that has it.
        fn new(workgroup: u32) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let gpu = Gpu::open(None, None).unwrap();
            let checkpoint = Checkpoint::demo().unwrap();
            let mut tuning = Tuning::default();
            for case in steps::cases(&checkpoint, &gpu, &LoadOptions::default(), 0).unwrap() {
                let source = Shaders::default().source(&case.kernel.source(gpu.tier()));
                let choice: Choice = [("WG".to_owned(), workgroup)].into_iter().collect();
                tuning.insert(Tuned::new(&*case.kernel, gpu.tier(), &source, &choice));
            }
            let name = Tuning::path(gpu.summary()).unwrap();
            let file = folder.path().join("samara/tuning").join(name.file_name().unwrap());
            tuning.write(&file, gpu.summary()).unwrap();
            Self { folder, file }
        }

        fn change(&self, from: &str, to: &str) {
            let text = fs::read_to_string(&self.file).unwrap();
            assert!(text.contains(from));
            fs::write(&self.file, text.replace(from, to)).unwrap();
        }

        fn run(&self, args: &[&str], tune: &str) -> Output {
            samara()
                .args(args)
                .env("XDG_CACHE_HOME", self.folder.path())
                .env("SAMARA_TUNE", tune)
                .output()
                .unwrap()
        }

        /// The workgroup of a decode step's embedding lookup, and standard error.
        fn workgroup(&self, tune: &str) -> (String, String) {
            let output = self.run(&["inspect", "--graph", "-q"], tune);
            let text = stdout(&output);
            let line = text.lines().find(|line| line.contains("  embed ")).unwrap();
            (line.split_whitespace().last().unwrap().to_owned(), errors(&output))
        }
    }

    #[test]
    fn a_file_of_tuned_values_changes_what_is_built_unless_it_is_off() {
        if !has_gpu() {
            return;
        }
        let cache = Cache::new(128);
        assert_eq!(cache.workgroup("on"), ("WG=128".to_owned(), String::new()));
        assert_eq!(cache.workgroup("off"), ("WG=64".to_owned(), String::new()));
        cache.change("\"WG\": 128", "\"WG\": 96");
        assert_eq!(cache.workgroup("on"), ("WG=64".to_owned(), String::new()), "96 is no value of the list");
        refused(&cache.run(&["inspect"], "maybe"), 2, &["SAMARA_TUNE", "`maybe`"]);
    }

    #[test]
    fn a_file_that_cannot_be_used_is_warned_of_once() {
        if !has_gpu() {
            return;
        }
        for (from, to, why) in [
            ("\"version\": 1", "\"version\": 2", "version 2, expected 1"),
            ("\"driver\": \"", "\"driver\": \"older ", "older "),
            ("\"kernels\": [", "\"kernels\": ", "holds no tuned values"),
        ] {
            let cache = Cache::new(128);
            cache.change(from, to);
            let (workgroup, told) = cache.workgroup("on");
            assert_eq!(workgroup, "WG=64");
            assert!(told.contains("WARN") && told.contains(why) && told.lines().count() == 1, "{told}");
            assert_eq!(cache.workgroup("off").1, "");
            // This opens the adapter once for each tier.
            let told = errors(&cache.run(&["kernel", "test", "add"], "on"));
            assert_eq!(told.matches("WARN").count(), 1, "{told}");
        }
    }

    #[test]
    fn a_search_keeps_its_winners_in_the_cache_directory() {
        if !has_gpu() {
            return;
        }
        let cache = Cache::new(128);
        let tune = |args: &[&str]| cache.run(&[&["kernel", "tune", "--samples", "5"], args].concat(), "on");
        let output = tune(&["add_rms_norm", "--case", "fable, T 5"]);
        let table = stdout(&output);
        assert!(table.starts_with("| kernel ") && table.contains("| add_rms_norm "), "{table}");
        let told = errors(&output);
        assert!(told.contains("written: ") || told.contains("nothing was written"), "{told}");
        assert_eq!(told.contains("written: "), told.contains(cache.file.to_str().unwrap()), "{told}");
        // Values of other shapes are kept.
        assert_eq!(cache.workgroup("on").0, "WG=128");

        let output = tune(&["embed", "-m", "synthetic:micro", "-p", "0", "-q"]);
        assert_eq!(stdout(&output).lines().filter(|line| line.starts_with("| embed ")).count(), 1);
        refused(&tune(&["matmul", "-m", "demo", "-p", "0"]), 2, &["`demo` runs no kernel `matmul`"]);
        // No shader without matrix units, and nothing to tune with them.
        refused(&tune(&["matrix_multiply_add"]), 2, &["kernel `matrix_multiply_add` has no"]);
        refused(&tune(&["-m", "demo", "-p", "9999"]), 2, &["9999 tokens", "512"]);
        refused(&tune(&["-m", "no/such/model"]), 2, &["no/such/model"]);
    }
}
