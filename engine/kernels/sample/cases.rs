//! The cases of `sample`: every option, and draws where a candidate is easily mistaken.

use super::{Binds, MAX_VOCABULARY, Sample, scratch_shape};
use crate::kernels::draw::{self, Options};
use crate::kernels::token::TokenState;
use crate::kernels::{Case, CaseBuilder, Fill, dim};
use crate::tensor::{DType, Shape};

/// OpenELM's vocabulary under each option and all of them, and draws where a candidate is easily mistaken.
pub fn cases() -> Vec<Case> {
    const V: usize = 32000;
    let plain = Setting::default();
    let all = Setting { top_k: 40, top_p: 0.9, min_p: 0.02, penalty: 1.3, window: 64, ..plain };
    let near = |n: usize, step: f64| Fill::Values((0..n).map(|i| f64::from((3.0 + step * (i * 7919 % n) as f64) as f32)).collect());
    // Logits that are all `rest`, except `some`.
    let values = |n: usize, rest: f64, some: &[(usize, f64)]| {
        let mut values = vec![rest; n];
        some.iter().for_each(|&(index, value)| values[index] = value);
        Fill::Values(values)
    };
    let (most, low) = (f64::from(f32::MAX), f64::from(f32::MIN));
    let wide = Fill::Uniform(12.0);
    let mut cases = vec![
        last("temperature", [1, V], wide.clone(), plain).bench(),
        last("greedy", [1, V], wide.clone(), Setting { temperature: 0.0, ..plain }).bench(),
        last("greedy with a penalty", [1, V], wide.clone(), Setting { temperature: 0.0, penalty: 1.5, ..plain }),
        last("top-k", [1, V], wide.clone(), Setting { top_k: 40, ..plain }).bench(),
        last("top-p", [1, V], wide.clone(), Setting { top_p: 0.9, ..plain }).bench(),
        last("min-p", [1, V], wide.clone(), Setting { min_p: 0.05, ..plain }).bench(),
        last("penalty", [1, V], wide.clone(), Setting { penalty: 1.2, ..plain }),
        last("every option", [1, V], wide.clone(), all).bench(),
        last("the last of three rows", [3, V], wide.clone(), all),
        last("a hot draw", [1, V], wide.clone(), Setting { temperature: 50.0, top_p: 0.7, ..plain }),
        last("a cold draw", [1, V], wide.clone(), Setting { temperature: 0.05, top_k: 40, ..plain }),
        last("more candidates than a list holds", [1, V], wide.clone(), Setting { top_k: 20000, temperature: 9.0, ..plain }),
        last("largest vocabulary", [1, MAX_VOCABULARY], wide.clone(), Setting { top_p: 0.5, temperature: 20.0, ..plain }),
        last("largest vocabulary, all equal", [1, MAX_VOCABULARY], values(MAX_VOCABULARY, 1.5, &[]), Setting { top_p: 0.6, ..plain }),
        last("all equal, cut in the middle", [1, V], values(V, -2.5, &[]), Setting { top_k: 12345, ..plain }),
        last("nearly equal", [1, 5000], near(5000, 2f64.powi(-21)), Setting { top_k: 2500, ..plain }),
        last("equal but for the last byte", [1, 900], near(900, 2f64.powi(-22)), Setting { top_k: 450, ..plain }),
        last("ties at the cut", [1, 40], values(40, 0.0, &[(5, 2.0), (9, 2.0), (30, 2.0), (31, 2.0)]), Setting { top_k: 2, ..plain }),
        last("ties at the cut of top-p", [1, 40], values(40, -30.0, &[(5, 2.0), (9, 2.0), (30, 2.0), (31, 2.0)]), Setting { top_p: 0.6, ..plain }),
        last("a goal that is met exactly", [1, 4], values(4, 1.0, &[]), Setting { top_p: 0.5, ..plain }),
        last("zeros of both signs tie", [1, 9], values(9, 0.0, &[(2, -0.0), (7, -0.0)]), Setting { top_k: 5, ..plain }),
        last("top-k of one", [1, V], wide.clone(), Setting { top_k: 1, ..plain }),
        last("top-k of one, tied", [1, 300], values(300, 0.5, &[(280, 3.0), (299, 3.0)]), Setting { top_k: 1, ..plain }),
        last("top-k of all", [1, 50], wide.clone(), Setting { top_k: 50, ..plain }),
        last("top-k of more", [1, 50], wide.clone(), Setting { top_k: 51, ..plain }),
        last("top-k beyond what has a weight", [1, 500], Fill::Uniform(400.0), Setting { top_k: 400, ..plain }),
        last("tiny top-p", [1, V], wide.clone(), Setting { top_p: 1e-30, ..plain }),
rows("tinier than a step of the weights", [32, 4], values(128, 0.0, &(0..32).map(|r| (4 * r + 2, 1.2)).collect::<Vec<_>>()), Setting { top_p: 1e-30, ..plain }),
        last("top-p just below one", [1, 700], wide.clone(), Setting { top_p: 0.999, ..plain }),
        last("min-p of one", [1, 64], values(64, 1.0, &[(3, 1.25), (60, 1.25), (9, 1.2499)]), Setting { min_p: 1.0, ..plain }),
        last("tiny min-p", [1, 64], wide.clone(), Setting { min_p: 1e-40, ..plain }),
        last("one candidate", [1, 1], Fill::Uniform(1.0), all),
        last("two candidates", [1, 2], Fill::Uniform(1.0), plain),
        last("fewer logits than invocations", [2, 7], Fill::Uniform(2.0), Setting { top_p: 0.8, ..plain }),
        last("no multiple of four", [2, 2047], wide.clone(), Setting { penalty: 1.1, ..all }),
        last("magnitudes 2^-20 to 2^20", [1, 2048], Fill::Extreme, plain),
        last("smallest temperature", [1, 200], wide.clone(), Setting { temperature: 1e-45, ..all }),
        last("largest temperature", [1, 200], wide.clone(), Setting { temperature: f32::MAX, top_k: 150, ..plain }),
        last("largest penalty", [1, 200], wide.clone(), Setting { penalty: 1e30, ..plain }),
        last("smallest penalty", [1, 200], wide.clone(), Setting { penalty: 1e-30, ..plain }),
        last("largest logits", [1, 200], values(200, low, &[(3, most), (150, most)]), plain),
        last("largest logits, hot", [1, 200], values(200, low, &[(3, most), (150, most)]), Setting { temperature: f32::MAX, ..plain }),
        last("largest logits, lowered", [1, 200], values(200, low, &[(3, most), (151, most)]), Setting { penalty: 1e30, ..plain }),
        last("largest logits, raised", [1, 200], values(200, low, &[(3, most), (150, 1.0)]), Setting { penalty: 1e-30, ..plain }),
        last("window of one", [1, 30], values(30, 0.0, &[(29, 3.0), (28, 2.9)]), Setting { temperature: 0.0, penalty: 2.0, window: 1, ..plain }),
        last("window beyond the sequence", [1, 60], wide.clone(), Setting { penalty: 4.0, window: 9999, ..plain }),
        last("infinity", [1, 900], values(900, 1.0, &[(5, f64::INFINITY)]), plain),
        last("negative infinity", [1, 900], values(900, 1.0, &[(899, f64::NEG_INFINITY)]), Setting { temperature: 0.0, ..plain }),
        last("NaN", [1, 903], values(903, 1.0, &[(902, f64::NAN)]), all),
        last("all NaN", [1, 30], values(30, f64::NAN, &[]), all),
        last("the first token", [1, 300], wide.clone(), Setting { position: 0, ..all }),
        last("the token after a full cache", [1, 300], wide.clone(), Setting { position: 64, ..all }),
        last("a position that is no position", [1, 300], wide.clone(), Setting { position: u32::MAX - 9, ..all }),
        rows("rows of a speculation", [8, V], wide.clone(), all).bench(),
        rows("rows at a temperature", [64, 150], wide.clone(), plain),
        rows("greedy rows with a penalty", [8, 20], Fill::Uniform(2.0), Setting { temperature: 0.0, penalty: 3.0, ..plain }),
        rows("rows with a window of two", [8, 20], Fill::Uniform(2.0), Setting { temperature: 0.5, penalty: 3.0, window: 2, ..plain }),
        rows("ragged rows", [5, 1003], wide.clone(), all),
        batch("a batch of 64", [64, V], wide.clone(), &[plain, all, Setting { temperature: 0.0, ..plain }]).bench(),
        batch("sequences with different options", [5, 1003], wide.clone(), &[
            all,
            Setting { temperature: 0.0, position: 3, ..plain },
            Setting { top_p: 0.6, seed: 11, position: 0, ..plain },
            Setting { temperature: 0.0, penalty: 2.0, window: 9, position: 64, ..plain },
            Setting { top_k: 7, min_p: 0.01, temperature: 2.0, seed: u64::MAX, ..plain },
        ]),
        batch("one sequence", [1, 20], Fill::Uniform(2.0), &[Setting { penalty: 3.0, ..plain }]),
        batch("a batch with NaN in a row", [3, 5], values(15, 1.0, &[(7, f64::NAN)]), &[plain]),
        rows("rows with NaN among them", [3, 5], values(15, 1.0, &[(7, f64::NAN)]), plain),
    ];
    for seed in 0..4 {
        cases.push(last(&format!("seed {seed}"), [1, V], wide.clone(), Setting { seed: u64::MAX / 3 * seed, top_p: 0.95, ..plain }));
    }
    cases.into_iter().map(Draft::case).collect()
}

