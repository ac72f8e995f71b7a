//! Decoding makes no allocations itself: while tokens are generated, only wgpu allocates, when it records and submits
//! commands. No object of the device is created.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};

use samara::LoadOptions;
use samara::model::demo;
use samara::sampler::{Sampler, SamplerOptions};
use samara::session::SequenceOptions;

/// Records where a watched thread allocates.
struct Watching;

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
    static FOUND: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

fn note() {
    // Allocations of the recording itself are not watched.
    if WATCHED.replace(false) {
        let trace = Backtrace::force_capture().to_string();
        FOUND.with_borrow_mut(|found| found.push(trace));
        WATCHED.set(true);
    }
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's promise is that of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// Runs something and returns where it allocated.
fn watch(run: impl FnOnce()) -> Vec<String> {
    WATCHED.set(true);
    run();
    WATCHED.set(false);
    FOUND.take()
}

fn is_of_wgpu(trace: &str) -> bool {
    trace.contains("/wgpu-")
}

#[test]
fn an_allocation_of_its_own_would_be_seen() {
    let found = watch(|| drop(std::hint::black_box(vec![1u8; 100])));
    assert_eq!(found.len(), 1);
    assert!(!is_of_wgpu(&found[0]) && found[0].contains("an_allocation_of_its_own"), "{}", found[0]);
}

#[test]
fn a_token_allocates_nothing_but_what_wgpu_records() {
    let Some(model) = common::demo(LoadOptions::default()) else { return };
    let random = SamplerOptions { temperature: 0.7, top_k: 40, ..SamplerOptions::default() };
    for sampler in [Sampler::greedy(), Sampler::new(random).unwrap()] {
        for per_submit in [1, 8] {
            let mut session = model.session(Some(128)).unwrap();
            session.prefill(&demo::KNOWN_PROMPT).unwrap();
            let tokens = session.generate(sampler.clone()).through_end().limit(64);
            let mut tokens = tokens.tokens_per_submit(per_submit).unwrap();
            assert_eq!(tokens.by_ref().take(24).filter(Result::is_ok).count(), 24);
            // Two submissions: each allocation costs a trace of the stack.
            let found = watch(|| tokens.by_ref().take(16).for_each(|id| assert!(id.is_ok())));
            let own: Vec<&String> = found.iter().filter(|trace| !is_of_wgpu(trace)).collect();
            let each = found.len() / 16;
            eprintln!("{each} allocations a token in wgpu, with {per_submit} tokens a submission");
            assert!(own.is_empty(), "{} of {} allocations, the first: {}", own.len(), found.len(), own[0]);
            assert!(!found.is_empty(), "wgpu records without allocating: the watch is blind");
        }
    }
}

#[test]
fn a_step_of_a_batch_allocates_nothing_but_what_wgpu_records() {
    let Some(model) = common::demo(LoadOptions::default()) else { return };
    let random = SamplerOptions { temperature: 0.7, repeat_penalty: 1.1, ..SamplerOptions::default() };
    let sampler = Sampler::new(random).unwrap();
    let mut batch = model.batch(3, Some(128)).unwrap();
    for options in [
        SequenceOptions::default(),
        SequenceOptions { sampler: sampler.clone(), logprobs: None },
        SequenceOptions { sampler, logprobs: Some(5) },
    ] {
        batch.join(&demo::KNOWN_PROMPT, options).unwrap();
        for _ in 0..4 {
            batch.step().unwrap();
        }
        let found = watch(|| (0..8).for_each(|_| assert!(!batch.step().unwrap().is_empty())));
        let own: Vec<&String> = found.iter().filter(|trace| !is_of_wgpu(trace)).collect();
        assert!(own.is_empty(), "{} of {} allocations, the first: {}", own.len(), found.len(), own[0]);
        assert!(!found.is_empty(), "wgpu records without allocating: the watch is blind");
    }
}
