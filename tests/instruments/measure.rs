//! The instruments against what is known: clocks, ceilings, costs and counts.

use crate::common::outputs::upload;
use crate::common::{self, changed, set_clock};
use samara::gpu::{Clock, Executor, Gpu};
use samara::instruments::ablate::{Workload, ablate, choices};
use samara::instruments::bench::{Repetitions, Test, bench};
use samara::instruments::ceilings;
use samara::instruments::document::{Ceilings, Environment, Subject};
use samara::instruments::verify::verify;
use samara::kernels::{Entry, MatrixShape};
use samara::model::{Checkpoint, Size, synth};
use samara::quant::Format;
use samara::{Fusion, LoadOptions, Model};

#[test]
fn ceilings_are_measured_by_every_clock_that_the_adapter_has() {
    let Some(mut gpu) = common::gpu() else { return };
    for clock in [Clock::Timestamps, Clock::PassTimestamps, Clock::Wall] {
        if !set_clock(&mut gpu, clock) {
            continue;
        }
        let start = std::time::Instant::now();
        let found = ceilings::measure(&gpu).unwrap();
        eprintln!("{clock}: {found:?} in {:.1?}", start.elapsed());
        assert!(found.copy_gb_s > 0.1 && found.copy_gb_s < 1e5, "{clock}: {found:?}");
        assert!(found.fma_gflop_s > 0.1 && found.fma_gflop_s < 1e6, "{clock}: {found:?}");
        assert_eq!(found.matrix_gflop_s.is_some(), gpu.summary().matrix_units == Some(MatrixShape::Sixteen));
    }
}

#[test]
fn the_demo_is_verified_in_every_format_and_a_wrong_shader_is_noticed() {
    let Some(gpu) = common::gpu() else { return };
    for format in Format::ALL {
        let options = LoadOptions { format: Some(format), ..LoadOptions::default() };
        let gpu = gpu.at_tier(gpu.tier()).unwrap();
        verify(&Model::from_checkpoint(&Checkpoint::demo().unwrap(), gpu, options).unwrap()).unwrap();
    }
    let mut gpu = gpu.at_tier(gpu.tier()).unwrap();
    gpu.set_shaders(changed("product/add.wgsl", "+ sums[m];", "- sums[m];"));
    let message = verify(&micro(gpu, Format::Bf16)).unwrap_err().to_string();
    assert!(message.contains("nothing is timed"), "{message}");
}

fn micro(gpu: Gpu, format: Format) -> Model {
    let options = LoadOptions { format: Some(format), ..LoadOptions::default() };
    Model::from_checkpoint(&Checkpoint::synthetic(Size::Micro, 0), gpu, options).unwrap()
}

#[test]
fn every_clock_times_every_dispatch_and_changes_nothing() {
    let Some(gpu) = common::gpu() else { return };
    let ids = synth::prompt(32000, 9);
    let plain = {
        let mut session = micro(gpu.at_tier(gpu.tier()).unwrap(), Format::F32).session(Some(16)).unwrap();
        session.prefill(&ids).unwrap();
        session.prefill(&[7]).unwrap();
        session.next_greedy().unwrap()
    };
    for clock in [Clock::Timestamps, Clock::PassTimestamps, Clock::Wall] {
        let mut gpu = gpu.at_tier(gpu.tier()).unwrap();
        if !set_clock(&mut gpu, clock) {
            continue;
        }
        let model = micro(gpu, Format::F32);
        let mut session = model.session(Some(16)).unwrap();
        let profile = session.profile(&ids).unwrap();
        assert_eq!(profile.len(), model.counts(9).dispatches, "{clock}");
        assert!(profile.iter().all(|(_, span)| span.nanoseconds() > 0.0), "{clock}: {profile:?}");
        assert!(profile.windows(2).all(|pair| pair[0].1.end <= pair[1].1.start), "{clock}");
        assert_eq!(session.position(), 9);
        session.prefill(&[7]).unwrap();
        assert_eq!(session.next_greedy().unwrap(), plain, "{clock}");
    }
}

