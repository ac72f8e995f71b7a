//! Decoding on the device: what a token takes, as the plans of the published sizes say it, and that the text does
//! not depend on how many tokens share a submission or on draft tokens.

use crate::common;
use samara::gpu::{Counters, Tuned, Tuning};
use samara::graph::Graph;
use samara::instruments::steps;
use samara::kernels::{SPLIT_KEYS, Tier};
use samara::model::layout::Layout;
use samara::model::openelm;
use samara::model::shape::StepShape;
use samara::model::{Checkpoint, Size, demo};
use samara::quant::Format;
use samara::sampler::{Sampler, SamplerOptions};
use samara::session::{BatchSession, Drafter, MAX_DRAFT, MAX_TOKENS_PER_SUBMIT, SequenceId, SequenceOptions};
use samara::{Error, Fusion, KvFormat, LoadOptions, Model, Result, Session};

/// Tokens that are compared: more than two blocks of the largest size.
const TOKENS: usize = 80;

fn demo() -> Option<Model> {
    common::demo(LoadOptions::default())
}

fn session(model: &Model) -> Session {
    let mut session = model.session(Some(128)).unwrap();
    session.prefill(&demo::KNOWN_PROMPT).unwrap();
    session
}

/// What stepping by hand gives: one token, one submission, one read-back.
fn by_hand(model: &Model, tokens: usize) -> Vec<u32> {
    let mut session = session(model);
    let mut ids = vec![session.next_greedy().unwrap()];
    while ids.len() < tokens {
        session.prefill(&ids[ids.len() - 1..]).unwrap();
        ids.push(session.next_greedy().unwrap());
    }
    ids
}

fn random(seed: u64) -> Sampler {
    let options = SamplerOptions {
        temperature: 0.9,
        top_k: 50,
        top_p: 0.95,
        min_p: 0.01,
        repeat_penalty: 1.1,
        repeat_window: 24,
        seed,
    };
    Sampler::new(options).unwrap()
}

/// A sampler that avoids the newest tokens most of all, so that each token counts as soon as it is chosen.
fn shy() -> Sampler {
    let options = SamplerOptions {
        temperature: 3.0,
        top_k: 4,
        repeat_penalty: 50.0,
        repeat_window: 2,
        seed: 3,
        ..Default::default()
    };
    Sampler::new(options).unwrap()
}

fn generated(session: &mut Session, sampler: Sampler, tokens: usize, per_submit: Option<usize>) -> Vec<u32> {
    let mut stream = session.generate(sampler).through_end().limit(tokens);
    if let Some(count) = per_submit {
        stream = stream.tokens_per_submit(count).unwrap();
    }
    stream.collect::<Result<Vec<u32>>>().unwrap()
}

#[test]
fn the_tokens_are_the_same_for_every_size_of_submission() {
    let Some(model) = demo() else { return };
    let plain = by_hand(&model, TOKENS);
    let drawn = generated(&mut session(&model), random(7), TOKENS, Some(1));
    assert_ne!(drawn, plain);
    assert_ne!(drawn, generated(&mut session(&model), random(8), TOKENS, Some(1)));
    for per_submit in [None, Some(1), Some(2), Some(7), Some(MAX_TOKENS_PER_SUBMIT)] {
        let found = generated(&mut session(&model), Sampler::greedy(), TOKENS, per_submit);
        assert_eq!(found, plain, "{per_submit:?} tokens a submission");
        let found = generated(&mut session(&model), random(7), TOKENS, per_submit);
        assert_eq!(found, drawn, "{per_submit:?} tokens a submission, drawn");
    }
}

