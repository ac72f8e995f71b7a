//! Sequences that decode together: each gets the tokens that it gets alone, whoever joins and leaves meanwhile.

use std::collections::BTreeMap;

use crate::common::checkpoint::Tiny;
use crate::common::{demo, load};
use samara::kernels::SPLIT_KEYS;
use samara::quant::Format;
use samara::sampler::{Sampler, SamplerOptions};
use samara::session::{BatchSession, Decoded, SequenceId, SequenceOptions};
use samara::{Error, KvFormat, LoadOptions, Model};

const CONTEXT: usize = 64;

/// A prompt for each number, of varying length.
fn prompt(number: usize) -> Vec<u32> {
    (0..1 + number * 5 % 23)
        .map(|i| if i == 0 { 1 } else { ((number * 131 + i * 37) % 2000 + 3) as u32 })
        .collect()
}

fn alone(model: &Model, number: usize, tokens: usize) -> Vec<u32> {
    let mut session = model.session(Some(CONTEXT)).unwrap();
    session.prefill(&prompt(number)).unwrap();
    let stream = session.generate(Sampler::greedy()).through_end().limit(tokens);
    stream.map(Result::unwrap).collect()
}

/// Steps a batch and adds what each sequence got.
fn step(batch: &mut BatchSession, found: &mut BTreeMap<SequenceId, Vec<u32>>) {
    batch.step().unwrap().iter().for_each(|of| found.entry(of.sequence).or_default().push(of.token));
}

#[test]
fn a_sequence_gets_the_tokens_that_it_gets_alone() {
    for (format, kv) in
        [(Format::Bf16, KvFormat::F16), (Format::Q4_0, KvFormat::F32), (Format::Q8_0, KvFormat::Q8_0)]
    {
        let Some(model) = demo(LoadOptions { format: Some(format), kv, ..LoadOptions::default() }) else {
            return;
        };
        let mut batch = model.batch(11, Some(CONTEXT)).unwrap();
        let (mut numbers, mut found) = (BTreeMap::new(), BTreeMap::new());
        let join = |batch: &mut BatchSession, numbers: &mut BTreeMap<_, _>, number| {
            let id = batch.join(&prompt(number), SequenceOptions::default()).unwrap();
            numbers.insert(id, number);
            id
        };
        let ids: Vec<SequenceId> = (0..3).map(|number| join(&mut batch, &mut numbers, number)).collect();
        (0..4).for_each(|_| step(&mut batch, &mut found));
        // One leaves while a step is in flight, and others take more rows than before.
        batch.leave(ids[1]).unwrap();
        for number in 3..12 {
            join(&mut batch, &mut numbers, number);
        }
        assert_eq!(batch.len(), batch.capacity());
        (0..5).for_each(|_| step(&mut batch, &mut found));
        batch.leave(ids[0]).unwrap();
        (0..3).for_each(|_| step(&mut batch, &mut found));
        assert_eq!(found.len(), 12);
        for (id, number) in numbers {
            // Steps before it left, or since it joined.
            let expected = match number {
                0 => 9,
                1 => 4,
                2 => 12,
                _ => 8,
            };
            assert_eq!(found[&id], alone(&model, number, expected), "{format}, sequence {number}");
        }
    }
}

#[test]
fn a_sequence_leaves_with_the_token_that_its_context_has_no_room_for() {
    let Some(model) = demo(LoadOptions::default()) else { return };
    let mut batch = model.batch(2, Some(CONTEXT)).unwrap();
    let (long, short) = (prompt(4), prompt(1));
    let first = batch.join(&long, SequenceOptions::default()).unwrap();
    batch.join(&short, SequenceOptions::default()).unwrap();
    let mut found = BTreeMap::new();
    while batch.len() == 2 {
        step(&mut batch, &mut found);
    }
    assert_eq!(found[&first], alone(&model, 4, CONTEXT), "a full context still has a next token");
    assert_eq!(found[&first].len(), CONTEXT - long.len() + 1);
    // Its slot is free for another, while the short one continues.
    let third = batch.join(&long, SequenceOptions::default()).unwrap();
    step(&mut batch, &mut found);
    assert_eq!(found[&third], found[&first][..1]);
}