#[test]
fn a_decode_step_costs_its_weights_its_live_cache_and_little_more() {
    let Some(gpu) = common::gpu() else { return };
    let model = micro(gpu, Format::Q8_0);
    let weights = model.inspect().weight_bytes;
    // The embedding is read once as a whole, by the head, and once as a single row.
    let [near, far] = [0, 100].map(|position| model.cost(256, position, 1));
    let kv_heads: usize = model.config().layers.iter().map(|layer| layer.kv_heads).sum();
    let key = (2 * kv_heads * model.config().head_dim * 2) as u64;
    assert_eq!(far.read - near.read, 100 * key, "an f16 key and value of every head for each cached token");
    assert!(near.read >= weights && near.read <= weights + weights / 50, "{} for {weights}", near.read);
    // The head of a prefill runs for one row; its weights are read once for all tokens.
    let prefill = model.cost(256, 0, 16);
    let head = (2 * model.config().vocab_size * model.config().model_dim) as u64;
    assert!(prefill.read < 2 * near.read, "{prefill:?} {near:?}");
    // After the last layer's attention one row continues.
    let (config, last) = (model.config(), model.config().layers.last().unwrap());
    let widths = last.query_heads * config.head_dim + 3 * last.ffn_dim;
    let dropped = 15 * (2 * config.model_dim * widths) as u64;
    assert!(prefill.flops - head + dropped > 15 * (near.flops - head), "{prefill:?} {near:?}");
}

#[test]
fn a_bench_counts_what_was_submitted_and_bounds_what_was_allocated() {
    let Some(gpu) = common::gpu() else { return };
    let model = micro(gpu, Format::F16);
    let environment = Environment::of(model.gpu(), "test");
    let subject = Subject::of(&model, "synthetic:micro");
    let ceilings = Ceilings { copy_gb_s: 10.0, fma_gflop_s: 100.0, matrix_gflop_s: None };
    let run = |prompt, generated, depth| {
        let repetitions = Repetitions { timed: 2, warm_up: true, per_submit: Some(1) };
        let test = Test { prompt, generated, depth, batch: 1 };
        bench(&model, &environment, &subject, ceilings, test, repetitions, || ()).unwrap()
    };
    let [token, prompt] = [1, 10].map(|tokens| model.counts(tokens).dispatches as f64);
    let tg = run(0, 6, 3);
    assert_eq!((tg.test.as_str(), tg.dispatches_per_token, tg.submits_per_token), ("tg6 @ d3", token, 1.0));
    let pp = run(10, 0, 0);
    let each = (pp.dispatches_per_token, pp.submits_per_token);
    assert_eq!((pp.test.as_str(), each), ("pp10", (prompt / 10.0, 0.1)));
    let both = run(10, 6, 0);
    let each = (prompt + 6.0 * token) / 16.0;
    assert_eq!((both.test.as_str(), both.dispatches_per_token), ("pp10+tg6", each));
    for row in [tg, pp, both] {
        assert!(row.peak_bytes > model.inspect().weight_bytes && row.peak_bytes < 1 << 26, "{row:?}");
        assert!(row.first_token_ms.median() > 0.0 && row.tok_s.min() > 0.0, "{row:?}");
        let share = row.bytes_read_per_token * row.tok_s.median() * 1e-9 / 10.0;
        assert!(row.bandwidth_share >= share && row.bandwidth_share < 1.2 * share, "{row:?}");
    }
}