/// The options of a case, and the position of its sequence.
#[derive(Clone, Copy)]
struct Setting {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    penalty: f32,
    window: usize,
    seed: u64,
    position: u32,
}

impl Setting {
    fn options(&self) -> Options {
        let Self { temperature, top_k, top_p, min_p, penalty, window, seed, .. } = *self;
        Options::new(temperature, top_k, top_p, min_p, penalty, window, seed)
    }
}

impl Default for Setting {
    fn default() -> Self {
        let (temperature, top_p, min_p, penalty) = (1.0, 1.0, 0.0, 1.0);
        Self { temperature, top_k: 0, top_p, min_p, penalty, window: 0, seed: 7, position: 41 }
    }
}

/// What a case is made from.
struct Draft {
    label: String,
    shape: [usize; 2],
    logits: Fill,
    settings: Vec<Setting>,
    kind: Kind,
    bench: bool,
}

/// What the rows of a case are.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Last,
    Drafted,
    Batch,
}

fn last(label: &str, shape: [usize; 2], logits: Fill, setting: Setting) -> Draft {
    Draft { label: label.to_owned(), shape, logits, settings: vec![setting], kind: Kind::Last, bench: false }
}

fn rows(label: &str, shape: [usize; 2], logits: Fill, setting: Setting) -> Draft {
    Draft { kind: Kind::Drafted, ..last(label, shape, logits, setting) }
}

