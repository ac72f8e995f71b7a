//! One prefill step and one decode step, dispatch by dispatch.

use std::time::Instant;

use serde_json::{Value, json};

use super::document::{Ceilings, DispatchProfile, Environment, Profile, StepProfile, Subject, VERSION};
use super::samples::Samples;
use crate::error::Result;
use crate::gpu::Span;
use crate::kernels::Cost;
use crate::model::synth;
use crate::session::{Model, Session, StepOp};

/// Profiles a step of `prompt` tokens after `depth` cached ones, then a decode step after those; each is
/// repeated `repetitions` times after one warm-up.
///
/// # Errors
/// When the device fails, or `prompt` is more than one step takes.
pub fn profile(
    model: &Model,
    environment: Environment,
    subject: Subject,
    ceilings: Ceilings,
    [depth, prompt]: [usize; 2],
    repetitions: usize,
) -> Result<Profile> {
    let ids = synth::prompt(model.config().vocab_size, depth + prompt + 1);
    let mut session = model.session(Some(ids.len()))?;
    if depth > 0 {
        session.prefill(&ids[..depth])?;
    }
    let prefill = step("prefill", &mut session, model, &ids[depth..depth + prompt], repetitions)?;
    let decode = step("decode", &mut session, model, &ids[depth + prompt..], repetitions)?;
    Ok(Profile { version: VERSION, environment, subject, ceilings, steps: vec![prefill, decode] })
}

/// Profiles the step that appends `ids`, and leaves them appended.
fn step(
    name: &str,
    session: &mut Session,
    model: &Model,
    ids: &[u32],
    repetitions: usize,
) -> Result<StepProfile> {
    let position = session.position();
    let (mut profiles, mut walls) = (Vec::new(), Vec::new());
    for run in 0..=repetitions {
        session.rollback(position)?;
        model.gpu().wait()?;
        let start = Instant::now();
        session.prefill(ids)?;
        session.next_greedy()?;
        let wall = start.elapsed().as_nanos() as f64;
        session.rollback(position)?;
        let profile = session.profile(ids)?;
        if run > 0 {
            walls.push(wall);
            profiles.push(profile);
        }
    }
    let dispatches = (0..profiles[0].len()).map(|index| dispatch(&profiles, index)).collect();
    Ok(StepProfile {
        name: name.to_owned(),
        tokens: ids.len(),
        position,
        wall_ns: Samples::new(walls),
        dispatches,
    })
}

/// Gathers one dispatch of all runs.
fn dispatch(profiles: &[Vec<(StepOp, Span)>], index: usize) -> DispatchProfile {
    let StepOp { label, kernel, shape, cost } = profiles[0][index].0.clone();
    let times = profiles.iter().map(|profile| profile[index].1.nanoseconds());
    DispatchProfile {
        label,
        kernel: kernel.to_owned(),
        shape,
        ns: Samples::new(times.collect()),
        read: cost.read,
        written: cost.written,
        flops: cost.flops,
    }
}

/// Dispatches taken together: those of a kernel, of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Total {
    /// What they have in common.
    pub name: String,
    /// How many there are.
    pub calls: usize,
    /// The sum of their medians, in nanoseconds.
    pub ns: f64,
    /// What they have to move and compute.
    pub cost: Cost,
    /// The lower bound of the nanoseconds for that, each dispatch by its own ceiling.
    pub bound_ns: f64,
    /// The part of `bound_ns` where memory is the ceiling.
    pub memory_ns: f64,
}

impl Total {
    /// Returns GB/s.
    pub fn gb_s(&self) -> f64 {
        self.cost.bytes() as f64 / self.ns
    }

    /// Returns GFLOP/s.
    pub fn gflop_s(&self) -> f64 {
        self.cost.flops as f64 / self.ns
    }

    /// Returns the share of the ceiling that applies.
    pub fn share_of_bound(&self) -> f64 {
        self.bound_ns / self.ns
    }

    /// Returns which ceiling applies for most of it.
    pub fn bound(&self) -> &'static str {
        if 2.0 * self.memory_ns >= self.bound_ns { "memory" } else { "compute" }
    }
}