#[test]
fn an_ablation_runs_every_choice_of_rules_and_counts_its_norms() {
    let Some(gpu) = common::gpu() else { return };
    let workload = Workload { prompt: 5, generated: 3, repetitions: 2 };
    // Independent of the model's fusion rules.
    let model = micro(gpu, Format::Q8_0).with_fusion(Fusion::none());
    let mut runs = 0;
    let ablation = ablate(&model, "synthetic:micro", "test", workload, || runs += 1).unwrap();
    assert_eq!((runs, workload.runs()), (3 * 10, 3 * 10));
    assert!(ablation.subject.rules_off.is_empty());
    let norm_dispatches = [
        ("all on", 0),
        ("without matmul-swiglu", 0),
        ("without norm-matvec", 9),
        ("without matvec-add", 0),
        ("without add-rms-norm", 0),
        ("without qk-norm-rope-attention", 0),
        ("without qk-norm-rope", 0),
        ("all off", 13),
        ("rms-norm naive", 6 * 17),
        ("all off, rms-norm naive", 6 * 17),
    ];
    assert_eq!((ablation.rows.len(), choices().len()), (norm_dispatches.len(), norm_dispatches.len()));
    for ((row, (_, fusion)), (name, norm_dispatches)) in
        ablation.rows.iter().zip(choices()).zip(norm_dispatches)
    {
        assert_eq!((row.name.as_str(), row.norms), (name, 4 * 4 + 1));
        let given = model.with_fusion(fusion);
        let [decode, prefill] = [1, workload.prompt].map(|tokens| given.counts(tokens).dispatches);
        assert_eq!((row.decode_dispatches, row.prefill_dispatches), (decode, prefill), "{name}");
        assert_eq!(row.norm_dispatches, norm_dispatches, "{name}");
        for samples in [&row.decode_tok_s, &row.prefill_tok_s] {
            assert!(samples.values().len() == 2 && samples.min() > 0.0, "{name}: {samples}");
        }
    }
}

#[test]
fn an_ablation_refuses_choices_that_disagree_and_work_that_is_none() {
    let Some(gpu) = common::gpu() else { return };
    let refusal = |model: &Model, [prompt, generated, repetitions]: [usize; 3]| {
        let workload = Workload { prompt, generated, repetitions };
        ablate(model, "micro", "test", workload, || panic!("it was run")).unwrap_err().to_string()
    };
    let mut broken = gpu.at_tier(gpu.tier()).unwrap();
    broken.set_shaders(changed("unary.wgsl", "inverseSqrt(v)", "1.01 * inverseSqrt(v)"));
    let message = refusal(&micro(broken, Format::F32), [5, 3, 1]);
    for part in ["nothing is timed", "`rms-norm naive`", "`all on`", "NMSE"] {
        assert!(message.contains(part), "{message}");
    }
    let model = micro(gpu, Format::F32);
    for numbers in [[0, 3, 1], [5, 0, 1], [5, 3, 0]] {
        let message = refusal(&model, numbers);
        assert!(message.contains("at least one") && message.contains('0'), "{message}");
    }
    assert!(refusal(&model, [usize::MAX, 3, 1]).contains("context"));
}

#[test]
fn more_dispatches_than_a_query_set_holds_are_timed() {
    let Some(mut gpu) = common::gpu() else { return };
    let entry = Entry::named("unary").unwrap();
    let case = entry.cases().into_iter().min_by_key(|case| case.cost().bytes()).unwrap();
    let planes = upload(&gpu, &case);
    for clock in [Clock::PassTimestamps, Clock::Timestamps] {
        if !set_clock(&mut gpu, clock) {
            continue;
        }
        // A set holds 4096 timestamps.
        let count = 4100;
        let kernels = (0..count).map(|_| ("unary", &*case.kernel));
        let spans = Executor::new(&gpu, kernels, &planes).unwrap().spans(&gpu, || ()).unwrap();
        assert_eq!(spans.len(), count);
        assert!(spans.iter().all(|span| span.nanoseconds() >= 0.0 && span.nanoseconds() < 1e9), "{clock}");
        // A timestamp that was never written would read as some other time.
        let total = spans[count - 1].end;
        assert!(total > 0.0 && total < 60e9, "{clock}: {total} ns");
    }
}
