//! Documents as instruments write them, of runs that never took place: dispatches, bytes and operations are those of
//! the real graphs, times follow from invented ceilings.

use samara::instruments::bench::Test;
use samara::instruments::document::{
    Ablation, AblationRow, Bench, BenchRow, Ceilings, DispatchProfile, Document, Environment, KernelRow,
    Kernels, Profile, StepProfile, Subject, VERSION,
};
use samara::instruments::samples::Samples;
use samara::kernels::{Cost, LIST};
use samara::model::layout::Layout;
use samara::model::openelm;
use samara::model::shape::StepShape;
use samara::model::{Checkpoint, Size};
use samara::quant::Format;
use samara::{Fusion, KvFormat};

/// An adapter that does not exist.
#[derive(Clone)]
pub struct Card {
    pub environment: Environment,
    pub ceilings: Ceilings,
    /// Nanoseconds that a dispatch takes at least.
    launch: f64,
}

impl Card {
    fn new(name: &str, kind: &str, clock: &str, [copy, fma]: [f64; 2], launch: f64) -> Self {
        let software = kind == "software";
        let environment = Environment {
            samara: "0.1.0".into(),
            commit: "0123abc".into(),
            adapter: name.into(),
            backend: "vulkan".into(),
            driver: "invented 1.2.3".into(),
            device: kind.into(),
            software,
            tier: "subgroup".into(),
            clock: clock.into(),
            tuned: 0,
            replaced_shaders: Vec::new(),
            system: "linux x86_64".into(),
        };
        let ceilings = Ceilings { copy_gb_s: copy, fma_gflop_s: fma, matrix_gflop_s: None };
        Self { environment, ceilings, launch }
    }

    pub fn large() -> Self {
        let mut card = Self::new("Invented X100 80GB", "discrete GPU", "timestamps", [2600.0, 49e3], 1800.0);
        card.ceilings.matrix_gflop_s = Some(380e3);
        card
    }

    pub fn small() -> Self {
        Self::new("Invented M2", "integrated GPU", "pass-timestamps", [88.0, 3400.0], 2600.0)
    }

    pub fn software() -> Self {
        Self::new("llvmpipe (invented, 256 bits)", "software", "wall", [9.0, 40.0], 9000.0)
    }

    /// Five samples around the time that bytes and operations take at this card.
    fn ns(&self, cost: Cost, salt: usize) -> Samples {
        let (bound, _) = self.ceilings.bound(cost.bytes(), cost.flops);
        samples(bound * 1.25 + self.launch, salt)
    }
}

/// Five samples within 2% of a value.
pub fn samples(value: f64, salt: usize) -> Samples {
    Samples::new((0..5).map(|i| value * (1.0 + 0.01 * ((i * 7 + salt * 3) % 5) as f64 - 0.02)).collect())
}

pub fn subject(size: Size, format: Format, rules_off: &[&str]) -> Subject {
    Subject {
        model: format!("synthetic:{size}"),
        parameters: Checkpoint::synthetic(size, 0).parameters(),
        format: format.to_string(),
        kv: "f16".into(),
        rules_off: rules_off.iter().map(|rule| (*rule).to_owned()).collect(),
    }
}

/// The dispatches of a step with their times.
pub fn step(card: &Card, subject: &Subject, tokens: usize, position: usize) -> StepProfile {
    let size: Size = subject.model.trim_start_matches("synthetic:").parse().unwrap();
    let format: Format = subject.format.parse().unwrap();
    let checkpoint = Checkpoint::synthetic(size, 0);
    let layout = Layout::new(checkpoint.weights(), |_| format, 1 << 31);
    let shape = StepShape::greedy(tokens, 2048, KvFormat::F16.dtype());
    let mut graph = openelm::step(checkpoint.config(), &layout, shape).graph;
    let fusion = subject.rules_off.iter().try_fold(Fusion::all(), |fusion, rule| fusion.without(rule));
    fusion.unwrap().apply(&mut graph);
    let dispatches = graph.ops().iter().enumerate().map(|(index, op)| {
        let cost = op.kernel.cost(position);
        DispatchProfile {
            label: op.label.clone(),
            kernel: op.kernel.name().to_owned(),
            shape: op.kernel.shape(),
            ns: card.ns(cost, index),
            read: cost.read,
            written: cost.written,
            flops: cost.flops,
        }
    });
    let name = if tokens > 1 { "prefill" } else { "decode" };
    let dispatches: Vec<DispatchProfile> = dispatches.collect();
    let ns: f64 = dispatches.iter().map(|dispatch| dispatch.ns.median()).sum();
    StepProfile { name: name.into(), tokens, position, wall_ns: samples(ns * 1.1 + 30e3, tokens), dispatches }
}

