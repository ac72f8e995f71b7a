//! Each fusion rule fires where it should, for one token and for several, and nowhere else. That the fused
//! graph computes the same is checked in tests/model/logits.rs, on the CPU and on the device.

use std::collections::BTreeMap;

use samara::KvFormat;
use samara::graph::Graph;
use samara::graph::fuse::{Fusion, Rule};
use samara::instruments::ablate::choices;
use samara::kernels::{Access, FEW_TOKENS};
use samara::model::layout::Layout;
use samara::model::openelm;
use samara::model::shape::{Logits, Sampling, StepShape};
use samara::model::{Checkpoint, Size, names};
use samara::quant::Format;

/// A step of a published size.
fn graph(size: Size, tokens: usize, logits: Logits, fusion: &Fusion, max_binding: u64) -> Graph {
    let checkpoint = Checkpoint::synthetic(size, 0);
    let layout = Layout::new(checkpoint.weights(), |_| Format::Q8_0, max_binding);
    let sampling = (logits == Logits::Last).then_some(Sampling::Greedy);
    let shape = StepShape { logits, sampling, ..StepShape::greedy(tokens, 512, KvFormat::F16.dtype()) };
    let mut graph = openelm::step(checkpoint.config(), &layout, shape).graph;
    fusion.apply(&mut graph);
    graph
}

/// How often each kernel occurs in a step of the 270M.
fn kernels(
    tokens: usize,
    logits: Logits,
    fusion: &Fusion,
    max_binding: u64,
) -> BTreeMap<&'static str, usize> {
    count(&graph(Size::M270, tokens, logits, fusion, max_binding))
}

/// How often each kernel occurs in a graph.
fn count(graph: &Graph) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    graph.ops().iter().for_each(|op| *counts.entry(op.kernel.name()).or_default() += 1);
    counts
}

const WHOLE: u64 = 1 << 31;

/// The published sizes and their layers.
const SIZES: [(Size, usize); 4] = [(Size::M270, 16), (Size::M450, 20), (Size::B1_1, 28), (Size::B3, 36)];

#[test]
fn a_token_takes_five_dispatches_a_layer_and_three() {
    for (size, layers) in SIZES {
        let expected = BTreeMap::from([
            ("embed", 1),
            ("norm_matvec", layers + 1),
            ("qk_norm_rope_attention", layers),
            ("matvec_add", 2 * layers),
            ("norm_matvec_swiglu", layers),
            ("argmax", 1),
        ]);
        let graph = graph(size, 1, Logits::Last, &Fusion::all(), WHOLE);
        assert_eq!(count(&graph), expected, "{size:?}");
        assert_eq!(graph.ops().len(), 5 * layers + 3, "{size:?}");
    }
}

#[test]
fn up_to_eight_tokens_take_the_products_of_one_and_more_take_tiles() {
    for logits in [Logits::Last, Logits::All] {
        for tokens in [2, FEW_TOKENS] {
            let counts = kernels(tokens, logits, &Fusion::all(), WHOLE);
            let products = [counts["norm_matvec"], counts["matvec_add"], counts["norm_matvec_swiglu"]];
            assert_eq!((products, counts["qk_norm_rope_attention"]), ([17, 32, 16], 16), "T {tokens}");
            assert!(!counts.contains_key("matmul") && !counts.contains_key("rms_norm"), "{counts:?}");
        }
        let counts = kernels(FEW_TOKENS + 1, logits, &Fusion::all(), WHOLE);
        let of = |name| counts.get(name).copied().unwrap_or_default();
        // If only the last logits are needed, the last layer continues with one row.
        let one_row = usize::from(logits == Logits::Last);
        assert_eq!([of("matmul_add"), of("norm_matmul_swiglu")], [32 - 2 * one_row, 16 - one_row]);
        assert_eq!([of("matvec_add"), of("norm_matvec_swiglu")], [2 * one_row, one_row]);
        assert_eq!(of("last_rows"), one_row);
    }
    // The head of a prefill is a product of one row, or of all rows in tiles.
    let head = |logits| {
        let counts = kernels(9, logits, &Fusion::all(), WHOLE);
        ["norm_matvec", "norm_matmul"].map(|name| counts.get(name).copied())
    };
    assert_eq!(head(Logits::Last), [Some(1), Some(16)]);
    assert_eq!(head(Logits::All), [None, Some(16 + 1)]);
}

