//! The whole model against its goldens and against itself: every way to compute the same logits agrees.
//!
//! Goldens come from an independent PyTorch implementation: micro and fable in f64, the others in f32.

use std::time::Instant;

use crate::common::{self, demo, golden, load};
use samara::gpu::Gpu;
use samara::graph::fuse::{Fusion, Rule};
use samara::graph::reference;
use samara::kernels::{FEW_TOKENS, Memory, Tier, rope_table};
use samara::model::layout::Layout;
use samara::model::openelm;
use samara::model::shape::{Logits, StepShape};
use samara::model::{Checkpoint, synth};
use samara::quant::Format;
use samara::{KvFormat, LoadOptions, Model, Session};
use serde_json::Value;

/// Options that leave nothing but f32 rounding between the device and an f64 reference.
fn exact() -> LoadOptions {
    LoadOptions { kv: KvFormat::F32, ..LoadOptions::default() }
}

fn micro() -> Checkpoint {
    Checkpoint::open(&golden("micro")).unwrap()
}

/// Reads a file of `tests/golden`.
fn json(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(golden(name)).unwrap()).unwrap()
}

/// The prompts of the demo model's golden, with what follows each.
fn prompts() -> Vec<Value> {
    let prompts = json("fable/golden.json")["prompts"].as_array().unwrap().clone();
    assert!(prompts.len() > 2);
    prompts
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn greedy(session: &mut Session, prompt: &[u32], new: usize) -> Vec<u32> {
    session.prefill(prompt).unwrap();
    (0..new)
        .map(|step| {
            let id = session.next_greedy().unwrap();
            if step + 1 < new {
                session.prefill(&[id]).unwrap();
            }
            id
        })
        .collect()
}

/// NMSE over the logits that a golden lists: the first 16 and the top 10.
fn golden_nmse(logits: &[f32], golden: &Value) -> f64 {
    let first = golden["last_logits_first16"].as_array().into_iter().flatten().enumerate();
    let first = first.map(|(index, value)| (index, value.as_f64().unwrap()));
    let top = ["last_logits_top10", "last_prompt_logits_top10"];
    let top = top.iter().find_map(|key| golden[key].as_array()).unwrap().iter();
    let top = top.map(|pair| (pair[0].as_u64().unwrap() as usize, pair[1].as_f64().unwrap()));
    let (found, expected): (Vec<f64>, Vec<f64>) =
        first.chain(top).map(|(index, value)| (f64::from(logits[index]), value)).unzip();
    assert!(found.len() >= 10, "a golden of {} logits", found.len());
    common::nmse(&found, &expected)
}

fn nmse(found: &[f32], expected: &[f32]) -> f64 {
    let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    common::nmse(&wide(found), &wide(expected))
}

/// Checks greedy ids, logits and prompt likelihood of a checkpoint against a golden file.
fn check_golden(checkpoint: &Checkpoint, golden: &Value, options: LoadOptions, bound: f64) {
    let start = Instant::now();
    let Some(model) = load(checkpoint, options) else { return };
    let prompt = ids(&golden["prompt_ids"]);
    let expected = ids(&golden["greedy_ids"]);
    let mut session = model.session(Some(prompt.len() + expected.len())).unwrap();
    let loaded = start.elapsed();
    session.prefill(&prompt).unwrap();
    let error = golden_nmse(&session.next_logits().unwrap(), golden);
    let prefilled = start.elapsed();
    assert!(error <= bound, "logits: NMSE {error:e} > {bound:e}");
    session.rollback(0).unwrap();
    assert_eq!(greedy(&mut session, &prompt, expected.len()), expected);
    session.rollback(0).unwrap();
    let scores = session.nll(&prompt).unwrap();
    let mean = scores.iter().sum::<f64>() / scores.len() as f64;
    let expected = golden["prompt_mean_nll"].as_f64().unwrap();
    assert!((mean - expected).abs() <= 1e-4 * expected, "prompt_mean_nll {mean}, expected {expected}");
    let total = start.elapsed();
    eprintln!(
        "NMSE {error:e}; loaded after {loaded:.1?}, first logits {prefilled:.1?}, all done {total:.1?}"
    );
}

#[test]
fn micro_equals_its_golden_in_every_exact_format() {
    let golden = json("micro/golden.json");
    for format in [Format::F32, Format::Bf16] {
        let options = LoadOptions { format: Some(format), ..exact() };
        check_golden(&micro(), &golden, options, 1e-8);
    }
}

#[test]
fn fable_equals_its_golden() {
    let Some(model) = demo(exact()) else { return };
    for prompt in prompts() {
        let mut session = model.session(None).unwrap();
        let text = prompt["text"].as_str().unwrap();
        session.prefill(&ids(&prompt["ids"])).unwrap();
        let error = golden_nmse(&session.next_logits().unwrap(), &prompt);
        assert!(error <= 1e-8, "{text}: NMSE {error:e}");
        session.rollback(0).unwrap();
        let expected = ids(&prompt["greedy_ids"]);
        assert_eq!(greedy(&mut session, &ids(&prompt["ids"]), expected.len()), expected, "{text}");
    }
}

#[test]
fn fable_perplexity_equals_its_golden_in_bf16_q8_0_and_q4_0() {
    let golden = json("fable/golden.json");
    let corpus = ids(&golden["corpus_token_ids_8192"]);
    let bf16 = golden["corpus_perplexity"]["perplexity"].as_f64().unwrap();
    for (format, expected) in [(Format::Bf16, bf16), (Format::Q8_0, 1.18003), (Format::Q4_0, 1.20319)] {
        let options = LoadOptions { format: Some(format), prefill_chunk: Some(256), ..exact() };
        let Some(model) = demo(options) else { return };
        let mut session = model.session(Some(256)).unwrap();
        let mut scores = Vec::new();
        for window in corpus.chunks(256) {
            session.rollback(0).unwrap();
            scores.extend(session.nll(window).unwrap());
        }
        assert_eq!(scores.len(), 8160);
        let perplexity = (scores.iter().sum::<f64>() / scores.len() as f64).exp();
        eprintln!("{format}: perplexity {perplexity:.5}");
        assert!((perplexity / expected - 1.0).abs() <= 0.002, "{format}: {perplexity}, expected {expected}");
    }
}

/// A published size with synthetic weights against its golden.
fn check_size(spec: &str, file: &str) {
    check_golden(&Checkpoint::source(spec).unwrap(), &json(&format!("synthetic/{file}")), exact(), 1e-6);
}

#[test]
fn the_270m_equals_its_golden() {
    check_size("synthetic:270M", "270M.json");
}

#[test]
#[ignore = "takes minutes on a software adapter"]
fn the_450m_equals_its_golden() {
    check_size("synthetic:450M", "450M.json");
}

#[test]
#[ignore = "takes minutes on a software adapter"]
fn the_1_1b_equals_its_golden() {
    check_size("synthetic:1.1B", "1_1B.json");
}

#[test]
#[ignore = "takes minutes and 7 GB on a software adapter"]
fn the_3b_equals_its_golden() {
    check_size("synthetic:3B", "3B.json");
}

/// The logits of every row of a prompt on the CPU, by the primitive or the fused graph.
fn reference_logits(
    checkpoint: &Checkpoint,
    (format, kv): (Format, KvFormat),
    prompt: &[u32],
    fusion: &Fusion,
) -> Vec<f32> {
    let layout = Layout::new(checkpoint.weights(), |_| format, 1 << 27);
    let greedy = StepShape::greedy(prompt.len(), 64, kv.dtype());
    let shape = StepShape { logits: Logits::All, sampling: None, ..greedy };
    let mut step = openelm::step(checkpoint.config(), &layout, shape);
    fusion.apply(&mut step.graph);
    let mut memory = Memory::new(step.graph.tensors());
    for part in &step.weights {
        let index = checkpoint.weights().iter().position(|info| info.name == part.name).unwrap();
        let weight = &layout[&part.name];
        let rows = weight.parts[part.part].clone();
        let mut values = vec![0.0; rows.len() * weight.cols];
        checkpoint.read_rows(index, rows, &mut values).unwrap();
        let held = weight.format.unpack(&weight.format.pack(&values, weight.cols), weight.cols);
        memory.set(part.tensor, held.into_iter().map(f64::from).collect());
    }
    memory.set(step.ids, prompt.iter().map(|&id| f64::from(id)).collect());
    memory
        .set(step.rope, rope_table(64, checkpoint.config().head_dim, checkpoint.config().rope_theta.into()));
    reference::run(&step.graph, &mut memory);
    memory.read(step.logits.unwrap()).iter().map(|&v| v as f32).collect()
}

#[test]
fn the_device_equals_the_reference_graph_in_every_format() {
    let checkpoint = micro();
    let vocab = checkpoint.config().vocab_size;
    // Tokens in tiles, and few enough to go row by row.
    for (format, tokens) in Format::ALL.into_iter().flat_map(|format| [(format, 9), (format, 5)]) {
        let prompt = synth::prompt(vocab, tokens);
        let expected = reference_logits(&checkpoint, (format, KvFormat::F32), &prompt, &Fusion::none());
        for fusion in [Fusion::all(), Fusion::all().with_naive_norms()] {
            let found = reference_logits(&checkpoint, (format, KvFormat::F32), &prompt, &fusion);
            assert!(
                nmse(&found, &expected) <= 1e-13,
                "{format}, T {tokens}: {fusion:?} computes something else"
            );
        }
        let Some(model) = load(&checkpoint, LoadOptions { format: Some(format), ..exact() }) else { return };
        let mut session = model.session(Some(64)).unwrap();
        session.prefill(&prompt).unwrap();
        let error = nmse(&session.next_logits().unwrap(), &expected[expected.len() - vocab..]);
        assert!(error <= 1e-10, "{format}, T {tokens}: NMSE {error:e}");
    }
}

/// Logits after a prompt and after one more token.
fn two_logits(model: &Model, prompt: &[u32]) -> Vec<f32> {
    let mut session = model.session(Some(prompt.len() + 1)).unwrap();
    session.prefill(prompt).unwrap();
    let mut logits = session.next_logits().unwrap();
    session.prefill(&[7]).unwrap();
    logits.extend(session.next_logits().unwrap());
    logits
}

#[test]
fn every_way_to_run_a_prompt_agrees() {
    let checkpoint = micro();
    let prompt = synth::prompt(checkpoint.config().vocab_size, 21);
    let Some(whole) = load(&checkpoint, exact()) else { return };
    let expected = two_logits(&whole, &prompt);
    let check = |what: &str, options: LoadOptions| {
        let found = two_logits(&load(&checkpoint, options).unwrap(), &prompt);
        let error = nmse(&found, &expected);
        assert!(error <= 1e-10, "{what}: NMSE {error:e}");
    };
    for chunk in [1, 2, 7, 20] {
        check(&format!("chunks of {chunk}"), LoadOptions { prefill_chunk: Some(chunk), ..exact() });
    }
    for rule in Rule::ALL {
        let fusion = Fusion::all().without(&rule.to_string()).unwrap();
        check(&format!("without {rule}"), LoadOptions { fusion, ..exact() });
    }
    for fusion in [Fusion::none(), Fusion::none().with_naive_norms(), Fusion::all().with_naive_norms()] {
        check(&format!("{fusion:?}"), LoadOptions { fusion, ..exact() });
    }
    // 64 KiB holds 64 of the micro model's 512 embedding rows in f32, and a part of each projection.
    for format in Format::ALL {
        let options = || LoadOptions { format: Some(format), ..exact() };
        let whole = two_logits(&load(&checkpoint, options()).unwrap(), &prompt);
        let split = LoadOptions { max_binding_bytes: Some(65536), ..options() };
        let split = load(&checkpoint, split).unwrap();
        assert!(split.inspect().weights.iter().any(|weight| weight.parts > 1));
        let error = nmse(&two_logits(&split, &prompt), &whole);
        assert!(error <= 1e-10, "{format} split over bindings: NMSE {error:e}");
    }
}

#[test]
fn a_prompt_of_300_tokens_equals_300_decode_steps() {
    let checkpoint = Checkpoint::demo().unwrap();
    let prompt = synth::prompt(checkpoint.config().vocab_size, 300);
    for format in [Format::Bf16, Format::Q8_0, Format::Q4_0] {
        let Some(model) = load(&checkpoint, LoadOptions { format: Some(format), ..exact() }) else { return };
        let [chunks, steps] = [prompt.len(), 1].map(|tokens| {
            let mut session = model.session(Some(prompt.len())).unwrap();
            prompt.chunks(tokens).for_each(|ids| session.prefill(ids).unwrap());
            session.next_logits().unwrap()
        });
        let error = nmse(&chunks, &steps);
        eprintln!("{format}: NMSE {error:e}");
        assert!(error <= 1e-6, "{format}: NMSE {error:e}");
        assert_ne!(chunks, steps, "tiles and rows add up in another order");
    }
}

#[test]
fn every_tier_agrees() {
    let checkpoint = micro();
    let prompt = synth::prompt(checkpoint.config().vocab_size, 21);
    for format in Format::ALL {
        let options = || LoadOptions { format: Some(format), ..exact() };
        let gpus = common::gpus();
        if gpus.len() < 2 {
            return common::skipped("no two tiers to compare");
        }
        let logits = gpus.into_iter().filter(|gpu| !rounds(gpu.tier(), format)).map(|gpu| {
            let tier = gpu.tier();
            (tier, two_logits(&Model::from_checkpoint(&checkpoint, gpu, options()).unwrap(), &prompt))
        });
        let logits: Vec<_> = logits.collect();
        assert!(logits.len() > 1, "{format}");
        for (tier, found) in &logits {
            let error = nmse(found, &logits[0].1);
            assert!(error <= 1e-10, "{format}, tier {tier} against {}: NMSE {error:e}", logits[0].0);
        }
    }
}

/// Returns whether products round more than the order of sums does: activations to 8 bits, or factors to f16.
fn rounds(tier: Tier, format: Format) -> bool {
    match format {
        Format::Q8_0 | Format::Q4_0 => tier.int8 || tier.coop.is_some(),
        Format::F16 => tier.coop.is_some(),
        Format::F32 | Format::Bf16 => false,
    }
}

/// Compares logits at a tier that rounds with those at one that does not, after `tokens` tokens.
fn check_rounded(gpu: &Gpu, tokens: usize, least: f64, most: f64) {
    assert!(Format::ALL.into_iter().any(|format| rounds(gpu.tier(), format)));
    for (checkpoint, format) in
        [micro(), Checkpoint::demo().unwrap()].iter().flat_map(|c| Format::ALL.map(|f| (c, f)))
    {
        if !rounds(gpu.tier(), format) {
            continue;
        }
        let prompt = synth::prompt(checkpoint.config().vocab_size, tokens);
        let logits = |tier| {
            let options = LoadOptions { format: Some(format), ..exact() };
            let model = Model::from_checkpoint(checkpoint, gpu.at_tier(tier).unwrap(), options).unwrap();
            two_logits(&model, &prompt)
        };
        let error = nmse(&logits(gpu.tier()), &logits(Tier::SUBGROUP));
        eprintln!("{} layers, T {tokens}, {format}: NMSE {error:e}", checkpoint.config().layers.len());
        assert!(error <= most, "T {tokens}, {format}: NMSE {error:e}");
        assert!(error >= least, "T {tokens}, {format}: NMSE {error:e}, so nothing was rounded");
    }
}

#[test]
fn activations_of_8_bits_are_close_to_f32() {
    let Some(gpu) = common::gpu_at(Tier::INT8) else { return };
    // On uniform values the four products of a layer add 3e-5, 1.5e-5, 7.5e-5 and 1.5e-5 of their outputs, and the head
    // 3e-5: 1.1e-3 in eight layers, less as far as the residual outweighs them.
    for tokens in [FEW_TOKENS, FEW_TOKENS + 9] {
        check_rounded(&gpu, tokens, 1e-7, 1e-3);
    }
}

#[test]
fn factors_of_matrix_units_are_close_to_f32() {
    let Some(gpu) = common::gpu_at(Tier::COOP) else { return };
    // A product adds at most 4e-6 of its output: 40 of them in ten layers. Few tokens take no tiles.
    check_rounded(&gpu, FEW_TOKENS + 9, 1e-11, 1.6e-4);
}

#[test]
fn an_f16_cache_is_close_to_an_f32_cache() {
    let checkpoint = micro();
    let prompt = synth::prompt(checkpoint.config().vocab_size, 21);
    let Some(f32_cache) = load(&checkpoint, exact()) else { return };
    let f16_cache = load(&checkpoint, LoadOptions { kv: KvFormat::F16, ..LoadOptions::default() }).unwrap();
    let error = nmse(&two_logits(&f16_cache, &prompt), &two_logits(&f32_cache, &prompt));
    // 11 significant bits: a relative error of 2^-12 is an NMSE of 6e-8 in k and v.
    assert!(error <= 1e-6, "NMSE {error:e}");
}

#[test]
fn a_q8_0_cache_holds_what_the_reference_says() {
    let checkpoint = micro();
    for tokens in [9, 5] {
        let prompt = synth::prompt(checkpoint.config().vocab_size, tokens);
        let kinds = (Format::F32, KvFormat::Q8_0);
        let expected = reference_logits(&checkpoint, kinds, &prompt, &Fusion::none());
        let options = LoadOptions { format: Some(Format::F32), kv: KvFormat::Q8_0, ..LoadOptions::default() };
        let Some(model) = load(&checkpoint, options) else { return };
        let mut session = model.session(Some(64)).unwrap();
        session.prefill(&prompt).unwrap();
        let logits = session.next_logits().unwrap();
        let error = nmse(&logits, &expected[expected.len() - logits.len()..]);
        eprintln!("NMSE {error:e}");
        // Far less than what q8_0 itself costs: an f16 scale toward zero, and a few values next to a half.
        assert!(error <= 1e-6, "T {tokens}: NMSE {error:e}");
    }
}

#[test]
fn a_q8_0_cache_is_close_to_an_f16_cache_and_tells_the_same_fable() {
    let of = |kv| LoadOptions { kv, ..LoadOptions::default() };
    for checkpoint in [micro(), Checkpoint::demo().unwrap()] {
        let prompt = synth::prompt(checkpoint.config().vocab_size, 21);
        let Some(f16_cache) = load(&checkpoint, of(KvFormat::F16)) else { return };
        let q8_0_cache = load(&checkpoint, of(KvFormat::Q8_0)).unwrap();
        let error = nmse(&two_logits(&q8_0_cache, &prompt), &two_logits(&f16_cache, &prompt));
        eprintln!("NMSE {error:e}");
        // A step is top / 127, so the error of a value is top / 127 / sqrt(12), its square 5e-6 of top^2, and that at
        // most 5e-5 of the mean square of a block, which is a tenth to a third of top^2. Every layer adds it twice.
        let layers = checkpoint.config().layers.len() as f64;
        assert!(error > 0.0 && error <= 2.0 * layers * 5e-5, "NMSE {error:e}");
        let [narrow, wide] = [&q8_0_cache, &f16_cache].map(|model| model.inspect().cache_bytes as f64);
        // 8 bits and a word for each 64 values, or for fewer where a head is smaller.
        let dh = checkpoint.config().head_dim;
        assert_eq!(narrow / wide, (dh + 4 * dh.div_ceil(64)) as f64 / (2 * dh) as f64);
    }
    let model = demo(of(KvFormat::Q8_0)).unwrap();
    for prompt in prompts() {
        let mut session = model.session(None).unwrap();
        let expected = ids(&prompt["greedy_ids"]);
        assert_eq!(
            greedy(&mut session, &ids(&prompt["ids"]), expected.len()),
            expected,
            "{}",
            prompt["text"]
        );
    }
}