#[test]
fn what_ran_ahead_of_the_tokens_taken_is_forgotten() {
    let Some(model) = demo() else { return };
    let (plain, mut session) = (by_hand(&model, 12), session(&model));
    let logits = |session: &mut Session| {
        session.next_logits().unwrap().into_iter().map(f32::to_bits).collect::<Vec<u32>>()
    };
    for taken in [1, 3, 6] {
        session.rollback(0).unwrap();
        session.prefill(&demo::KNOWN_PROMPT).unwrap();
        let tokens = session.generate(Sampler::greedy()).tokens_per_submit(MAX_TOKENS_PER_SUBMIT).unwrap();
        assert_eq!(tokens.take(taken).map(Result::unwrap).collect::<Vec<_>>(), plain[..taken]);
        let history = [&demo::KNOWN_PROMPT[..], &plain[..taken - 1]].concat();
        assert_eq!(session.history(), history);
        // The next logits, the next token and the tokens after it are those of a session that never ran ahead.
        let found = logits(&mut session);
        assert_eq!(session.next_greedy().unwrap(), plain[taken - 1]);
        assert_eq!(generated(&mut session, Sampler::greedy(), 5, None), plain[taken - 1..][..5]);
        session.rollback(0).unwrap();
        session.prefill(&demo::KNOWN_PROMPT).unwrap();
        plain[..taken - 1].iter().for_each(|&id| session.prefill(&[id]).unwrap());
        assert_eq!(logits(&mut session), found, "after {taken} tokens");
    }
}

#[test]
fn a_submission_holds_its_tokens_and_a_token_is_one_pass() {
    let Some(model) = demo() else { return };
    let mut session = session(&model);
    let each = model.counts(1).dispatches as u64;
    let mut counted = |tokens: usize, per_submit: usize| {
        session.rollback(demo::KNOWN_PROMPT.len() - 1).unwrap();
        session.prefill(&demo::KNOWN_PROMPT[demo::KNOWN_PROMPT.len() - 1..]).unwrap();
        session.next_greedy().unwrap();
        let before = model.gpu().counters();
        assert_eq!(generated(&mut session, Sampler::greedy(), tokens, Some(per_submit)).len(), tokens);
        model.gpu().counters() - before
    };
    // The first token was chosen by the step of the prompt.
    let expected = |submits, steps| Counters { submits, passes: steps, dispatches: steps * each };
    assert_eq!(counted(33, 32), expected(1, 32));
    assert_eq!(counted(65, 32), expected(2, 64));
    assert_eq!(counted(33, 1), expected(32, 32));
    assert_eq!(counted(34, 32), expected(2, 33), "a block holds no more steps than tokens are wanted");
}

#[test]
fn blocks_end_with_the_context_and_sizes_out_of_range_are_refused() {
    let Some(model) = demo() else { return };
    let prompt = &demo::KNOWN_PROMPT;
    let mut session = model.session(Some(prompt.len() + 5)).unwrap();
    session.prefill(prompt).unwrap();
    let found = generated(&mut session, Sampler::greedy(), TOKENS, Some(32));
    assert_eq!(found, by_hand(&model, 6), "a full context still has a next token");
    for count in [0, MAX_TOKENS_PER_SUBMIT + 1] {
        let Err(Error::Input(message)) = session.generate(Sampler::greedy()).tokens_per_submit(count) else {
            panic!("{count} tokens a submission were taken");
        };
        assert!(message.contains(&count.to_string()) && message.contains("32"), "{message}");
    }
}

#[test]
fn draft_tokens_change_nothing_but_the_number_of_steps() {
    let Some(model) = demo() else { return };
    let plain = by_hand(&model, TOKENS);
    let drawn = generated(&mut session(&model), random(7), TOKENS, Some(1));
    let unlike = generated(&mut session(&model), shy(), TOKENS, Some(1));
    let mut accepted = 0;
    for tokens in 1..=MAX_DRAFT {
        for (expected, sampler) in [(&plain, Sampler::greedy()), (&drawn, random(7)), (&unlike, shy())] {
            let mut session = session(&model);
            let drafter = Drafter::lookup(tokens).unwrap();
            let mut stream =
                session.generate(sampler).through_end().limit(TOKENS).speculate(drafter).unwrap();
            let found = stream.by_ref().collect::<Result<Vec<u32>>>().unwrap();
            assert_eq!(&found, expected, "{tokens} draft tokens");
            accepted += stream.acceptance().accepted;
            drop(stream);
            assert_eq!(session.position(), demo::KNOWN_PROMPT.len() + TOKENS - 1);
        }
    }
    assert!(accepted > 0, "no draft token was right");
}