#[test]
fn what_a_batch_cannot_take_is_refused_and_changes_nothing() {
    let Some(model) = demo(LoadOptions::default()) else { return };
    let message = |result: samara::Result<()>| match result {
        Err(Error::Input(message)) => message,
        other => panic!("expected an input error, got {other:?}"),
    };
    for capacity in [0, 65] {
        let text = message(model.batch(capacity, None).map(drop));
        assert!(text.contains(&capacity.to_string()) && text.contains("64"), "{text}");
    }
    let mut batch = model.batch(1, Some(8)).unwrap();
    assert!(batch.step().unwrap().is_empty());
    assert!(message(batch.join(&[1; 9], SequenceOptions::default()).map(drop)).contains('9'));
    let id = batch.join(&[1, 5], SequenceOptions::default()).unwrap();
    assert!(message(batch.join(&[1, 5], SequenceOptions::default()).map(drop)).contains("full"));
    assert_eq!(batch.step().unwrap()[0].token, {
        let mut session = model.session(Some(8)).unwrap();
        session.prefill(&[1, 5]).unwrap();
        session.next_greedy().unwrap()
    });
    batch.leave(id).unwrap();
    assert!(message(batch.leave(id)).contains("not part"));
    assert!(batch.is_empty());
}

/// Options for each number, all different, greedy ones among them.
fn options(number: usize) -> SequenceOptions {
    let plain = SamplerOptions { temperature: 1.0, seed: 90 + number as u64, ..SamplerOptions::default() };
    let sampler = match number % 5 {
        0 => Sampler::greedy(),
        1 => Sampler::new(plain).unwrap(),
        2 => Sampler::new(SamplerOptions { top_k: 20, top_p: 0.9, min_p: 0.01, ..plain }).unwrap(),
        3 => Sampler::new(SamplerOptions { repeat_penalty: 1.4, repeat_window: 9, ..plain }).unwrap(),
        _ => Sampler::new(SamplerOptions { temperature: 0.0, repeat_penalty: 3.0, ..plain }).unwrap(),
    };
    SequenceOptions { sampler, logprobs: [None, Some(0), Some(5)][number % 3] }
}

/// What a session draws with the same options.
fn drawn_alone(model: &Model, number: usize, tokens: usize) -> Vec<u32> {
    let mut session = model.session(Some(CONTEXT)).unwrap();
    session.prefill(&prompt(number)).unwrap();
    let stream = session.generate(options(number).sampler).through_end().limit(tokens);
    stream.map(Result::unwrap).collect()
}

#[test]
fn a_sequence_draws_what_it_draws_alone_whoever_it_shares_steps_with() {
    let Some(model) = demo(LoadOptions::default()) else { return };
    let mut batch = model.batch(9, Some(CONTEXT)).unwrap();
    let (mut numbers, mut found) = (BTreeMap::new(), BTreeMap::new());
    for number in 0..9 {
        // Some join while others decode; a prompt is read by the steps for every other one.
        let id = if number % 2 == 0 {
            batch.join(&prompt(number), options(number)).unwrap()
        } else {
            batch.enqueue(&prompt(number), options(number)).unwrap()
        };
        numbers.insert(id, number);
        step(&mut batch, &mut found);
    }
    (0..10).for_each(|_| step(&mut batch, &mut found));
    // A sequence takes over the slot of one that drew; only its own past counts.
    let left = *numbers.keys().nth(3).unwrap();
    batch.leave(left).unwrap();
    numbers.insert(batch.join(&prompt(13), options(13)).unwrap(), 13);
    (0..6).for_each(|_| step(&mut batch, &mut found));
    assert_eq!(batch.reading(), 0);
    for (id, number) in numbers {
        let tokens = &found[&id];
        assert!(tokens.len() >= 6, "sequence {number} got {} tokens", tokens.len());
        assert_eq!(*tokens, drawn_alone(&model, number, tokens.len()), "sequence {number}");
    }
    assert_ne!(drawn_alone(&model, 1, 12), alone(&model, 1, 12), "what is drawn is not what is likeliest");
}

