//! Each fusion rule fires where it should, for one token and for several, and nowhere else. That the fused
//! graph computes the same is checked in tests/model.rs, on the CPU and on the device.

use std::collections::BTreeMap;

use samara::KvFormat;
use samara::graph::fuse::{Fusion, Rule};
use samara::model::layout::Layout;
use samara::model::openelm::{self, Logits, StepShape};
use samara::model::{Checkpoint, Size};
use samara::quant::Format;

/// How often each kernel stands in a step of the 270M.
fn kernels(
    tokens: usize,
    logits: Logits,
    fusion: &Fusion,
    max_binding: u64,
) -> BTreeMap<&'static str, usize> {
    let checkpoint = Checkpoint::synthetic(Size::M270, 0);
    let layout = Layout::new(checkpoint.weights(), |_| Format::Q8_0, max_binding);
    let shape = StepShape { tokens, context: 64, kv: KvFormat::F16.dtype(), logits };
    let mut graph = openelm::step(checkpoint.config(), &layout, shape).graph;
    fusion.apply(&mut graph);
    let mut counts = BTreeMap::new();
    graph.ops().iter().for_each(|op| *counts.entry(op.kernel.name()).or_default() += 1);
    counts
}

const WHOLE: u64 = 1 << 31;

#[test]
fn a_fused_token_of_the_270m_takes_eight_dispatches_a_layer() {
    let counts = kernels(1, Logits::Last, &Fusion::all(), WHOLE);
    // 16 layers; each ends and each FFN begins with a residual add and a norm, but for the very first norm.
    let expected = BTreeMap::from([
        ("embed", 1),
        ("rms_norm", 1),
        ("matvec", 3 * 16 + 1),
        ("qk_norm_rope", 16),
        ("attention_decode", 16),
        ("add_rms_norm", 2 * 16),
        ("matvec_swiglu", 16),
        ("argmax", 1),
    ]);
    assert_eq!(counts, expected);
    assert_eq!(counts.values().sum::<usize>(), 8 * 16 + 4);
}

#[test]
fn an_unfused_token_is_made_of_primitive_kernels() {
    let expected = BTreeMap::from([
        ("embed", 1),
        ("rms_norm", 2 * 16 + 1),
        ("matvec", 4 * 16 + 1),
        ("qk_norm", 16),
        ("rope", 16),
        ("kv_write", 16),
        ("attention_decode", 16),
        ("add", 2 * 16),
        ("swiglu", 16),
        ("argmax", 1),
    ]);
    assert_eq!(kernels(1, Logits::Last, &Fusion::none(), WHOLE), expected);
}

#[test]
fn each_rule_brings_its_kernel_and_only_its_own() {
    for (tokens, swiglu) in [(1, "matvec_swiglu"), (9, "matmul_swiglu")] {
        // The head norms one row only, so the last residual add of several tokens stays unfused.
        let adds = if tokens == 1 { 32 } else { 31 };
        let fused = |rule| match rule {
            Rule::AddRmsNorm => ("add_rms_norm", adds),
            Rule::QkNormRope => ("qk_norm_rope", 16),
            Rule::MatmulSwiglu => (swiglu, 16),
        };
        for off in Rule::ALL {
            let fusion = Fusion::all().without(&off.to_string()).unwrap();
            let counts = kernels(tokens, Logits::Last, &fusion, WHOLE);
            for rule in Rule::ALL {
                let (name, count) = fused(rule);
                let expected = if rule == off { 0 } else { count };
                assert_eq!(
                    counts.get(name).copied().unwrap_or(0),
                    expected,
                    "{name}, T {tokens}, without {off}"
                );
            }
        }
    }
}

#[test]
fn a_projection_split_over_bindings_stays_unfused() {
    // 4 MiB hold every projection of the first layers whole, and none of the last ones' gate and up rows.
    let counts = kernels(1, Logits::Last, &Fusion::all(), 4 << 20);
    assert!(counts["swiglu"] > 0 && counts["matvec_swiglu"] > 0, "{counts:?}");
    assert_eq!(counts["swiglu"] + counts["matvec_swiglu"], 16);
    assert!(counts["embed"] > 1);
}

#[test]
fn a_chunk_without_logits_ends_with_the_last_cache_write() {
    let counts = kernels(9, Logits::None, &Fusion::none(), WHOLE);
    assert_eq!((counts["kv_write"], counts["attention"], counts.get("argmax")), (16, 15, None));
}
