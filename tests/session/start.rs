//! Start-up: pipelines compiled once, ahead and kept between runs; weights uploaded by many threads.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::{fs, thread};

use crate::common;
use crate::common::checkpoint::Tiny;
use crate::common::has_gpu;
use crate::common::program::{errors, refused, samara, stdout};
use half::bf16;
use safetensors::Dtype;
use samara::gpu::adapters;
use samara::model::shape::Paths;
use samara::model::{Checkpoint, synth};
use samara::sampler::Sampler;
use samara::{KvFormat, LoadOptions, Model};

/// `<s>` and a title that the demo model knows.
const PROMPT: [u32; 8] = [1, 328, 440, 298, 263, 1046, 366, 19];

fn demo(options: LoadOptions) -> Model {
    Model::load("demo", options).unwrap()
}

fn tokens(model: &Model) -> Vec<u32> {
    let mut session = model.session(Some(64)).unwrap();
    session.prefill(&PROMPT).unwrap();
    session.generate(Sampler::greedy()).take(8).map(Result::unwrap).collect()
}

#[test]
fn what_a_prompt_and_decoding_need_is_compiled_while_weights_load() {
    if !has_gpu() {
        return;
    }
    for kv in [KvFormat::F16, KvFormat::Q8_0] {
        let model = demo(LoadOptions { kv, splits: Some(1), ..LoadOptions::default() });
        let compiled = model.gpu().compiled();
        assert!(compiled > 4, "{compiled} pipelines");
        let mut session = model.session(None).unwrap();
        session.prefill(&synth::prompt(model.config().vocab_size, model.prefill_chunk())).unwrap();
        session.generate(Sampler::greedy()).limit(3).for_each(|id| assert!(id.is_ok()));
        assert_eq!(model.gpu().compiled(), compiled);
    }
}

#[test]
fn threads_that_want_the_same_pipelines_compile_each_once() {
    if !has_gpu() {
        return;
    }
    let compiled = |threads: usize| {
        let model = demo(LoadOptions::default());
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| tokens(&model));
            }
        });
        model.gpu().compiled()
    };
    assert_eq!(compiled(4), compiled(1));
}

/// The program with a separate cache directory.
fn cached(folder: &Path) -> Command {
    let mut command = samara();
    command.env("XDG_CACHE_HOME", folder).env_remove("SAMARA_PIPELINES");
    command.args(["generate", "-m", "demo", "-n", "4", "The Fox"]);
    command
}

/// The files of compiled pipelines.
fn kept(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder.join("samara/pipelines")) else { return vec![] };
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// The one file of compiled pipelines; `None` if the adapter exposes none.
fn one(folder: &Path, output: &Output) -> Option<PathBuf> {
    assert!(output.status.success() && !errors(output).contains("WARN"), "{}", errors(output));
    let files = kept(folder);
    assert!(files.len() <= 1, "{files:?}");
    if files.is_empty() {
        common::skipped(common::lacking(&adapters(None).unwrap()[0], "compiled pipelines to keep", false));
    }
    files.into_iter().next()
}

#[test]
fn compiled_pipelines_are_kept_and_damaged_ones_compiled_anew() {
    if !has_gpu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let first = cached(folder.path()).output().unwrap();
    let Some(file) = one(folder.path(), &first) else { return };
    let whole = fs::read(&file).unwrap();
    assert!(whole.starts_with(b"samara pipelines 1\n"));
    let second = cached(folder.path()).output().unwrap();
    assert_eq!((one(folder.path(), &second), stdout(&second)), (Some(file.clone()), stdout(&first)));

    for damage in [&whole[..whole.len() / 2], b"", b"something else", &[&whole[..], b"more"].concat()] {
        fs::write(&file, damage).unwrap();
        let output = cached(folder.path()).output().unwrap();
        assert_eq!(stdout(&output), stdout(&first));
        let told = errors(&output);
        assert!(told.contains("WARN") && told.contains("compiled anew"), "{told}");
        // The damaged file was replaced.
        let healed = cached(folder.path()).output().unwrap();
        assert_eq!(one(folder.path(), &healed), Some(file.clone()));
    }
}