#[test]
fn a_fused_chunk_takes_six_dispatches_a_layer_and_reads_each_weight_once() {
    for (size, layers) in SIZES {
        for (tokens, logits) in
            [9, 64, 512].into_iter().flat_map(|t| [Logits::Last, Logits::All].map(|logits| (t, logits)))
        {
            let graph = graph(size, tokens, logits, &Fusion::all(), WHOLE);
            // Besides the layers: the embedding, the head and, with the last logits, the last rows and the choice of a
            // token.
            let others = 2 + 2 * usize::from(logits == Logits::Last);
            let count = graph.ops().len();
            assert!(count == 6 * layers + others && count <= 6 * layers + 4, "{size:?}, T {tokens}: {count}");
            let mut readers = BTreeMap::<&str, usize>::new();
            for op in graph.ops() {
                for operand in op.kernel.operands().iter().filter(|o| o.access == Access::Weight) {
                    *readers.entry(&graph.tensors()[operand.tensor].name).or_default() += 1;
                }
            }
            // The embedding is the head too. The lookup reads only a row for each token.
            assert_eq!(readers.remove(names::EMBEDDING), Some(2));
            assert_eq!(readers.len(), 4 * layers, "{size:?}, T {tokens}");
            assert!(readers.values().all(|&count| count == 1), "{size:?}, T {tokens}: {readers:?}");
        }
    }
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
fn each_rule_brings_its_kernels_and_only_its_own() {
    for tokens in [1, 9] {
        // The kernels of a rule and how often they occur in a step. Of nine tokens, only one row goes through the head
        // and what follows the last layer's attention. Of a few tokens, attention shares a kernel with what precedes
        // it. Residual adds and norms join where one of the rules that take them into products leaves both.
        let fused = |rule, off| -> (&[&str], usize) {
            match (rule, tokens) {
                (Rule::MatmulSwiglu, 1) => (&["matvec_swiglu", "norm_matvec_swiglu"], 16),
                (Rule::MatmulSwiglu, _) => (&["matmul_swiglu", "norm_matmul_swiglu"], 15),
                (Rule::NormMatvec, 1) => (&["norm_matvec", "norm_matvec_swiglu"], 33),
                (Rule::NormMatvec, _) => {
                    (&["norm_matmul", "norm_matmul_swiglu", "norm_matvec", "norm_matvec_swiglu"], 33)
                }
                (Rule::MatvecAdd, 1) => (&["matvec_add"], 32),
                (Rule::MatvecAdd, _) => (&["matmul_add", "matvec_add"], 32),
                (Rule::AddRmsNorm, _) => (&["add_rms_norm"], 0),
                (Rule::QkNormRopeAttention, 1) => (&["qk_norm_rope_attention"], 16),
                (Rule::QkNormRopeAttention, _) => (&["qk_norm_rope_attention"], 0),
                (Rule::QkNormRope, 1) if off != Rule::QkNormRopeAttention => (&["qk_norm_rope"], 0),
                (Rule::QkNormRope, _) => (&["qk_norm_rope"], 16),
            }
        };
        for off in Rule::ALL {
            let fusion = Fusion::all().without(&off.to_string()).unwrap();
            let counts = kernels(tokens, Logits::Last, &fusion, WHOLE);
            for rule in Rule::ALL {
                let (names, count) = fused(rule, off);
                let found: usize = names.iter().filter_map(|name| counts.get(name)).sum();
                let expected = if rule == off { 0 } else { count };
                assert_eq!(found, expected, "{names:?}, T {tokens}, without {off}");
            }
        }
    }
}

#[test]
fn residual_adds_and_norms_join_where_no_product_takes_them() {
    let fusion = Fusion::all().without_rule(Rule::NormMatvec).without_rule(Rule::MatvecAdd);
    let counts = kernels(1, Logits::Last, &fusion, WHOLE);
    // Each layer ends and each FFN begins with a residual add and a norm, except for the very first norm; attention is
    // fused with what precedes it.
    assert_eq!((counts["add_rms_norm"], counts["rms_norm"], counts["matvec"]), (2 * 16, 1, 3 * 16 + 1));
    assert_eq!(counts.values().sum::<usize>(), 7 * 16 + 4);
    // Of nine tokens, one row continues after the last layer's attention; all else fuses as before.
    let counts = kernels(9, Logits::Last, &fusion, WHOLE);
    assert_eq!((counts["add_rms_norm"], counts["rms_norm"], counts.get("add")), (2 * 16, 1, None));
    assert_eq!((counts["matmul"], counts["matvec"]), (16 + 2 * 15, 2 + 1));
    assert_eq!((counts["matmul_swiglu"], counts["matvec_swiglu"], counts["last_rows"]), (15, 1, 1));
    assert_eq!(counts.values().sum::<usize>(), 8 * 16 + 5);
}

#[test]
fn a_projection_split_over_bindings_is_fused_part_by_part_but_not_with_its_gate() {
    // 4 MiB hold every projection of the first layers, but not the gate and up rows of the last ones.
    for (tokens, logits, [norm_product, product_add, gated, product]) in [
        (1, Logits::Last, ["norm_matvec", "matvec_add", "norm_matvec_swiglu", "matvec"]),
        (9, Logits::All, ["norm_matmul", "matmul_add", "norm_matmul_swiglu", "matmul"]),
    ] {
        let counts = kernels(tokens, logits, &Fusion::all(), 4 << 20);
        assert!(counts["swiglu"] > 0 && counts[gated] > 0, "{counts:?}");
        assert_eq!(counts["swiglu"] + counts[gated], 16);
        assert!(counts["embed"] > 1);
        // The parts take in norms and add to the residual, each for its rows.
        assert!(counts[norm_product] > 17 && counts[product_add] > 32, "{counts:?}");
        assert_eq!((counts.get("rms_norm"), counts.get("add"), counts.get(product)), (None, None, None));
        let graph = graph(Size::M270, tokens, logits, &Fusion::all(), 4 << 20);
        assert_eq!(graph.norms(), 65);
    }
}

#[test]
fn a_chunk_without_logits_ends_with_the_last_cache_write() {
    let counts = kernels(9, Logits::None, &Fusion::none(), WHOLE);
    assert_eq!((counts["kv_write"], counts["attention"], counts.get("argmax")), (16, 15, None));
}

#[test]
fn a_few_tokens_and_a_batch_attend_row_by_row_and_more_tokens_in_tiles() {
    let attention = |tokens, batch: Option<usize>, splits| {
        let checkpoint = Checkpoint::synthetic(Size::M270, 0);
        let layout = Layout::new(checkpoint.weights(), |_| Format::Q8_0, WHOLE);
        let logits = if batch.is_some() { Logits::All } else { Logits::Last };
        let shape =
            StepShape { logits, batch, splits, ..StepShape::greedy(tokens, 64, KvFormat::F16.dtype()) };
        let mut step = openelm::step(checkpoint.config(), &layout, shape);
        Fusion::all().apply(&mut step.graph);
        let shapes = [step.position, step.caches[0][0], step.logits.unwrap()];
        let shapes = shapes.map(|tensor| step.graph.tensors()[tensor].shape.dims().to_vec());
        let names: Vec<&str> = step.graph.ops().iter().map(|op| op.kernel.name()).collect();
        let count = |name| names.iter().filter(|found| **found == name).count();
        (["qk_norm_rope_attention", "attention_merge", "attention", "argmax"].map(count), shapes)
    };
    let of_one = |tokens, splits| attention(tokens, None, splits);
    let vocab = Checkpoint::synthetic(Size::M270, 0).config().vocab_size;
    assert_eq!(of_one(8, 1), ([16, 0, 0, 1], [vec![1], vec![3, 64, 64], vec![1, vocab]]));
    assert_eq!(of_one(9, 1), ([0, 0, 16, 1], [vec![1], vec![3, 64, 64], vec![1, vocab]]));
    let shapes = [vec![40, 2], vec![64, 3, 64, 64], vec![40, vocab]];
    assert_eq!(attention(40, Some(64), 1), ([16, 0, 0, 1], shapes));
    // One more dispatch per layer where attention goes row by row.
    assert_eq!((of_one(8, 4).0, of_one(9, 4).0), ([16, 16, 0, 1], [0, 0, 16, 1]));
}

#[test]
fn packed_rows_take_tiles_and_see_keys_that_the_step_itself_wrote_before() {
    let checkpoint = Checkpoint::synthetic(Size::M270, 0);
    let layout = Layout::new(checkpoint.weights(), |_| Format::Q8_0, WHOLE);
    let shape = StepShape {
        logits: Logits::Rows(3),
        sampling: None,
        scored: true,
        batch: Some(64),
        packed: true,
        ..StepShape::greedy(5, 64, KvFormat::F16.dtype())
    };
    for (splits, merges) in [(1, 0), (4, 16)] {
        let mut step = openelm::step(checkpoint.config(), &layout, StepShape { splits, ..shape });
        Fusion::all().apply(&mut step.graph);
        let count = |name| step.graph.ops().iter().filter(|op| op.kernel.name() == name).count();
        // Fused with the write of the keys, attention would not see the keys of other rows.
        let attention = ["qk_norm_rope", "attention_decode", "qk_norm_rope_attention", "attention_merge"];
        assert_eq!(attention.map(count), [16, 16, 0, merges]);
        let few = ["matvec", "norm_matvec", "matvec_add", "matvec_swiglu", "norm_matvec_swiglu"];
        assert_eq!(few.map(count), [0; 5]);
        assert_eq!(["argmax", "sample", "log_likelihood"].map(count), [0, 0, 1]);
        let vocab = checkpoint.config().vocab_size;
        assert_eq!(step.graph.tensors()[step.logits.unwrap()].shape.dims(), [3, vocab]);
    }
}

#[test]
fn naive_norms_are_chains_of_six_and_leave_the_rules_that_take_a_norm_nothing_to_match() {
    let naive = Fusion::all().with_naive_norms();
    for tokens in [1, 9] {
        let mut expected = BTreeMap::from([
            ("embed", 1),
            ("unary", 3 * 65),
            ("row_mean", 65),
            ("multiply", 2 * 65),
            ("rope", 16),
            ("kv_write", 16),
            ("argmax", 1),
        ]);
        // After the last layer's attention, and in the head, one row.
        expected.extend(match tokens {
            1 => [("matvec", 16 + 1), ("matvec_add", 32), ("attention_decode", 16), ("matvec_swiglu", 16)]
                .to_vec(),
            _ => [
                ("matmul", 16),
                ("matmul_add", 2 * 15),
                ("matvec", 1),
                ("attention", 16),
                ("matmul_swiglu", 15),
                ("last_rows", 1),
                ("matvec_add", 2),
                ("matvec_swiglu", 1),
            ]
            .to_vec(),
        });
        assert_eq!(kernels(tokens, Logits::Last, &naive, WHOLE), expected);
        let takers = [Rule::NormMatvec, Rule::AddRmsNorm, Rule::QkNormRope, Rule::QkNormRopeAttention];
        let without = takers.into_iter().fold(naive.clone(), Fusion::without_rule);
        assert_eq!(kernels(tokens, Logits::Last, &without, WHOLE), expected);
    }
    let counts = kernels(1, Logits::Last, &Fusion::none().with_naive_norms(), WHOLE);
    assert_eq!((counts["unary"], counts["swiglu"], counts["matvec"]), (3 * 65, 16, 4 * 16 + 1));
    assert_eq!(counts.values().sum::<usize>(), 6 * 65 + 10 * 16 + 3);
}

#[test]
fn the_links_of_a_chain_are_labelled_in_their_order() {
    let graph = graph(Size::M270, 1, Logits::Last, &Fusion::all().with_naive_norms(), WHOLE);
    let labels: Vec<&str> = graph.ops().iter().map(|op| op.label.as_str()).collect();
    let links = ["square", "mean", "add_eps", "rsqrt", "scale", "weight"];
    for norm in ["layer.0/attn/norm", "layer.3/attn/q_norm", "layer.15/ffn/norm", "head/norm"] {
        let chain: Vec<String> = links.iter().map(|link| format!("{norm}/{link}")).collect();
        let first = labels.iter().position(|label| *label == chain[0]).unwrap();
        assert_eq!(labels[first..first + 6], chain);
    }
    let keys = labels.iter().position(|label| *label == "layer.3/attn/k_norm/square").unwrap();
    assert_eq!(labels[keys - 1], "layer.3/attn/q_norm/weight");
}

#[test]
fn every_choice_of_rules_computes_four_norms_a_layer_and_one() {
    let choices = choices();
    assert_eq!(choices.len(), Rule::ALL.len() + 4);
    for (size, layers) in SIZES {
        let norms = 4 * layers + 1;
        for (name, fusion) in &choices {
            for tokens in [1, 8, 9] {
                let graph = graph(size, tokens, Logits::Last, fusion, WHOLE);
                assert_eq!(graph.norms(), norms, "{size:?}, T {tokens}, {name}");
            }
        }
        let norm_ops = |fusion| graph(size, 1, Logits::Last, &fusion, WHOLE).norm_ops();
        // Fused, no norm is alone; as primitives, queries and keys share a dispatch.
        assert_eq!((norm_ops(Fusion::all()), norm_ops(Fusion::none())), (0, 3 * layers + 1));
        assert_eq!(norm_ops(Fusion::all().with_naive_norms()), 6 * norms);
    }
}

#[test]
fn rules_are_switched_off_by_name_in_any_order() {
    let without = |names: &[&str]| {
        names.iter().try_fold(Fusion::all(), |fusion, name| fusion.without(name)).map_err(|e| e.to_string())
    };
    assert_eq!(without(&["all"]), Ok(Fusion::none()));
    assert_eq!(without(&["rms-norm"]), Ok(Fusion::all().with_naive_norms()));
    assert_eq!(without(&["all", "rms-norm"]), without(&["rms-norm", "all"]));
    assert_eq!(without(&["rms-norm", "all"]), Ok(Fusion::none().with_naive_norms()));
    let all = Rule::ALL.map(|rule| rule.to_string());
    assert_eq!(without(&all.each_ref().map(String::as_str)), Ok(Fusion::none()));
    for off in [&["qk-norm-rope"][..], &["add-rms-norm", "rms-norm"], &["rms-norm"], &[]] {
        assert_eq!(without(off).unwrap().off(), off);
    }
    let message = without(&["norm"]).unwrap_err();
    assert!(message.contains("`norm` is none of all, matmul-swiglu"), "{message}");
    assert!(message.ends_with("qk-norm-rope, rms-norm"), "{message}");
}