impl StepProfile {
    /// Returns the time of all dispatches, in nanoseconds.
    pub fn ns(&self) -> f64 {
        self.dispatches.iter().map(|dispatch| dispatch.ns.median()).sum()
    }

    /// Sums dispatches by what `name` returns for them, in the order in which the names first appear.
    pub fn totals(&self, ceilings: &Ceilings, name: impl Fn(&DispatchProfile) -> String) -> Vec<Total> {
        let mut totals: Vec<Total> = Vec::new();
        for dispatch in &self.dispatches {
            let name = name(dispatch);
            let known = totals.iter().position(|total| total.name == name);
            let index = known.unwrap_or_else(|| {
                let cost = Cost::default();
                totals.push(Total { name, calls: 0, ns: 0.0, cost, bound_ns: 0.0, memory_ns: 0.0 });
                totals.len() - 1
            });
            totals[index].add(dispatch, ceilings);
        }
        totals
    }

    /// Sums dispatches by kernel, the slowest first.
    pub fn by_kernel(&self, ceilings: &Ceilings) -> Vec<Total> {
        let mut totals = self.totals(ceilings, |dispatch| dispatch.kernel.clone());
        totals.sort_by(|a, b| b.ns.total_cmp(&a.ns));
        totals
    }

    /// Sums dispatches by the first part of their labels: `embed`, `layer.0`, `head`.
    pub fn by_layer(&self, ceilings: &Ceilings) -> Vec<Total> {
        self.totals(ceilings, |dispatch| dispatch.part().0.to_owned())
    }
}

impl DispatchProfile {
    /// Returns the layer, or what comes before or after the layers, and its part: `layer.3` and `attn`; the
    /// embedding has no part.
    pub fn part(&self) -> (&str, &str) {
        let (first, rest) = self.label.split_once('/').unwrap_or((&self.label, ""));
        (first, rest.split('/').next().unwrap_or(""))
    }
}

impl Total {
    fn add(&mut self, dispatch: &DispatchProfile, ceilings: &Ceilings) {
        let DispatchProfile { read, written, flops, .. } = *dispatch;
        let (bound, by_memory) = ceilings.bound(read + written, flops);
        self.calls += 1;
        self.ns += dispatch.ns.median();
        self.cost += Cost { read, written, flops };
        self.bound_ns += bound;
        self.memory_ns += if by_memory { bound } else { 0.0 };
    }
}

impl Profile {
    /// Returns the steps as a trace in Chrome's format, which Perfetto opens: one process for each step, one
    /// event for each dispatch at its median.
    pub fn trace(&self) -> Value {
        let mut events = Vec::new();
        for (pid, step) in self.steps.iter().enumerate() {
            let name = format!("{}, T {} after {} cached", step.name, step.tokens, step.position);
            events.push(
                json!({"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}}),
            );
            let thread = json!({"name": self.environment.adapter});
            events.push(json!({"ph": "M", "name": "thread_name", "pid": pid, "tid": 0, "args": thread}));
            let mut at = 0.0;
            for dispatch in &step.dispatches {
                events.push(event(pid, at, dispatch));
                at += dispatch.ns.median();
            }
        }
        json!({"displayTimeUnit": "ns", "traceEvents": events})
    }
}

/// One dispatch as a complete event; times are in microseconds.
fn event(pid: usize, at: f64, dispatch: &DispatchProfile) -> Value {
    let ns = dispatch.ns.median();
    json!({
        "ph": "X", "name": dispatch.label, "cat": dispatch.kernel, "pid": pid, "tid": 0,
        "ts": at / 1e3, "dur": ns / 1e3,
        "args": {
            "kernel": dispatch.kernel, "shape": dispatch.shape, "read": dispatch.read,
            "written": dispatch.written, "flops": dispatch.flops,
            "GB/s": (dispatch.read + dispatch.written) as f64 / ns, "GFLOP/s": dispatch.flops as f64 / ns
        }
    })
}