#[test]
fn draft_tokens_change_nothing_where_activations_are_rounded() {
    let Some(gpu) = common::gpu_at(Tier::INT8) else { return };
    let options = LoadOptions { format: Some(Format::Q8_0), ..LoadOptions::default() };
    let model = Model::from_checkpoint(&Checkpoint::demo().unwrap(), gpu, options).unwrap();
    let plain = by_hand(&model, TOKENS);
    for tokens in [1, MAX_DRAFT] {
        let mut session = session(&model);
        let drafter = Drafter::lookup(tokens).unwrap();
        let stream =
            session.generate(Sampler::greedy()).through_end().limit(TOKENS).speculate(drafter).unwrap();
        assert_eq!(stream.collect::<Result<Vec<u32>>>().unwrap(), plain, "{tokens} draft tokens");
    }
}

#[test]
fn a_model_that_drafts_for_itself_is_always_right() {
    let Some(model) = demo() else { return };
    let plain = by_hand(&model, TOKENS);
    let mut session = session(&model);
    let drafter = Drafter::model(model.session(Some(128)).unwrap(), 7).unwrap();
    let mut stream =
        session.generate(Sampler::greedy()).through_end().limit(TOKENS).speculate(drafter).unwrap();
    assert_eq!(stream.by_ref().collect::<Result<Vec<u32>>>().unwrap(), plain);
    let found = stream.acceptance();
    assert_eq!(found.accepted, found.drafted);
    // The first token is there; each step yields seven draft tokens and one more.
    assert_eq!(found.steps, (TOKENS - 1).div_ceil(8));
}

/// The graph of a decoded token of a published size.
fn token(size: Size, format: Format, kv: KvFormat) -> (Graph, u64) {
    let checkpoint = Checkpoint::synthetic(size, 0);
    let layout = Layout::new(checkpoint.weights(), |_| format, 1 << 31);
    let shape = StepShape::greedy(1, 2048, kv.dtype());
    let mut graph = openelm::step(checkpoint.config(), &layout, shape).graph;
    Fusion::all().apply(&mut graph);
    (graph, layout.bytes())
}

#[test]
fn a_token_reads_the_weights_and_the_live_cache_once_and_little_else() {
    for size in [Size::M270, Size::M450, Size::B1_1, Size::B3] {
        let config = Checkpoint::synthetic(size, 0).config().clone();
        let heads: usize = config.layers.iter().map(|layer| layer.kv_heads).sum();
        for format in Format::ALL {
            let (graph, weights) = token(size, format, KvFormat::F16);
            for position in [0, 511, 2047] {
                let cache = KvFormat::F16.bytes(2 * heads * position, config.head_dim);
                let read: u64 = graph.ops().iter().map(|op| op.kernel.cost(position).read).sum();
                let share = read as f64 / (weights + cache) as f64;
                assert!((0.99..=1.02).contains(&share), "{size:?} {format} at {position}: {share}");
            }
        }
    }
}

#[test]
fn shared_keys_change_no_text() {
    let options = LoadOptions { splits: Some(4), ..LoadOptions::default() };
    let Some(model) = common::load(&Checkpoint::synthetic(Size::Micro, 0), options) else { return };
    // From the middle of the text on, several workgroups share the keys of a head.
    let prompt: Vec<u32> = (0..SPLIT_KEYS - 12).map(|i| (i * 37 % 31999) as u32).collect();
    let mut session = model.session(Some(1024)).unwrap();
    session.prefill(&prompt).unwrap();
    let plain = generated(&mut session, Sampler::greedy(), 24, Some(1));
    let each = |keys: usize| model.step_cost(1024, keys - 1, 1);
    assert!(each(SPLIT_KEYS).written > each(SPLIT_KEYS - 1).written, "parts are written");
    let again = |session: &mut Session| {
        session.rollback(prompt.len() - 1).unwrap();
        session.prefill(&prompt[prompt.len() - 1..]).unwrap();
    };
    for per_submit in [7, 32] {
        again(&mut session);
        assert_eq!(generated(&mut session, Sampler::greedy(), 24, Some(per_submit)), plain);
    }
    again(&mut session);
    let drafter = Drafter::lookup(7).unwrap();
    let stream = session.generate(Sampler::greedy()).through_end().limit(24).speculate(drafter).unwrap();
    assert_eq!(stream.collect::<Result<Vec<u32>>>().unwrap(), plain);
    // A short sequence shares its steps with the long one.
    let mut batch = model.batch(2, Some(1024)).unwrap();
    let (long, short) = (join(&mut batch, &prompt), join(&mut batch, &prompt[..5]));
    let mut found = [Vec::new(), Vec::new()];
    for _ in 0..24 {
        for of in batch.step().unwrap() {
            found[usize::from(of.sequence == short)].push(of.token);
        }
    }
    batch.leave(long).unwrap();
    let mut alone = model.session(Some(1024)).unwrap();
    alone.prefill(&prompt[..5]).unwrap();
    assert_eq!(found, [plain, generated(&mut alone, Sampler::greedy(), 24, None)]);
}