#[test]
fn compiled_pipelines_are_kept_only_where_they_may_be() {
    if !has_gpu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let with = |value: &str| cached(folder.path()).env("SAMARA_PIPELINES", value).output().unwrap();
    assert!(with("off").status.success());
    assert!(kept(folder.path()).is_empty());
    refused(&with("maybe"), 2, &["SAMARA_PIPELINES", "`maybe`"]);
    // A folder that cannot be created costs a warning, if there is something to keep.
    let good = tempfile::tempdir().unwrap();
    assert!(cached(good.path()).output().unwrap().status.success());
    fs::write(folder.path().join("samara"), "in the way").unwrap();
    let output = with("on");
    let text = stdout(&output);
    assert!(text.starts_with("The Fox"), "{text}");
    let warned = errors(&output).contains("are not kept");
    assert_eq!(warned, !kept(good.path()).is_empty(), "{}", errors(&output));
}

#[test]
fn programs_that_start_at_the_same_time_do_each_other_no_harm() {
    if !has_gpu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let start = |_| cached(folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let children: Vec<_> = (0..4).map(start).collect();
    let outputs: Vec<Output> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    outputs.iter().for_each(|output| assert_eq!(stdout(output), stdout(&outputs[0])));
    // The last process left a whole file, and no other file is beside it.
    let after = cached(folder.path()).output().unwrap();
    one(folder.path(), &after);
}

#[test]
fn progress_never_goes_back_and_ends_with_the_last_byte() {
    if !has_gpu() {
        return;
    }
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = Arc::clone(&heard);
    let progress = Box::new(move |done, total| hears.lock().unwrap().push((done, total)));
    let model = demo(LoadOptions { progress: Some(progress), ..LoadOptions::default() });
    let total = model.inspect().weight_bytes;
    let heard = heard.lock().unwrap();
    assert!(heard.len() > 10 && heard.is_sorted_by(|a, b| a.0 < b.0), "{heard:?}");
    assert!(heard.iter().all(|&(_, whole)| whole == total));
    assert_eq!(heard.last(), Some(&(total, total)));
}

#[test]
fn of_several_damaged_tensors_the_first_is_named() {
    let Some(gpu) = common::gpu() else { return };
    let gpu = Arc::new(gpu);
    let mut tiny = Tiny::new(Dtype::BF16);
    let damaged = Checkpoint::from_bytes(&tiny.config.to_string(), tiny.safetensors()).unwrap();
    let names: Vec<String> = damaged.weights().iter().map(|weight| weight.name.clone()).collect();
    // From the second weight on, every one has a value that is not finite.
    for name in &names[1..] {
        tiny.tensors.get_mut(name).unwrap().2[..2].copy_from_slice(&bf16::NAN.to_le_bytes());
    }
    let damaged = Checkpoint::from_bytes(&tiny.config.to_string(), tiny.safetensors()).unwrap();
    for _ in 0..20 {
        let gpu = gpu.at_tier(gpu.tier()).unwrap();
        let error = Model::from_checkpoint(&damaged, gpu, LoadOptions::default()).unwrap_err();
        assert!(error.to_string().contains(&names[1]), "{error}");
    }
}

#[test]
fn a_prompt_by_rows_and_in_tiles_has_the_same_logits() {
    if !has_gpu() {
        return;
    }
    let model = demo(LoadOptions { kv: KvFormat::F32, ..LoadOptions::default() });
    let prompt = synth::prompt(model.config().vocab_size, 40);
    let logits = |few: usize| {
        let model = model.with_paths(Paths { few, ..model.paths() });
        assert_eq!(model.paths().few, few);
        let mut session = model.session(Some(64)).unwrap();
        session.prefill(&prompt).unwrap();
        session.next_logits().unwrap().into_iter().map(f64::from).collect::<Vec<_>>()
    };
    let [tiles, rows] = [8, 64].map(logits);
    assert_ne!(rows, tiles, "both ways ran");
    let error = common::nmse(&tiles, &rows);
    // Sums of f32 in another order.
    assert!(error <= 1e-9, "{error:e}");
}
