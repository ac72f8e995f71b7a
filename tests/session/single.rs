//! Sessions: rollback, sharing a model, a caller's own device, limits, and repeatable greedy decoding.

use crate::common;
use crate::common::checkpoint::Tiny;
use safetensors::Dtype;
use samara::gpu::{Gpu, GpuOptions, wgpu};
use samara::model::{Checkpoint, names};
use samara::quant::Format;
use samara::sampler::{Sampler, SamplerOptions};
use samara::{Error, Fusion, LoadOptions, Model};

/// `<s>` and a title that the demo model knows.
const PROMPT: [u32; 8] = [1, 328, 440, 298, 263, 1046, 366, 19];

fn demo() -> Option<Model> {
    common::demo(LoadOptions::default())
}

fn tokens(model: &Model, count: usize) -> Vec<u32> {
    let mut session = model.session(Some(64)).unwrap();
    session.prefill(&PROMPT).unwrap();
    session.generate(Sampler::greedy()).take(count).map(Result::unwrap).collect()
}

#[test]
fn greedy_decoding_repeats_bit_for_bit() {
    let Some(model) = demo() else { return };
    assert_eq!(tokens(&model, 24), tokens(&model, 24));
    let logits = |model: &Model| {
        let mut session = model.session(Some(64)).unwrap();
        session.prefill(&PROMPT).unwrap();
        session.prefill(&[9]).unwrap();
        session.next_logits().unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    assert_eq!(logits(&model), logits(&model));
}

#[test]
fn the_argmax_on_the_device_is_the_argmax_of_the_logits() {
    let Some(model) = demo() else { return };
    let mut session = model.session(Some(64)).unwrap();
    session.prefill(&PROMPT).unwrap();
    for _ in 0..8 {
        let logits = session.next_logits().unwrap();
        let best = (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        let id = session.next_greedy().unwrap();
        assert_eq!(id as usize, best);
        session.prefill(&[id]).unwrap();
    }
}

#[test]
fn rollback_forgets_exactly_what_came_after() {
    let Some(model) = demo() else { return };
    let mut session = model.session(Some(64)).unwrap();
    session.prefill(&PROMPT).unwrap();
    let expected = session.next_logits().unwrap();
    session.prefill(&[5, 6, 7, 8]).unwrap();
    session.rollback(PROMPT.len() - 1).unwrap();
    assert!(matches!(session.next_logits(), Err(Error::Input(_))), "logits of a forgotten token were given");
    session.prefill(&PROMPT[PROMPT.len() - 1..]).unwrap();
    assert_eq!(session.history(), PROMPT);
    let found = session.next_logits().unwrap();
    let error = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(error <= 1e-3, "the logits differ by {error}");
    let message = session.rollback(20).unwrap_err().to_string();
    assert!(message.contains("20") && message.contains('8'), "{message}");
}

#[test]
fn sessions_on_one_model_do_not_disturb_each_other() {
    let Some(model) = demo() else { return };
    let alone = tokens(&model, 12);
    let mut a = model.session(Some(64)).unwrap();
    let mut b = model.session(Some(32)).unwrap();
    a.prefill(&PROMPT).unwrap();
    b.prefill(&[1, 40, 41]).unwrap();
    let mut found = Vec::new();
    for _ in 0..12 {
        let id = a.next_greedy().unwrap();
        found.push(id);
        a.prefill(&[id]).unwrap();
        b.prefill(&[42]).unwrap();
    }
    assert_eq!(found, alone);
}

#[test]
fn models_with_other_rules_share_the_device_and_its_weights() {
    let Some(model) = demo() else { return };
    let bytes = || {
        model.gpu().forget_peak();
        model.gpu().peak_bytes()
    };
    let before = bytes();
    let naive = model.with_fusion(Fusion::none().with_naive_norms());
    assert_eq!(bytes(), before);
    assert!(std::ptr::eq(model.gpu(), naive.gpu()));
    assert_eq!(tokens(&naive, 12), tokens(&model, 12));
    // The rules of the first model are unchanged.
    let dispatches = |model: &Model| model.inspect().dispatches.len();
    assert_eq!(dispatches(&model), dispatches(&model.with_fusion(Fusion::all())));
    assert!(dispatches(&model) < dispatches(&naive));
}

#[test]
fn counts_are_what_the_device_is_given() {
    let Some(model) = demo() else { return };
    let (layers, chunk) = (model.config().layers.len(), model.prefill_chunk());
    for fusion in [Fusion::all(), Fusion::none(), Fusion::all().with_naive_norms()] {
        let model = model.with_fusion(fusion);
        let mut session = model.session(Some(1 + 9 + chunk + 9)).unwrap();
        for length in [1, 9, chunk + 9] {
            let (counts, before) = (model.counts(length), model.gpu().counters().dispatches);
            session.prefill(&vec![5; length]).unwrap();
            assert_eq!(counts.dispatches as u64, model.gpu().counters().dispatches - before);
            // The last layer of a chunk without logits ends after the norms of its attention.
            let before = if length > chunk { 4 * (layers - 1) + 3 } else { 0 };
            assert_eq!(counts.norms, before + 4 * layers + 1);
        }
    }
}

#[test]
fn a_device_that_the_caller_opened_is_accepted() {
    let Some(own) = demo() else { return };
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter =
        pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default())).unwrap();
    // WebGPU's default limits and no feature at all.
    let (device, queue) =
        pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default())).unwrap();
    let gpu = Gpu::from_device(device, queue);
    assert_eq!(gpu.tier().to_string(), "plain");
    let model = Model::from_checkpoint(&Checkpoint::demo().unwrap(), gpu, LoadOptions::default()).unwrap();
    assert_eq!(tokens(&model, 12), tokens(&own, 12));
}