fn join(batch: &mut BatchSession, prompt: &[u32]) -> SequenceId {
    batch.join(prompt, SequenceOptions::default()).unwrap()
}

/// The demo model with other values than the defaults for all tunables of a step of one token.
fn tuned() -> Option<Model> {
    let (mut gpu, checkpoint) = (common::gpu()?, Checkpoint::demo().unwrap());
    let mut tuning = Tuning::default();
    for case in steps::cases(&checkpoint, &gpu, &LoadOptions::default(), 0).unwrap() {
        let default = gpu.untuned(&*case.kernel);
        let other = case.kernel.choices(gpu.tier()).into_iter().find(|choice| *choice != default).unwrap();
        let source = gpu.shaders().source(&case.kernel.source(gpu.tier()));
        tuning.insert(Tuned::new(&*case.kernel, gpu.tier(), &source, &other));
    }
    gpu.set_tuning(tuning);
    Some(Model::from_checkpoint(&checkpoint, gpu, LoadOptions::default()).unwrap())
}

#[test]
fn what_is_tuned_holds_for_draft_tokens_and_batches_too() {
    let Some(model) = tuned() else { return };
    let logits = |model: &Model| {
        let mut session = session(model);
        session.prefill(&[5]).unwrap();
        session.next_logits().unwrap()
    };
    assert_ne!(logits(&model), logits(&demo().unwrap()), "sums in another order differ in their last bits");
    let plain = by_hand(&model, 40);
    // Bits of one token, alone and as the last of three.
    let of_last = |rows: usize| {
        let (mut session, first) = (session(&model), demo::KNOWN_PROMPT.len() - rows);
        // What is cached before comes from one and the same step.
        session.rollback(demo::KNOWN_PROMPT.len() - 3).unwrap();
        demo::KNOWN_PROMPT[session.position()..first].iter().for_each(|&id| session.prefill(&[id]).unwrap());
        session.prefill(&demo::KNOWN_PROMPT[first..]).unwrap();
        session.next_logits().unwrap().into_iter().map(f32::to_bits).collect::<Vec<u32>>()
    };
    assert_eq!(of_last(3), of_last(1));
    let mut batch = model.batch(3, Some(128)).unwrap();
    let ids = [0; 3].map(|_| join(&mut batch, &demo::KNOWN_PROMPT));
    for &expected in &plain {
        let found: Vec<_> = batch.step().unwrap().iter().map(|of| (of.sequence, of.token)).collect();
        assert_eq!(found, ids.map(|id| (id, expected)));
    }
}

#[test]
fn draft_tokens_need_no_large_chunk() {
    let options = LoadOptions { prefill_chunk: Some(1), ..LoadOptions::default() };
    let Some(model) = common::demo(options) else { return };
    let plain = by_hand(&model, 40);
    let mut session = session(&model);
    let drafter = Drafter::lookup(MAX_DRAFT).unwrap();
    let stream = session.generate(Sampler::greedy()).through_end().limit(40).speculate(drafter).unwrap();
    assert_eq!(stream.collect::<Result<Vec<u32>>>().unwrap(), plain);
}