/// Sequences with these settings, repeated, in slots out of order; one slot is left over.
fn batch(label: &str, shape: [usize; 2], logits: Fill, settings: &[Setting]) -> Draft {
    Draft { kind: Kind::Batch, settings: settings.to_vec(), ..last(label, shape, logits, settings[0]) }
}

impl Draft {
    fn bench(self) -> Self {
        Self { bench: true, ..self }
    }

    fn case(self) -> Case {
        let Self { label, shape: [rows, vocabulary], logits, settings, kind, bench } = self;
        let mut case = CaseBuilder::new(label).benched(bench);
        let words = |words: Vec<u32>| Fill::Values(words.into_iter().map(f64::from).collect());
        // Ids of a sequence that repeats some of them.
        let id = |index: usize| dim(index * 37 % 61 * 13 % vocabulary);
        let seen = |of: &Setting| {
            let history: Vec<u32> = (0..=of.position.min(64) as usize).map(id).collect();
            draw::last_seen(&history, vocabulary)
        };
        let of = settings[0];
        let batch = kind == Kind::Batch;
        let per_row: Vec<Setting> = settings.iter().copied().cycle().take(if batch { rows } else { 1 }).collect();
        let options: Vec<Options> = per_row.iter().map(Setting::options).collect();
        let slot = |row: usize| (row + 2) % (rows + 1);
        let (mut last_seen, mut position) = (seen(&of), vec![of.position]);
        if batch {
            last_seen = vec![0; (rows + 1) * vocabulary];
            position.clear();
            for (row, of) in per_row.iter().enumerate() {
                last_seen[slot(row) * vocabulary..][..vocabulary].copy_from_slice(&seen(of));
                position.extend([of.position, dim(slot(row))]);
            }
        }
        let tokens = if kind == Kind::Last { 3 } else { rows };
        let ids: Vec<u32> = (0..tokens).map(|t| id(of.position as usize + t)).collect();
        let (room, counting) = if kind == Kind::Last { (65, 1) } else { (rows, rows) };
        let shape = |one: usize, many: usize| -> Shape { if batch { [many, one].into() } else { [one].into() } };
        let options_shape = shape(Options::WORDS, rows);
        let (seen_shape, position_shape) = (shape(vocabulary, rows + 1), if batch { shape(2, rows) } else { shape(1, 0) });
        let binds = Binds {
            logits: case.tensor("logits", [rows, vocabulary], DType::F32, logits),
            options: case.tensor("options", options_shape, DType::U32, words(bytemuck::cast_slice(&options).to_vec())),
            last_seen: case.tensor("last_seen", seen_shape, DType::U32, words(last_seen)),
            state: TokenState {
                ids: case.tensor("ids", [tokens], DType::U32, words(ids)),
                position: case.tensor("position", position_shape, DType::U32, words(position)),
                out: case.tensor("out", [room], DType::U32, words(vec![5; room])),
            },
            scratch: case.tensor("scratch", scratch_shape(counting, vocabulary), DType::U32, Fill::Zero),
        };
        let kernel =
            if kind == Kind::Last { Sample::last(&case.tensors, binds, 1) } else { Sample::rows(&case.tensors, binds) };
        let penalties = per_row.iter().any(|of| of.penalty != 1.0);
        if !penalties {
            return case.build(kernel, 0.0, "ids and keys are exact");
        }
        // Far below one step of an id or a position: 1 / (5e9^2 + V * 65^2).
        case.build(kernel, 1e-17, "ids are exact; keys of penalised logits may be 2.5 ULP of 2^31 off")
    }
}
