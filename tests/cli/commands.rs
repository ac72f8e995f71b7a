//! The program as its users run it: arguments, exit codes, messages, files.

use std::path::Path;
use std::process::Stdio;

use crate::common::program::{errors, refused, run, run_with_input, samara, stdout};
use crate::common::{golden, has_gpu};
use samara::instruments::document::{AblationRow, BenchRow, Document};
use serde_json::Value;

fn write(directory: &Path, name: &str, contents: impl AsRef<[u8]>) -> String {
    let path = directory.join(name);
    std::fs::write(&path, contents).unwrap();
    path.to_str().unwrap().to_owned()
}

fn llama2() -> String {
    golden("llama2-tokenizer/tokenizer.json").to_str().unwrap().to_owned()
}

#[test]
fn help_and_version_are_results() {
    for command in [
        "generate",
        "logits",
        "tokenize",
        "perplexity",
        "devices",
        "inspect",
        "kernel",
        "synth",
        "bench",
        "profile",
        "ablate",
        "compare",
        "report",
    ] {
        assert!(stdout(&run(&[command, "--help"])).contains("Usage: samara"), "{command}");
        assert!(stdout(&run(&["--help"])).contains(command), "{command}");
    }
    assert!(stdout(&run(&["--version"])).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn bad_flag_values_are_usage_errors_that_name_them() {
    let cases: [(&[&str], &[&str]); 38] = [
        (&["generate", "x", "--format", "q5"], &["--format", "`q5`", "q4_0"]),
        (&["generate", "x", "--temp", "-1"], &["--temp -1"]),
        (&["generate", "x", "--temp", "nan"], &["--temp NaN"]),
        (&["generate", "x", "--temp", "warm"], &["--temp", "'warm'"]),
        (&["generate", "x", "--top-p", "2"], &["--top-p 2"]),
        (&["generate", "x", "--top-p", "0"], &["--top-p 0"]),
        (&["generate", "x", "--min-p", "1.5"], &["--min-p 1.5"]),
        (&["generate", "x", "--top-k", "-3"], &["--top-k", "'-3'"]),
        (&["generate", "x", "--repeat-penalty", "0"], &["--repeat-penalty 0"]),
        (&["generate", "x", "--kv", "f8"], &["--kv", "`f8`", "f16", "f32"]),
        (&["generate", "x", "--no-fuse", "nonsense"], &["nonsense", "all", "rms-norm"]),
        (&["generate", "x", "--backend", "cuda"], &["--backend", "cuda", "vulkan"]),
        (&["generate", "x", "--stop", ""], &["--stop"]),
        (&["generate", "x", "--bogus"], &["--bogus"]),
        (&["generate", "x", "--tokens-per-submit", "0"], &["--tokens-per-submit 0", "32"]),
        (&["generate", "x", "--tokens-per-submit", "33"], &["--tokens-per-submit 33", "32"]),
        (&["generate", "x", "--lookup", "8"], &["--lookup 8", "7"]),
        (&["generate", "x", "--draft", "demo", "--draft-tokens", "0"], &["--draft-tokens 0", "7"]),
        (&["generate", "x", "--draft-tokens", "2"], &["--draft"]),
        (&["generate", "x", "--draft", "demo", "--lookup", "2"], &["--draft", "--lookup"]),
        (&["bench", "-b", "65"], &["--batch 65", "64"]),
        (&["bench", "-b", "2", "-d", "8", "-p", "8"], &["--batch 2", "--depth 8", "--prompt 0"]),
        (&["perplexity", "--window", "1", "-f", "Cargo.toml"], &["--window 1"]),
        (&["synth", "bogus", "unused"], &["bogus"]),
        (&["bench", "-r", "0"], &["--repetitions 0"]),
        (&["bench", "-p", "0", "-n", "0"], &["--prompt 0", "--tokens 0"]),
        (&["bench", "-p", "1,x"], &["--prompt", "'x'"]),
        (&["bench", "-pg", "512"], &["--pg", "`512`", "512,128"]),
        (&["bench", "-m", "demo,no/such/model"], &["no/such/model"]),
        (&["bench", "--suite", "-p", "16"], &["--suite", "--prompt"]),
        (&["profile", "-p", "0"], &["--prompt", "1..=4096"]),
        (&["profile", "--clock", "sun"], &["`sun`", "timestamps"]),
        (&["ablate", "-p", "0"], &["--prompt", "1..=65535"]),
        (&["ablate", "-n", "many"], &["--tokens", "'many'"]),
        (&["ablate", "-r", "0"], &["--repetitions", "1..=65535"]),
        (&["ablate", "-o", "csv"], &["--output", "'csv'", "json"]),
        (&["ablate", "--no-fuse", "all"], &["--no-fuse"]),
        (&["synth", "micro", "unused", "--dtype", "q4_0"], &["--dtype", "`q4_0`"]),
    ];
    for (args, parts) in cases {
        refused(&run(args), 2, parts);
    }
    refused(
        &samara().arg("devices").env("SAMARA_LOG", "a=b=c").output().unwrap(),
        2,
        &["SAMARA_LOG", "a=b=c"],
    );
}

#[test]
fn prompts_that_are_none_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let broken = write(directory.path(), "broken.txt", b"The f\xf6x");
    refused(&run(&["generate", ""]), 2, &["the prompt is empty"]);
    refused(&run_with_input(&["generate"], b""), 2, &["the prompt is empty"]);
    refused(&run(&["generate", "-f", &broken]), 2, &["broken.txt", "byte offset 5"]);
    refused(&run_with_input(&["generate"], b"\xff"), 2, &["standard input", "byte offset 0"]);
    refused(&run(&["generate", "-f", "no/such/file.txt"]), 1, &["cannot read", "no/such/file.txt"]);
    refused(&run(&["generate", "x", "-f", &broken]), 2, &["cannot be used with"]);
}

#[test]
fn models_and_tokenizers_that_are_missing_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().to_str().unwrap();
    for command in ["generate", "tokenize"] {
        refused(&run(&[command, "x", "-m", "no/such/model"]), 2, &["no/such/model"]);
        refused(&run(&[command, "x", "-m", empty]), 2, &[empty, "--tokenizer FILE"]);
        refused(&run(&[command, "x", "-m", "synthetic:micro"]), 2, &["synthetic:micro", "--tokenizer FILE"]);
        refused(&run(&[command, "x", "--tokenizer", "no/such.json"]), 1, &["no/such.json"]);
        let broken = write(directory.path(), "broken.json", "{");
        refused(&run(&[command, "x", "--tokenizer", &broken]), 1, &["broken.json"]);
    }
    refused(&run(&["inspect", "-m", "no/such/model"]), 2, &["no/such/model"]);
}