#[test]
fn what_cannot_be_appended_is_refused_and_changes_nothing() {
    let Some(model) = demo() else { return };
    let mut session = model.session(Some(10)).unwrap();
    let message = |result: samara::Result<()>| match result {
        Err(Error::Input(message)) => message,
        other => panic!("expected an input error, got {other:?}"),
    };
    assert!(message(session.prefill(&[])).contains("empty"));
    let vocab = message(session.prefill(&[1, 2048]));
    assert!(vocab.contains("2048") && vocab.contains("index 1"), "{vocab}");
    session.prefill(&PROMPT).unwrap();
    let full = message(session.prefill(&[3, 4, 5]));
    assert!(full.contains("11") && full.contains("10"), "{full}");
    assert_eq!(session.position(), PROMPT.len());
    session.prefill(&[3, 4]).unwrap();
    assert!(message(session.prefill(&[5])).contains("10"));
    assert_eq!(session.generate(Sampler::greedy()).count(), 1, "a full context still has a next token");
    assert!(message(model.session(Some(0)).map(|_| ())).contains('0'));
}

#[test]
fn a_missing_adapter_is_named() {
    if !common::has_gpu() {
        return;
    }
    let options = |adapter: &str| LoadOptions { adapter: Some(adapter.into()), ..LoadOptions::default() };
    for adapter in ["99", "no such card"] {
        let message = Model::load("demo", options(adapter)).unwrap_err().to_string();
        assert!(message.contains(adapter), "{message}");
    }
}

#[test]
fn what_an_adapter_cannot_hold_is_refused_with_both_sizes() {
    let Some(gpu) = common::gpu() else { return };
    let limit = gpu.summary().max_binding_bytes.min(gpu.summary().max_buffer_bytes);
    let message = gpu.storage("a cache", limit + 4).unwrap_err().to_string();
    assert!(message.contains(&limit.to_string()) && message.contains(&(limit + 4).to_string()), "{message}");
}

#[test]
fn decoding_leaves_nothing_new_on_the_device() {
    if !common::has_gpu() {
        return;
    }
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter =
        pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default())).unwrap();
    let (device, queue) =
        pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default())).unwrap();
    let gpu = Gpu::from_device(device.clone(), queue);
    let model = Model::from_checkpoint(&Checkpoint::demo().unwrap(), gpu, LoadOptions::default()).unwrap();
    let mut session = model.session(Some(64)).unwrap();
    session.prefill(&PROMPT).unwrap();
    let live = || {
        let counters = device.get_internal_counters().hal;
        [counters.buffers.read(), counters.bind_groups.read(), counters.compute_pipelines.read()]
    };
    let random = SamplerOptions { temperature: 0.7, ..SamplerOptions::default() };
    for sampler in [Sampler::greedy(), Sampler::new(random).unwrap()] {
        let mut tokens = session.generate(sampler);
        assert_eq!(tokens.by_ref().take(4).filter(Result::is_ok).count(), 4);
        let before = live();
        assert!(before.iter().all(|&count| count > 0), "wgpu counts nothing: {before:?}");
        for id in tokens.take(16) {
            id.unwrap();
            assert_eq!(live(), before);
        }
    }
}

#[test]
fn an_adapter_without_enough_memory_says_what_did_not_fit() {
    if !common::has_gpu() {
        return;
    }
    // The least memory with which the device opens; then it is filled up.
    let with = |memory_percent| Gpu::open_with(&GpuOptions { memory_percent, ..GpuOptions::default() }).ok();
    let gpu = (0..100).find_map(|percent| Some((percent, with(percent)?)));
    let (percent, gpu) = gpu.expect("the device opens with all of its memory");
    if percent == 0 {
        return common::skipped(common::lacking(gpu.summary(), "a memory budget that is told", false));
    }

    let bytes = 64 << 20;
    let mut held = Vec::new();
    let mut fill = || {
        let range = gpu.storage("a weight", bytes)?;
        gpu.write(&range, 0, &vec![1; bytes as usize]);
        held.push(range);
        gpu.flush()
    };
    let error = (0..256).find_map(|_| fill().err()).expect("memory ends before 16 GiB");
    let message = error.to_string();
    eprintln!("{} buffers of {bytes} bytes, then: {message}", held.len());
    assert!(matches!(error, Error::Gpu(_)) && message.to_lowercase().contains("out of memory"), "{message}");
    assert!(message.contains(&gpu.summary().name), "{message}");
    // If wgpu's own staging did not fit, the device is lost; else it still works.
    if message.contains("`a weight`") {
        assert!(message.contains(&bytes.to_string()), "{message}");
        gpu.check().unwrap();
    }
}

