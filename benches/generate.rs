//! Prefill and greedy decoding of the demo model and of the synthetic micro model in every format, on the
//! default adapter, as a program that embeds samara sees them.

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use samara::model::synth;
use samara::quant::Format;
use samara::sampler::Sampler;
use samara::{LoadOptions, Model, Session};

const PROMPT: usize = 64;

/// Prefills a prompt and waits for its argmax.
fn prefill(session: &mut Session, prompt: &[u32]) {
    session.rollback(0).expect("a session goes back");
    session.prefill(prompt).expect("the device runs");
    session.next_greedy().expect("the device runs");
}

/// Decodes one token after another after a prompt; starts over when the context is full.
fn decode(session: &mut Session, prompt: &[u32], tokens: u64) -> Duration {
    let mut spent = Duration::ZERO;
    let mut left = tokens;
    while left > 0 {
        prefill(session, prompt);
        let run = left.min((session.context() - prompt.len()) as u64);
        let start = Instant::now();
        // The first token is the prompt's.
        let stream = session.generate(Sampler::greedy()).through_end().limit(run as usize + 1);
        stream.for_each(|id| assert!(id.is_ok(), "the device runs"));
        spent += start.elapsed();
        left -= run;
    }
    spent
}

fn generate(c: &mut Criterion) {
    if samara::gpu::adapters(None).is_err() {
        eprintln!("skipped: no GPU adapter");
        return;
    }
    for spec in ["demo", "synthetic:micro"] {
        for format in Format::ALL {
            let options = LoadOptions { format: Some(format), ..LoadOptions::default() };
            let model = Model::load(spec, options).expect("the model loads");
            let prompt = synth::prompt(model.config().vocab_size, PROMPT);
            let mut session = model.session(Some(4 * PROMPT)).expect("a session fits");
            let mut group = c.benchmark_group(format!("{spec} {format}"));
            group.sample_size(10).warm_up_time(Duration::from_millis(200));
            group.measurement_time(Duration::from_secs(1));
            group.throughput(Throughput::Elements(PROMPT as u64));
            group.bench_function("prefill", |b| b.iter(|| prefill(&mut session, &prompt)));
            group.throughput(Throughput::Elements(1));
            group.bench_function("decode", |b| b.iter_custom(|tokens| decode(&mut session, &prompt, tokens)));
        }
    }
}

criterion_group!(benches, generate);
criterion_main!(benches);