#[test]
fn bad_id_files_are_refused_by_file_and_value() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out.json");
    for (name, json, part) in [
        ("cut.json", "[1, 2", "not JSON"),
        ("empty.json", "[]", "empty"),
        ("text.json", r#"["a"]"#, r#"entry 0 is "a""#),
        ("float.json", "[1, 2.5]", "entry 1 is 2.5"),
        ("negative.json", "[-1]", "entry 0 is -1"),
        ("large.json", r#"{"prompt_ids": [1, 2048]}"#, "entry 1 is 2048"),
        ("object.json", r#"{"ids": [1]}"#, "`prompt_ids`"),
    ] {
        let ids = write(directory.path(), name, json);
        refused(&run(&["logits", "--ids", &ids, "--out", out.to_str().unwrap()]), 2, &[name, part]);
        refused(&run(&["perplexity", "--ids", &ids]), 2, &[name, part]);
    }
    let single = write(directory.path(), "single.json", "[1]");
    refused(&run(&["perplexity", "--ids", &single]), 2, &["at least 2"]);
    assert!(!out.exists());
}

#[test]
fn tokenize_prints_ids_from_any_source_of_text() {
    let fox = "[1, 303, 442, 271, 262, 511, 379, 1260]\n";
    assert_eq!(stdout(&run(&["tokenize", "The Fox and the Grapes"])), fox);
    assert_eq!(stdout(&run_with_input(&["tokenize"], b"The Fox and the Grapes")), fox);
    let directory = tempfile::tempdir().unwrap();
    let file = write(directory.path(), "fox.txt", "The Fox and the Grapes");
    assert_eq!(stdout(&run(&["tokenize", "-m", "demo", "-f", &file])), fox);
    assert_eq!(stdout(&run(&["tokenize", "--no-bos", ""])), "[]\n");
}

#[test]
fn tokenize_takes_another_tokenizer_with_or_without_a_model() {
    let file = llama2();
    assert_eq!(stdout(&run(&["tokenize", "--tokenizer", &file, " Hello"])), "[1, 29871, 15043]\n");
    assert_eq!(stdout(&run(&["tokenize", "--tokenizer", &file, "--no-bos", " Hello"])), "[29871, 15043]\n");
    let args = ["tokenize", "-m", "synthetic:micro", "--tokenizer", &file, "3"];
    assert_eq!(stdout(&run(&args)), "[1, 29871, 29941]\n");
}

#[test]
fn devices_are_listed_or_their_absence_is_reported() {
    let output = run(&["devices"]);
    if has_gpu() {
        assert!(stdout(&output).contains("backend"));
    } else {
        refused(&output, 1, &["adapter"]);
    }
}

#[test]
fn generate_recites_the_fable_and_stops_at_a_stop_text() {
    if !has_gpu() {
        return;
    }
    let fable = "The Fox and the Grapes\n\nA Fox one day spied a beautiful bunch of ripe grapes";
    let output = run(&["generate", "The Fox and the Grapes", "-n", "32"]);
    assert!(stdout(&output).starts_with(fable), "{}", stdout(&output));
    let statistics = errors(&output);
    for part in
        ["loaded in", "prefill 8 tokens", "first token after", "decode 32 tokens", "stopped: --tokens"]
    {
        assert!(statistics.contains(part), "{statistics}");
    }

    let piped =
        run_with_input(&["generate", "-q", "-n", "32", "--stop", "bunch of"], b"The Fox and the Grapes");
    assert_eq!(stdout(&piped), "The Fox and the Grapes\n\nA Fox one day spied a beautiful \n");
    assert!(piped.stderr.is_empty(), "{}", errors(&piped));

    let full = run(&["generate", "The Fox and the Grapes", "--ctx", "12", "--verbose-prompt"]);
    let message = errors(&full);
    assert!(message.contains("the context is full") && message.contains("303 \"The\""), "{message}");
    let long = run(&["generate", "The Fox and the Grapes", "--ctx", "4"]);
    let message = errors(&long);
    assert!(long.status.code() == Some(2) && message.contains("the prompt has 8 tokens"), "{message}");
}

#[test]
fn draft_tokens_leave_the_text_and_are_counted() {
    if !has_gpu() {
        return;
    }
    let common = ["generate", "The Fox and the Grapes", "-n", "48"];
    let plain = stdout(&run(&common));
    for (flags, counted) in [
        (&["--lookup", "4"][..], " draft tokens accepted ("),
        (&["--draft", "demo", "--draft-tokens", "3"], " draft tokens accepted (100 %) in 12 steps"),
        (&["--tokens-per-submit", "5"], "stopped: --tokens"),
    ] {
        let output = run(&[&common[..], flags].concat());
        assert_eq!(stdout(&output), plain, "{flags:?}");
        let told = errors(&output);
        assert!(told.contains(counted), "{told}");
    }
    let strange = run(&[&common[..], &["-q", "--draft", "synthetic:micro"]].concat());
    refused(&strange, 2, &["32000 tokens", "2048"]);
    refused(&run(&[&common[..], &["-q", "--splits", "0"]].concat()), 2, &["0 splits", "16"]);
}

#[test]
fn a_seed_repeats_a_text_and_another_changes_it() {
    if !has_gpu() {
        return;
    }
    let tell = |seed| {
        let flags =
            ["--temp", "1.5", "--top-k", "200", "--repeat-penalty", "1.2", "--seed", seed, "-n", "24", "-q"];
        stdout(&run(&[&["generate", "A Lion"], &flags[..]].concat()))
    };
    assert_eq!(tell("1"), tell("1"));
    assert_ne!(tell("1"), tell("2"));
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    if !has_gpu() {
        return;
    }
    let mut child = samara()
        .args(["generate", "A Lion", "-q", "-n", "64"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", errors(&output));
}

#[test]
fn logits_writes_a_report_that_agrees_with_itself() {
    if !has_gpu() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let ids = write(directory.path(), "ids.json", r#"{"prompt_ids": [1, 303, 442, 271]}"#);
    let out = directory.path().join("out.json");
    let output = run(&["logits", "-q", "--ids", &ids, "--new", "5", "--out", out.to_str().unwrap()]);
    assert_eq!(stdout(&output), "");
    let report: Value = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
    assert_eq!(report["prompt_ids"], serde_json::json!([1, 303, 442, 271]));
    let logits: Vec<f64> = serde_json::from_value(report["last_logits"].clone()).unwrap();
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
    assert_eq!((logits.len(), &report["greedy_ids"][0]), (2048, &Value::from(best)));
    assert_eq!(report["greedy_ids"].as_array().unwrap().len(), 5);

    // The same four tokens as one window.
    let scores = stdout(&run(&["perplexity", "-q", "--ids", &ids]));
    let mean = format!("mean nll    {:.6} nats", report["prompt_mean_nll"].as_f64().unwrap());
    assert!(scores.contains(&mean) && scores.contains("scored      3 tokens"), "{scores}");

    let output = run(&["logits", "--ids", &ids, "--new", "9999", "--out", out.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
}

#[test]
#[cfg(target_os = "linux")]
fn a_machine_without_an_adapter_gets_one_clear_error() {
    let run =
        |args: &[&str]| samara().args(args).env("VK_DRIVER_FILES", "/nonexistent.json").output().unwrap();
    for args in [&["generate", "x"][..], &["inspect"], &["devices"], &["ablate"]] {
        refused(&run(args), 1, &["adapter"]);
    }
}

#[test]
fn contexts_and_tiers_out_of_range_are_refused() {
    if !has_gpu() {
        return;
    }
    for ctx in ["0", "1048577", "18446744073709551615"] {
        refused(&run(&["generate", "x", "-q", "--ctx", ctx]), 2, &[ctx, "1048576"]);
    }
    refused(&run(&["generate", "The Fox and the Grapes", "-q", "--ctx", "2"]), 2, &["8 tokens", "holds 2"]);
    let bogus = samara().args(["generate", "x"]).env("SAMARA_TIER", "bogus").output().unwrap();
    refused(&bogus, 2, &["SAMARA_TIER", "bogus", "subgroup"]);
    // Before or after the subcommand, the flag wins over the environment.
    for args in [["--tier", "plain", "generate", "x"], ["generate", "x", "--tier", "plain"]] {
        let plain = samara().args(args).args(["-q", "-n", "1"]).env("SAMARA_TIER", "bogus").output().unwrap();
        assert!(plain.status.success(), "{}", errors(&plain));
    }
    let wrong = samara().args(["generate", "x", "--tier", "bogus"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    assert!(errors(&wrong).contains("'bogus' for '--tier <NAME>': tier `bogus`"));
    refused(&run(&["generate", "x", "-q", "--adapter", "nowhere"]), 2, &["--adapter nowhere"]);
}

#[test]
fn bench_writes_every_form_of_the_same_rows() {
    if !has_gpu() {
        return;
    }
    let args = ["bench", "-q", "-m", "demo", "-p", "8", "-n", "4", "-pg", "8,2", "-r", "2", "-d", "0,16"];
    let bench = |format: &str| stdout(&run(&[&args[..], &["-o", format]].concat()));
    let tests = ["pp8", "tg4", "pp8+tg2", "pp8 @ d16", "tg4 @ d16", "pp8+tg2 @ d16"];

    let Document::Bench(document) = serde_json::from_str(&bench("json")).unwrap() else { panic!("a bench") };
    assert_eq!(document.rows.iter().map(|row| row.test.as_str()).collect::<Vec<_>>(), tests);
    assert!(document.rows.iter().all(|row| row.tok_s.values().len() == 2 && row.subject.format == "bf16"));

    let lines = bench("jsonl");
    let rows: Vec<BenchRow> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.iter().map(|row| row.test.as_str()).collect::<Vec<_>>(), tests);

    let csv = bench("csv");
    let fields: Vec<usize> = csv.lines().map(|line| line.matches(',').count()).collect();
    // On some machines the adapter's name contains a comma, and is quoted.
    assert_eq!((fields.len(), csv.starts_with("samara,commit,adapter")), (7, true), "{csv}");

    let table = bench("md");
    assert!(tests.iter().all(|test| table.contains(&format!("| {test} "))), "{table}");
}

#[test]
fn profile_sums_kernels_and_layers_and_writes_a_trace() {
    if !has_gpu() {
        return;
    }
    // More tokens than go row by row on any adapter.
    let output = run(&["profile", "-p", "65", "-r", "1"]);
    let tables = stdout(&output);
    for part in [
        "| matvec_add ",
        "| norm_matmul ",
        "| layer.7 ",
        "| head ",
        "prefill of demo bf16",
        "decode of demo bf16",
    ] {
        assert!(tables.contains(part), "{part} is not in {tables}");
    }
    let said = errors(&output);
    for part in ["clock ", "tier ", "commit ", "measured ceilings"] {
        assert!(said.contains(part), "{said}");
    }

    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("trace.json");
    let args =
        ["profile", "-q", "-p", "16", "-d", "5", "-r", "2", "--clock", "wall", "-o", "json", "--trace"];
    let json = stdout(&run(&[&args[..], &[trace.to_str().unwrap()]].concat()));
    let Document::Profile(profile) = serde_json::from_str(&json).unwrap() else { panic!("a profile") };
    assert_eq!(profile.environment.clock, "wall");
    let steps: Vec<_> =
        profile.steps.iter().map(|step| (step.name.as_str(), step.tokens, step.position)).collect();
    assert_eq!(steps, [("prefill", 16, 5), ("decode", 1, 21)]);
    let trace: Value = serde_json::from_slice(&std::fs::read(&trace).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let complete = events.iter().filter(|event| event["ph"] == "X").count();
    assert!(profile.steps.iter().all(|step| !step.dispatches.is_empty()));
    assert_eq!(complete, profile.steps.iter().map(|step| step.dispatches.len()).sum::<usize>());
}

#[test]
fn ablate_compares_every_choice_of_rules() {
    if !has_gpu() {
        return;
    }
    let names = [
        "all on",
        "without matmul-swiglu",
        "without norm-matvec",
        "without matvec-add",
        "without add-rms-norm",
        "without qk-norm-rope-attention",
        "without qk-norm-rope",
        "all off",
        "rms-norm naive",
        "all off, rms-norm naive",
    ];
    let args = ["ablate", "-q", "-p", "8", "-n", "4", "-r", "1"];
    let output = run(&args);
    let table = stdout(&output);
    assert!(output.stderr.is_empty(), "{}", errors(&output));
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split('|').map(str::trim).collect()).collect();
    let rows: Vec<_> = rows.into_iter().filter(|row| row.len() == 10).collect();
    assert_eq!(
        rows[0][1..9].join(" "),
        "rules decode tok/s relative prefill tok/s relative dispatches decode/prefill norms norm dispatches",
        "{table}"
    );
    assert_eq!(rows[2..].iter().map(|row| row[1]).collect::<Vec<_>>(), names, "{table}");
    assert_eq!((rows[2][3], rows[2][5]), ("1.00", "1.00"), "{table}");
    for part in ["tier ", "commit ", "demo bf16, KV cache f16", "prefill of 8 tokens, 4 decoded"] {
        assert!(table.contains(part), "{part} is not in {table}");
    }

    let options = ["--format", "q8_0", "--kv", "f32", "-r", "2", "-o", "json"];
    let json = stdout(&run(&[&args[..6], &options].concat()));
    let Document::Ablation(ablation) = serde_json::from_str(&json).unwrap() else { panic!("an ablation") };
    assert_eq!((ablation.subject.format.as_str(), ablation.subject.kv.as_str()), ("q8_0", "f32"));
    assert_eq!((ablation.prompt, ablation.generated), (8, 4));
    assert_eq!(ablation.rows.iter().map(|row| row.name.as_str()).collect::<Vec<_>>(), names);
    assert!(ablation.rows.iter().all(|row| row.norms == 4 * 8 + 1 && row.decode_tok_s.values().len() == 2));
    let dispatches = |row: &AblationRow| format!("{}/{}", row.decode_dispatches, row.prefill_dispatches);
    assert!(
        rows[2..].iter().map(|row| row[6].to_owned()).eq(ablation.rows.iter().map(dispatches)),
        "{table}"
    );
}