/// A tiny f32 model with one value of its first qkv projection replaced.
fn with_value(value: f32) -> Tiny {
    let mut tiny = Tiny::new(Dtype::F32);
    let (_, _, data) = tiny.tensors.get_mut(&names::qkv_proj(0)).unwrap();
    data[..4].copy_from_slice(&value.to_le_bytes());
    tiny
}

#[test]
fn a_value_that_a_format_cannot_hold_is_refused_or_kept_as_stored() {
    let load = |value: f32, format: Format| {
        let options = LoadOptions { format: Some(format), ..LoadOptions::default() };
        Some(Model::from_checkpoint(&with_value(value).open().unwrap(), common::gpu()?, options))
    };
    for (format, value) in [(Format::Q8_0, 1e7), (Format::Q4_0, 6e5), (Format::Bf16, 3.4e38)] {
        let Some(result) = load(value, format) else { return };
        let message = result.unwrap_err().to_string();
        let parts =
            [&names::qkv_proj(0), &format.to_string(), &value.to_string(), &format.largest().to_string()];
        assert!(parts.iter().all(|part| message.contains(*part)), "{message}");
    }
    let model = load(1e5, Format::F16).unwrap().unwrap();
    for weight in model.inspect().weights.iter().filter(|weight| weight.rows > 1) {
        let expected = if weight.name == names::qkv_proj(0) { Format::F32 } else { Format::F16 };
        assert_eq!(weight.format, expected, "{}", weight.name);
    }
}

#[test]
fn logits_that_are_no_numbers_are_an_error() {
    let Some(gpu) = common::gpu() else { return };
    let mut tiny = Tiny::new(Dtype::F32);
    let (_, _, data) = tiny.tensors.get_mut(names::NORM).unwrap();
    // Finite themselves, too large for a product in f32.
    data.chunks_exact_mut(4).for_each(|value| value.copy_from_slice(&3e38f32.to_le_bytes()));
    let (_, _, data) = tiny.tensors.get_mut(names::EMBEDDING).unwrap();
    data.chunks_exact_mut(4).enumerate().for_each(|(i, value)| {
        value.copy_from_slice(&(if i % 2 == 0 { 1e30f32 } else { -1e30 }).to_le_bytes());
    });
    let model = Model::from_checkpoint(&tiny.open().unwrap(), gpu, LoadOptions::default()).unwrap();
    let mut session = model.session(None).unwrap();
    session.prefill(&[1, 5]).unwrap();
    for message in [
        session.next_logits().unwrap_err().to_string(),
        session.next_greedy().unwrap_err().to_string(),
        session.generate(Sampler::greedy()).next().unwrap().unwrap_err().to_string(),
    ] {
        assert!(message.contains("position 2") && message.contains("not finite"), "{message}");
    }
    session.rollback(0).unwrap();
    assert!(session.nll(&[1, 5]).is_err());
}

#[test]
fn a_vocabulary_of_any_size_runs() {
    let Some(gpu) = common::gpu() else { return };
    let tiny = Tiny::with(Dtype::BF16, &[("vocab_size", 43.into())]);
    let model = Model::from_checkpoint(&tiny.open().unwrap(), gpu, LoadOptions::default()).unwrap();
    let mut session = model.session(None).unwrap();
    session.prefill(&[1, 42, 5]).unwrap();
    let logits = session.next_logits().unwrap();
    let best = (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
    assert_eq!((logits.len(), session.next_greedy().unwrap() as usize), (43, best));
}

#[test]
fn prefill_chunks_out_of_range_are_refused() {
    for prefill_chunk in [0, 4097, usize::MAX] {
        let Some(gpu) = common::gpu() else { return };
        let options = LoadOptions { prefill_chunk: Some(prefill_chunk), ..LoadOptions::default() };
        let message =
            Model::from_checkpoint(&Checkpoint::demo().unwrap(), gpu, options).unwrap_err().to_string();
        assert!(message.contains(&prefill_chunk.to_string()) && message.contains("4096"), "{message}");
    }
}

#[test]
fn scored_tokens_leave_no_logits_but_a_session_that_goes_on() {
    let Some(model) = demo() else { return };
    let mut session = model.session(Some(64)).unwrap();
    let scores = session.nll(&PROMPT).unwrap();
    assert_eq!((scores.len(), session.position()), (PROMPT.len() - 1, PROMPT.len()));
    assert!(session.next_logits().unwrap_err().to_string().contains("scored"));
    session.prefill(&[5]).unwrap();
    session.next_logits().unwrap();
}