pub fn bench_row(card: &Card, subject: &Subject, [prompt, generated, depth]: [usize; 3]) -> BenchRow {
    let (tokens, repeats) = if prompt > 0 { (prompt, 1) } else { (1, generated) };
    let step = step(card, subject, tokens, depth);
    let ns = step.ns() * repeats as f64;
    let read: u64 = step.dispatches.iter().map(|dispatch| dispatch.read).sum();
    let bytes: u64 = step.dispatches.iter().map(|dispatch| dispatch.read + dispatch.written).sum();
    let moved = bytes as f64 / step.ns();
    BenchRow {
        environment: card.environment.clone(),
        subject: subject.clone(),
        ceilings: card.ceilings,
        test: Test { prompt, generated, depth, batch: 1 }.to_string(),
        batch: 1,
        prompt,
        generated,
        depth,
        tok_s: samples((prompt + generated) as f64 / ns * 1e9, depth),
        first_token_ms: samples(step.ns() / 1e6, depth + 1),
        dispatches_per_token: step.dispatches.len() as f64 / tokens as f64,
        submits_per_token: 1.0 / tokens as f64,
        host_us_per_token: samples(21.0, 2),
        bytes_read_per_token: read as f64 / tokens as f64,
        moved_gb_s: moved,
        bandwidth_share: moved / card.ceilings.copy_gb_s,
        peak_bytes: subject.parameters * 2,
    }
}

/// Sizes, formats and depths on several cards.
pub fn bench(cards: &[&Card], sizes: &[Size], formats: &[Format], depths: &[usize]) -> Bench {
    let mut rows = Vec::new();
    for card in cards {
        for size in sizes {
            for format in formats {
                let subject = subject(*size, *format, &[]);
                for depth in depths {
                    rows.push(bench_row(card, &subject, [512, 0, *depth]));
                    rows.push(bench_row(card, &subject, [0, 128, *depth]));
                }
            }
        }
    }
    Bench { version: VERSION, rows }
}

pub fn profile(card: &Card, size: Size, format: Format) -> Profile {
    let subject = subject(size, format, &[]);
    let steps = vec![step(card, &subject, 128, 0), step(card, &subject, 1, 128)];
    let (environment, ceilings) = (card.environment.clone(), card.ceilings);
    Profile { version: VERSION, environment, subject, ceilings, steps }
}

pub fn ablation(card: &Card, size: Size, format: Format) -> Ablation {
    let rules: [(&str, &[&str]); 5] = [
        ("all on", &[]),
        ("without add-rms-norm", &["add-rms-norm"]),
        ("without qk-norm-rope-attention", &["qk-norm-rope-attention"]),
        ("without matmul-swiglu", &["matmul-swiglu"]),
        ("all off", &["all"]),
    ];
    let row = |(name, off): (&str, &[&str])| {
        let subject = subject(size, format, off);
        let (prefill, decode) = (step(card, &subject, 128, 0), step(card, &subject, 1, 128));
        AblationRow {
            name: name.into(),
            decode_tok_s: samples(1e9 / decode.ns(), name.len()),
            prefill_tok_s: samples(128e9 / prefill.ns(), name.len()),
            decode_dispatches: decode.dispatches.len(),
            prefill_dispatches: prefill.dispatches.len(),
            norms: 4 * 16 + 1,
            norm_dispatches: decode.dispatches.iter().filter(|d| d.kernel.contains("norm")).count(),
        }
    };
    Ablation {
        version: VERSION,
        environment: card.environment.clone(),
        subject: subject(size, format, &[]),
        prompt: 128,
        generated: 64,
        rows: rules.into_iter().map(row).collect(),
    }
}

/// Every benched case of every kernel.
pub fn kernels(card: &Card) -> Kernels {
    let cases = LIST.iter().flat_map(|entry| entry.cases()).filter(|case| case.bench);
    let row = |(index, case): (usize, samara::kernels::Case)| {
        let cost = case.kernel.cost(0);
        let ns = card.ns(cost, index);
        let (bound, memory) = card.ceilings.bound(cost.bytes(), cost.flops);
        KernelRow {
            kernel: case.kernel.name().to_owned(),
            case: case.label.clone(),
            shape: case.kernel.shape(),
            bytes: cost.bytes(),
            flops: cost.flops,
            gb_s: cost.bytes() as f64 / ns.median(),
            gflop_s: cost.flops as f64 / ns.median(),
            bound: if memory { "memory" } else { "compute" }.into(),
            share: bound / ns.median(),
            copies: 4,
            ns,
        }
    };
    Kernels {
        version: VERSION,
        environment: card.environment.clone(),
        ceilings: card.ceilings,
        rows: cases.enumerate().map(row).collect(),
    }
}

/// What `samara report` is made for: three cards, two sizes, two formats, four depths, and one document of
/// each other kind.
pub fn everything() -> Vec<(String, Document)> {
    let [large, small, software] = &[Card::large(), Card::small(), Card::software()];
    let depths = [0, 512, 1024, 1536];
    let sizes = [Size::M270, Size::B1_1];
    let bench = bench(&[large, small, software], &sizes, &[Format::F16, Format::Q8_0, Format::Q4_0], &depths);
    [
        ("bench.json", Document::Bench(bench)),
        ("profile.json", Document::Profile(profile(large, Size::M270, Format::Q4_0))),
        ("profile-software.json", Document::Profile(profile(software, Size::M270, Format::Q8_0))),
        ("kernels.json", Document::Kernels(kernels(large))),
        ("ablation.json", Document::Ablation(ablation(large, Size::M270, Format::Q4_0))),
    ]
    .map(|(name, document)| (name.to_owned(), document))
    .into()
}