#[test]
fn tokens_are_scored_where_a_sequence_asks_for_it() {
    let Some(model) = demo(LoadOptions::default()) else { return };
    let mut batch = model.batch(5, Some(CONTEXT)).unwrap();
    let numbers: BTreeMap<SequenceId, usize> =
        (0..5).map(|number| (batch.enqueue(&prompt(number), options(number)).unwrap(), number)).collect();
    let mut found: BTreeMap<SequenceId, Vec<Decoded>> = BTreeMap::new();
    for _ in 0..7 {
        batch.step().unwrap().iter().for_each(|of| found.entry(of.sequence).or_default().push(*of));
    }
    assert_eq!(found.len(), 5);
    for (id, decoded) in found {
        assert!(decoded.len() > 2, "{} tokens", decoded.len());
        let (number, mut session) = (numbers[&id], model.session(Some(CONTEXT)).unwrap());
        session.prefill(&prompt(number)).unwrap();
        for of in decoded {
            let logits: Vec<f64> = session.next_logits().unwrap().into_iter().map(f64::from).collect();
            session.prefill(&[of.token]).unwrap();
            let Some(wanted) = options(number).logprobs else {
                assert_eq!(of.logprob, None);
                continue;
            };
            // The same logits, bit for bit, but for f32 in their softmax.
            let sum = logits.iter().map(|logit| logit.exp()).sum::<f64>().ln();
            let near =
                |logprob: f32, id: u32| (f64::from(logprob) - (logits[id as usize] - sum)).abs() < 1e-5;
            let score = of.logprob.unwrap();
            assert!(score.token == of.token && near(score.logprob, of.token), "sequence {number}: {score:?}");
            assert_eq!(score.top().len(), wanted);
            assert!(score.top().iter().all(|&(id, logprob)| near(logprob, id)), "{score:?}");
            let best = (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
            assert_eq!(score.is_greedy(), of.token as usize == best);
            assert!(score.top().first().is_none_or(|&(id, _)| id as usize == best));
        }
    }
}

#[test]
fn a_long_prompt_is_read_chunk_by_chunk_while_others_decode() {
    let Some(model) = demo(LoadOptions { prefill_chunk: Some(16), ..LoadOptions::default() }) else { return };
    let mut batch = model.batch(3, Some(CONTEXT)).unwrap();
    let short = batch.join(&prompt(1), SequenceOptions::default()).unwrap();
    // Three chunks, of which the first is submitted by the first step.
    let long: Vec<u32> = (0..40).map(|i| 1 + i * 31 % 1900).collect();
    let id = batch.enqueue(&long, SequenceOptions::default()).unwrap();
    let second = batch.enqueue(&prompt(2), SequenceOptions::default()).unwrap();
    assert_eq!((batch.len(), batch.reading()), (3, 2));
    assert!(batch.enqueue(&[1], SequenceOptions::default()).is_err());
    let mut found = BTreeMap::new();
    for reading in [2, 2, 2, 1] {
        step(&mut batch, &mut found);
        assert_eq!(batch.reading(), reading);
    }
    assert_eq!([short, id, second].map(|id| found.get(&id).map_or(0, Vec::len)), [4, 1, 0]);
    step(&mut batch, &mut found);
    assert_eq!((batch.reading(), found[&second].len()), (0, 1));
    let mut session = model.session(Some(CONTEXT)).unwrap();
    session.prefill(&long).unwrap();
    let expected: Vec<u32> =
        session.generate(Sampler::greedy()).through_end().limit(2).map(Result::unwrap).collect();
    assert_eq!(found[&id], expected);
    // One leaves while it is being read, and its slot is free for another.
    batch.leave(id).unwrap();
    let gone = batch.enqueue(&long, SequenceOptions::default()).unwrap();
    step(&mut batch, &mut found);
    batch.leave(gone).unwrap();
    assert!(batch.leave(gone).is_err());
    let third = batch.join(&prompt(4), SequenceOptions::default()).unwrap();
    (0..3).for_each(|_| step(&mut batch, &mut found));
    assert_eq!((found.get(&gone), &found[&third]), (None, &alone(&model, 4, 3)));
    batch.leave(second).unwrap();
    batch.enqueue(&long, SequenceOptions::default()).unwrap();
    batch.clear();
    assert!(batch.is_empty() && batch.step().unwrap().is_empty());
}

#[test]
fn prompts_that_one_step_reads_give_what_each_gives_alone() {
    let Some(model) = demo(LoadOptions { prefill_chunk: Some(128), ..LoadOptions::default() }) else {
        return;
    };
    let mut batch = model.batch(9, Some(CONTEXT)).unwrap();
    let enqueue = |batch: &mut BatchSession, number| batch.enqueue(&prompt(number), options(number)).unwrap();
    // Together they have fewer tokens than a chunk.
    let ids: Vec<SequenceId> = (0..9).map(|number| enqueue(&mut batch, number)).collect();
    assert!(batch.step().unwrap().is_empty());
    // Of those that were read one leaves, and another takes its slot.
    batch.leave(ids[4]).unwrap();
    let last = enqueue(&mut batch, 9);
    let mut numbers: BTreeMap<SequenceId, usize> = ids.into_iter().zip(0..).collect();
    numbers.retain(|_, &mut number| number != 4);
    let mut found = BTreeMap::new();
    step(&mut batch, &mut found);
    assert_eq!(found.keys().collect::<Vec<_>>(), numbers.keys().collect::<Vec<_>>());
    numbers.insert(last, 9);
    (0..8).for_each(|_| step(&mut batch, &mut found));
    for (id, number) in numbers {
        let tokens = &found[&id];
        assert_eq!(tokens.len(), if number == 9 { 8 } else { 9 });
        assert_eq!(*tokens, drawn_alone(&model, number, tokens.len()), "sequence {number}");
    }
}

#[test]
fn a_step_reads_prompts_in_order_and_no_more_tokens_than_a_chunk() {
    let Some(model) = demo(LoadOptions { prefill_chunk: Some(16), ..LoadOptions::default() }) else { return };
    let mut batch = model.batch(6, Some(CONTEXT)).unwrap();
    let prompts =
        [5, 9, 3, 16, 20, 2].map(|tokens| (0..tokens).map(|i| 1 + i * 37 % 1900).collect::<Vec<u32>>());
    let ids = prompts.each_ref().map(|prompt| batch.enqueue(prompt, SequenceOptions::default()).unwrap());
    let mut found = BTreeMap::new();
    // They read 5 + 9, 3, 16, 16 of 20, and the other 4 + 2; the next step returns the tokens after what was read.
    for (reading, begun) in [(6, 0), (4, 2), (3, 3), (2, 4), (2, 4), (0, 6)] {
        step(&mut batch, &mut found);
        assert_eq!((batch.reading(), found.len()), (reading, begun));
        assert!(found.keys().eq(&ids[..begun]));
    }
    (0..3).for_each(|_| step(&mut batch, &mut found));
    for (prompt, id) in prompts.iter().zip(ids) {
        let mut session = model.session(Some(CONTEXT)).unwrap();
        session.prefill(prompt).unwrap();
        let alone = session.generate(Sampler::greedy()).through_end().limit(found[&id].len());
        assert_eq!(found[&id], alone.map(Result::unwrap).collect::<Vec<u32>>(), "{} tokens", prompt.len());
    }
}

#[test]
fn a_prompt_that_breaks_among_others_ends_alone() {
    let checkpoint = Tiny::with_bad_token(64).open().unwrap();
    let Some(model) = load(&checkpoint, LoadOptions::default()) else { return };
    let bad = checkpoint.config().vocab_size as u32 - 1;
    let mut batch = model.batch(6, None).unwrap();
    let drawn = Sampler::new(SamplerOptions { temperature: 0.1, ..SamplerOptions::default() }).unwrap();
    let prompts = [vec![1, 5, 9], vec![1, bad], vec![1, 30], vec![1, bad, 7], vec![bad], vec![1, 4, 4, 12]];
    let ids: Vec<SequenceId> = (0..6)
        .map(|number| {
            let sampler = if number == 3 { drawn.clone() } else { Sampler::greedy() };
            let logprobs = (number == 4).then_some(1);
            batch.enqueue(&prompts[number], SequenceOptions { sampler, logprobs }).unwrap()
        })
        .collect();
    assert!(batch.step().unwrap().is_empty());
    // Each is reported by a separate step, and the others get their tokens then.
    for broken in [1, 3, 4] {
        let message = batch.step().unwrap_err().to_string();
        let told = format!("position {} of {}", prompts[broken].len(), ids[broken]);
        assert!(message.contains(&told), "{message}");
        assert!(!batch.contains(ids[broken]));
    }
    let mut found = BTreeMap::new();
    (0..5).for_each(|_| step(&mut batch, &mut found));
    assert_eq!((found.len(), batch.len()), (3, 3));
    for number in [0, 2, 5] {
        let mut session = model.session(None).unwrap();
        session.prefill(&prompts[number]).unwrap();
        let alone = session.generate(Sampler::greedy()).through_end().limit(5);
        assert_eq!(found[&ids[number]], alone.map(Result::unwrap).collect::<Vec<u32>>());
    }
    // A sequence that joins after one that breaks gets the error, and may try again.
    let before = batch.enqueue(&[1, bad], SequenceOptions::default()).unwrap();
    assert!(batch.join(&[1, 5], SequenceOptions::default()).is_err());
    assert!(!batch.contains(before) && batch.len() == 3);
    batch.join(&[1, 5], SequenceOptions::default()).unwrap();
}

#[test]
fn a_prepared_batch_builds_nothing_more() {
    // Many keys are more than the first workgroup takes.
    let options_of = || LoadOptions { splits: Some(2), kv: KvFormat::F32, ..LoadOptions::default() };
    let Some(model) = demo(options_of()) else { return };
    let mut batch = model.batch(6, Some(SPLIT_KEYS + 8)).unwrap();
    batch.prepare().unwrap();
    let built = |model: &Model| (model.gpu().compiled(), model.gpu().peak_bytes());
    model.gpu().forget_peak();
    let before = built(&model);
    let mut found = BTreeMap::new();
    // Every number of rows, and of each the kinds that the options are of.
    for first in 0..3 {
        for number in (0..6).map(|number| number * 3 + first) {
            // As many tokens as a prepared step has.
            let tokens = 1 << (number % 6);
            let prompt: Vec<u32> = (0..tokens).map(|i| 1 + i * 37 % 1900).collect();
            batch.enqueue(&prompt, options(number)).unwrap();
            (0..3).for_each(|_| step(&mut batch, &mut found));
        }
        batch.clear();
    }
    assert_eq!((found.len(), built(&model)), (18, before));
    assert!(batch.prepare().is_ok());
    // One with many keys, whose prompt is read in full chunks.
    let long: Vec<u32> = (0..SPLIT_KEYS as u32).map(|i| 1 + i * 31 % 1900).collect();
    let id = batch.enqueue(&long, SequenceOptions::default()).unwrap();
    while found.get(&id).is_none_or(|tokens| tokens.len() < 4) {
        step(&mut batch, &mut found);
    }
    assert_eq!(built(&model), before);
    // It is what an unprepared one gives.
    let mut session = model.session(Some(SPLIT_KEYS + 8)).unwrap();
    session.prefill(&long).unwrap();
    let alone = session.generate(Sampler::greedy()).through_end().limit(4);
    assert_eq!(found[&id], alone.map(Result::unwrap).collect::<Vec<u32>>());
    let message = batch.prepare().unwrap_err().to_string();
    assert!(message.contains("before"), "{message}");
}

#[test]
fn more_logprobs_than_there_are_are_refused() {
    let Some(model) = demo(LoadOptions::default()) else { return };
    let mut batch = model.batch(1, Some(8)).unwrap();
    let options = SequenceOptions { logprobs: Some(6), ..SequenceOptions::default() };
    let message = batch.join(&[1, 5], options).unwrap_err().to_string();
    assert!(message.contains('6') && message.contains('5'), "{message}");
    assert!(batch.is_empty());
}

#[test]
fn a_sequence_that_breaks_leaves_and_the_others_go_on() {
    let checkpoint = Tiny::with_bad_token(512).open().unwrap();
    let Some(model) = load(&checkpoint, LoadOptions::default()) else { return };
    let bad = checkpoint.config().vocab_size as u32 - 1;
    let prompts = [vec![1, 5, 9], vec![1, 12], vec![1, 30, 4, 4]];
    let expected: Vec<Vec<u32>> = prompts
        .iter()
        .map(|prompt| {
            let mut session = model.session(None).unwrap();
            session.prefill(prompt).unwrap();
            session.generate(Sampler::greedy()).through_end().limit(300).map(Result::unwrap).collect()
        })
        .collect();
    assert!(!expected.concat().contains(&bad));
    let mut batch = model.batch(4, None).unwrap();
    let good: Vec<SequenceId> =
        prompts.iter().map(|prompt| batch.enqueue(prompt, SequenceOptions::default()).unwrap()).collect();
    let (mut found, mut drew, mut broken) = (BTreeMap::<_, Vec<u32>>::new(), 0, Vec::new());
    let mut others = Vec::new();
    while good.iter().any(|id| found.get(id).is_none_or(|tokens| tokens.len() < 300)) {
        // One after the other breaks in the fourth slot: as its prompt is read, and as it draws the bad token.
        if batch.len() < 4 {
            let seed = others.len() as u64;
            let uniform = SamplerOptions { temperature: 1e6, seed, ..SamplerOptions::default() };
            let sampler = Sampler::new(uniform).unwrap();
            let prompt = if seed.is_multiple_of(2) { vec![1, bad, 5] } else { vec![1, 5] };
            others.push(batch.enqueue(&prompt, SequenceOptions { sampler, logprobs: None }).unwrap());
        }
        match batch.step() {
            Ok(decoded) => {
                for of in decoded {
                    drew += usize::from(of.token == bad);
                    found.entry(of.sequence).or_default().push(of.token);
                }
            }
            Err(Error::Model(message)) => {
                let id = others[others.len() - 1];
                assert!(message.contains("position"), "{message}");
                assert!(!batch.contains(id) && batch.leave(id).is_err());
                assert!(good.iter().all(|&id| batch.contains(id)));
                broken.push(id);
            }
            Err(error) => panic!("{error}"),
        }
    }
    for (id, expected) in good.iter().zip(&expected) {
        assert_eq!(&found[id][..300], expected);
    }
    assert!(broken.len() > 2 && drew > 0, "{} broke, {drew} by what they drew", broken.len());
}
