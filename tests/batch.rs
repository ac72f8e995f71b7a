//! Sequences that decode together: each gets the tokens that it gets alone, whoever joins and leaves meanwhile.

mod common;

use std::collections::BTreeMap;

use samara::model::Checkpoint;
use samara::quant::Format;
use samara::sampler::Sampler;
use samara::session::{BatchSession, SequenceId, SequenceOptions};
use samara::{Error, KvFormat, LoadOptions, Model};

const CONTEXT: usize = 64;

fn demo(options: LoadOptions) -> Option<Model> {
    Some(Model::from_checkpoint(&Checkpoint::demo().unwrap(), common::gpu()?, options).unwrap())
}

/// A prompt of its own length for each number.
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
        // One leaves while a step is under way, and others take more rows than the ones before had.
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
    // Its room is free for another, while the short one goes on.
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
