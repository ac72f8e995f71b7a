//! Scores: those of softmax over the logits of a session, the same bits whatever a sequence is packed with, and what
//! `samara score` makes of them.

use std::fs;
use std::path::Path;

use crate::common::program::{errors, refused, run, stdout};
use crate::common::{demo, golden, has_gpu, load};
use samara::kernels::SPLIT_KEYS;
use samara::model::Checkpoint;
use samara::model::demo::TOKENIZER;
use samara::quant::Format;
use samara::session::{MAX_TOP, Scorer, Scoring, TokenScore};
use samara::tokenizer::Tokenizer;
use samara::{Error, Fusion, KvFormat, LoadOptions, Model, Session};
use serde_json::{Value, json};

/// How far a log-probability may be off: logits of about 20 whose f32 sums are added in another order, which move keys and
/// values of an f16 cache to its neighbouring numbers, differ by some 1e-5; it is the difference of two.
const NEAR: f64 = 2e-4;

/// Tokens for each number.
fn tokens(number: usize, count: usize) -> Vec<u32> {
    (0..count)
        .map(|i| if i == 0 { 1 } else { ((number * 911 + i * i * 37 + i * 5) % 2000 + 3) as u32 })
        .collect()
}

fn scoring(number: usize, count: usize, from: usize, top: usize) -> Scoring {
    Scoring { tokens: tokens(number, count), from, top }
}

/// Sequences of many lengths, some with a common prefix.
fn requests() -> Vec<Scoring> {
    let mut requests: Vec<Scoring> = (0..14)
        .map(|number| {
            let count = 2 + number * 17 % 61;
            scoring(number, count, 1 + number * 7 % (count - 1), number % (MAX_TOP + 1))
        })
        .collect();
    // More than a chunk of 128, and more than two.
    requests.push(scoring(20, 150, 140, 1));
    requests.push(scoring(21, 300, 1, 0));
    // One context, several ends: long enough to be kept, and too short.
    for (prefix, number) in [(70, 0), (70, 1), (70, 2), (9, 3), (9, 4), (140, 5), (140, 6)] {
        let mut shared = tokens(30, prefix);
        shared.extend(&tokens(40 + number, 4 + number)[1..]);
        requests.push(Scoring { from: prefix, tokens: shared, top: 2 });
    }
    requests
}

/// Scores one sequence with a scorer that knows nothing else.
fn alone(model: &Model, request: &Scoring) -> Vec<TokenScore> {
    model.scorer(1, Some(320)).unwrap().score(std::slice::from_ref(request)).unwrap().remove(0)
}

/// ln softmax of the logits of a session before each token that is scored, in f64.
fn log_probabilities(session: &mut Session, request: &Scoring) -> Vec<Vec<f64>> {
    session.rollback(0).unwrap();
    session.prefill(&request.tokens[..request.from]).unwrap();
    let mut rows = Vec::new();
    for &token in &request.tokens[request.from..] {
        let logits: Vec<f64> = session.next_logits().unwrap().iter().map(|&logit| f64::from(logit)).collect();
        let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum = logits.iter().map(|logit| (logit - top).exp()).sum::<f64>().ln();
        rows.push(logits.iter().map(|logit| logit - top - sum).collect());
        session.prefill(&[token]).unwrap();
    }
    rows
}

#[test]
fn scores_are_log_probabilities_of_the_logits() {
    // A session's steps and packed ones differ only in the order of sums.
    let options = || LoadOptions { kv: KvFormat::F32, ..LoadOptions::default() };
    let Some(model) = demo(options()) else { return };
    let micro = load(&Checkpoint::open(&golden("micro")).unwrap(), options()).unwrap();
    for (model, context) in [(&model, 64), (&micro, 40)] {
        let vocab = model.config().vocab_size;
        let mut session = model.session(Some(context)).unwrap();
        let mut requests: Vec<Scoring> =
            (0..4).map(|number| scoring(number, 20 + number, 15, MAX_TOP)).collect();
        requests.iter_mut().for_each(|of| of.tokens.iter_mut().for_each(|id| *id %= vocab as u32));
        let scores = model.scorer(3, Some(context)).unwrap().score(&requests).unwrap();
        for (request, scores) in requests.iter().zip(&scores) {
            let expected = log_probabilities(&mut session, request);
            assert_eq!(scores.len(), expected.len());
            for ((score, &token), row) in scores.iter().zip(&request.tokens[request.from..]).zip(&expected) {
                let near = |found: f32, id: u32| {
                    let expected = row[id as usize];
                    assert!((f64::from(found) - expected).abs() < NEAR, "{found} for {expected}");
                };
                assert_eq!(score.token, token);
                near(score.logprob, token);
                assert_eq!(score.top().len(), MAX_TOP);
                score.top().iter().for_each(|&(id, logprob)| near(logprob, id));
                let best = (0..vocab).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
                let first = score.top()[0];
                assert!(first.0 as usize == best || (row[first.0 as usize] - row[best]).abs() < 1e-4);
                assert_eq!(score.is_greedy(), first.0 == token);
            }
        }
    }
}

#[test]
fn a_score_is_the_same_bit_for_bit_alone_and_among_others_in_any_order() {
    for (format, kv) in [(Format::Bf16, KvFormat::F16), (Format::Q4_0, KvFormat::Q8_0)] {
        let options = LoadOptions { format: Some(format), kv, ..LoadOptions::default() };
        let Some(model) = demo(options) else { return };
        let requests = requests();
        let expected: Vec<Vec<TokenScore>> = requests.iter().map(|request| alone(&model, request)).collect();
        assert!(expected.iter().zip(&requests).all(|(found, of)| found.len() == of.tokens.len() - of.from));
        let same = |scorer: &mut Scorer, order: &[usize]| {
            let some: Vec<Scoring> = order.iter().map(|&index| requests[index].clone()).collect();
            let found = scorer.score(&some).unwrap();
            for (&index, found) in order.iter().zip(&found) {
                assert_eq!(found, &expected[index], "{format}, sequence {index} of {order:?}");
            }
        };
        let all: Vec<usize> = (0..requests.len()).collect();
        let backwards: Vec<usize> = all.iter().rev().copied().collect();
        for slots in [3, 16] {
            let mut scorer = model.scorer(slots, Some(320)).unwrap();
            same(&mut scorer, &all);
            // With a warm cache.
            same(&mut scorer, &backwards);
        }
    }
}

#[test]
fn keys_that_workgroups_share_and_small_chunks_change_nothing_beside_them() {
    let options =
        |chunk| LoadOptions { prefill_chunk: Some(chunk), splits: Some(3), ..LoadOptions::default() };
    let Some(model) = demo(options(128)) else { return };
    let requests = [scoring(1, 900, 760, 1), scoring(2, 30, 5, 1), scoring(3, 800, 790, 0)];
    let score = |model: &Model, slots| -> Vec<Vec<TokenScore>> {
        model.scorer(slots, Some(899)).unwrap().score(&requests).unwrap()
    };
    let expected = score(&model, 3);
    assert_eq!(expected[0].len(), 140);
    assert_eq!(score(&model, 1), expected);
    assert_eq!(score(&demo(options(40)).unwrap(), 2), expected);
}

#[test]
fn a_prepared_scorer_compiles_nothing_more() {
    let Some(model) = demo(LoadOptions { splits: Some(2), ..LoadOptions::default() }) else { return };
    let context = SPLIT_KEYS + 8;
    let mut scorer = model.scorer(6, Some(context)).unwrap();
    scorer.prepare().unwrap();
    let compiled = model.gpu().compiled();
    let mut requests = requests();
    requests.push(scoring(50, context + 1, context - 4, 1));
    let scores = scorer.score(&requests).unwrap();
    assert_eq!(model.gpu().compiled(), compiled);
    assert_eq!(scores, model.scorer(6, Some(context)).unwrap().score(&requests).unwrap());
}

#[test]
fn scores_do_not_depend_on_fusion() {
    let options = LoadOptions { kv: KvFormat::F32, ..LoadOptions::default() };
    let Some(model) = demo(options) else { return };
    let requests = requests();
    let score = |model: &Model| model.scorer(8, Some(320)).unwrap().score(&requests).unwrap().concat();
    let fused = score(&model);
    for other in [Fusion::none(), Fusion::none().with_naive_norms()] {
        let others = score(&model.with_fusion(other));
        assert_eq!(others.len(), fused.len());
        for (a, b) in fused.iter().zip(others) {
            assert!(f64::from(a.logprob - b.logprob).abs() < NEAR, "{} for {}", b.logprob, a.logprob);
        }
    }
}

#[test]
fn what_cannot_be_scored_is_refused_by_its_number() {
    let Some(model) = demo(LoadOptions::default()) else { return };
    let message = |result: samara::Result<_>| match result {
        Err(Error::Input(message)) => message,
        other => panic!("expected an input error, got {other:?}"),
    };
    for slots in [0, 65] {
        let text = message(model.scorer(slots, None).map(|_| Vec::<Vec<TokenScore>>::new()));
        assert!(text.contains(&slots.to_string()) && text.contains("64"), "{text}");
    }
    assert!(message(model.scorer(1, Some(0)).map(|_| Vec::new())).contains('0'));
    let mut scorer: Scorer = model.scorer(2, Some(8)).unwrap();
    let good = Scoring { tokens: vec![1; 9], from: 8, top: 5 };
    for (bad, parts) in [
        (Scoring { tokens: vec![1; 10], ..good.clone() }, ["10", "8", "9"]),
        (Scoring { tokens: vec![1], from: 1, ..good.clone() }, ["1 tokens", "token 1", "before"]),
        (Scoring { from: 0, ..good.clone() }, ["9 tokens", "token 0", "before"]),
        (Scoring { from: 9, ..good.clone() }, ["9 tokens", "token 9", "before"]),
        (Scoring { top: 6, ..good.clone() }, ["6", "5", "likeliest"]),
        (Scoring { tokens: vec![1, 2048], from: 1, top: 0 }, ["2048", "vocabulary", "id"]),
    ] {
        let text = message(scorer.score(&[good.clone(), bad]));
        assert!(text.starts_with("sequence 1 ") && parts.iter().all(|part| text.contains(part)), "{text}");
    }
    assert_eq!(scorer.score(&[]).unwrap(), Vec::<Vec<TokenScore>>::new());
    assert_eq!(scorer.score(&[good]).unwrap()[0].len(), 1);
}

/// Runs `samara score` on lines and returns what it printed as JSON.
fn score(folder: &Path, lines: &str, arguments: &[&str]) -> Vec<Value> {
    let file = folder.join("tasks.jsonl");
    fs::write(&file, lines).unwrap();
    let arguments = [&["score", "-q", "--json", "--tasks", file.to_str().unwrap()], arguments].concat();
    stdout(&run(&arguments)).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

const TASKS: &str = r#"
{"id": "fox", "context": "The Fox and the", "continuations": [" Grapes", " Crow sat on a branch", "\n\nÄ"], "gold": 0}
{"context": "The Fox and the ", "continuations": ["Grapes"]}
{"context": "The Fox and the", "delimiter": " ", "continuations": ["Grapes", "Lion"], "gold": 0}

{"context": "", "continuations": ["The Fox"], "gold": 0}
"#;

#[test]
fn the_program_scores_what_a_session_says() {
    if !has_gpu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let lines = score(folder.path(), TASKS, &[]);
    assert_eq!(lines.len(), 5);
    let model = demo(LoadOptions::default()).unwrap();
    let mut session = model.session(None).unwrap();
    let tokenizer = Tokenizer::from_bytes(TOKENIZER, "demo").unwrap();
    let mut expect = |line: usize, index: usize, context: &str, whole: &str| {
        let [before, whole] = [context, whole].map(|text| tokenizer.encode(text, Some(1)).unwrap());
        session.rollback(0).unwrap();
        let nll = session.nll(&whole).unwrap();
        let sum = -nll[before.len() - 1..].iter().sum::<f64>();
        let found = &lines[line]["continuations"][index];
        let log_likelihood = found["log_likelihood"].as_f64().unwrap();
        assert!(
            (log_likelihood - sum).abs() < 5.0 * NEAR,
            "line {line}, {index}: {log_likelihood} for {sum}"
        );
        assert_eq!(found["tokens"], whole.len() - before.len());
        log_likelihood
    };
    let grapes = expect(0, 0, "The Fox and the", "The Fox and the Grapes");
    let crow = expect(0, 1, "The Fox and the", "The Fox and the Crow sat on a branch");
    expect(0, 2, "The Fox and the", "The Fox and the\n\nÄ");
    expect(3, 0, "", "The Fox");
    assert_eq!((&lines[0]["id"], &lines[3]["id"]), (&json!("fox"), &json!(6)));
    // The space belongs to the continuation, wherever it is written, but does not count in the length of a choice.
    assert_eq!(expect(1, 0, "The Fox and the", "The Fox and the Grapes"), grapes);
    let of =
        |line: usize, index: usize, key: &str| lines[line]["continuations"][index][key].as_f64().unwrap();
    assert_eq!((of(2, 0, "log_likelihood"), of(2, 0, "per_char")), (grapes, grapes / 6.0));
    assert_eq!((of(0, 0, "per_char"), of(0, 1, "per_byte")), (grapes / 7.0, crow / 21.0));
    assert_eq!(of(0, 2, "per_char") * 3.0, of(0, 2, "per_byte") * 4.0);
    // Of three tasks with a right continuation two are found.
    assert!(grapes > crow && grapes < of(2, 1, "log_likelihood") && grapes / 6.0 > of(2, 1, "per_char"));
    assert_eq!((&lines[0]["gold"]["acc"], &lines[2]["gold"]["acc"]), (&json!(true), &json!(false)));
    assert_eq!((&lines[2]["gold"]["acc_norm"], &lines[4]["acc_norm"]["value"]), (&json!(true), &json!(1.0)));
    let acc = &lines[4]["acc"];
    assert_eq!((acc["value"].as_f64(), &acc["tasks"]), (Some(2.0 / 3.0), &json!(3)));
    assert!((acc["stderr"].as_f64().unwrap() - 1.0 / 3.0).abs() < 1e-9);

    // The likeliest continuation is greedy, and ids are taken as they are.
    let ids = tokenizer.encode("The Fox and the Grapes", Some(1)).unwrap();
    session.rollback(0).unwrap();
    session.prefill(&ids).unwrap();
    let next = session.next_greedy().unwrap();
    let task = json!({"context_ids": ids, "continuation_ids": [[next], [next + 1]], "gold": 0}).to_string();
    let lines = score(folder.path(), &task, &[]);
    let found = &lines[0]["continuations"];
    assert_eq!((&found[0]["is_greedy"], &found[1]["is_greedy"]), (&json!(true), &json!(false)));
    assert_eq!((&found[0]["per_char"], &lines[1]["acc_norm"]), (&Value::Null, &Value::Null));
    assert_eq!(lines[1]["acc"]["stderr"], Value::Null);
}

#[test]
fn tables_files_and_cut_texts() {
    if !has_gpu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let lines = score(folder.path(), TASKS, &[]);
    let [file, out] = ["tasks.jsonl", "out.jsonl"].map(|name| folder.path().join(name).display().to_string());
    let table = stdout(&run(&["score", "-q", "--tasks", &file, "--out", &out]));
    assert!(table.starts_with("| task") && table.contains("| fox "), "{table}");
    assert!(table.contains("\nacc        0.6667 ± 0.3333 of 3 tasks\n"), "{table}");
    let written = fs::read_to_string(&out).unwrap();
    let written: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(written, lines);

    // A context of four sees the last four tokens before the last one.
    let ids = |count: u32| (1..=count).map(|i| i * 90).collect::<Vec<u32>>();
    let task = |ids: &[u32]| json!({"context_ids": ids[..ids.len() - 2], "continuation_ids": [ids[ids.len() - 2..]]});
    fs::write(&file, task(&ids(12)).to_string()).unwrap();
    let output = run(&["score", "--json", "--context", "4", "--tasks", &file]);
    let cut: Value = serde_json::from_str(stdout(&output).lines().next().unwrap()).unwrap();
    let said = errors(&output);
    assert!(said.contains("1 of 1 texts are longer than the context of 4"), "{said}");
    let whole = score(folder.path(), &task(&ids(12)[7..]).to_string(), &[]);
    assert_eq!(cut["continuations"], whole[0]["continuations"]);
}

#[test]
fn bad_lines_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tasks.jsonl");
    let good = r#"{"context": "a", "continuations": [" b"]}"#;
    for (line, parts) in [
        ("{", &["line 3", "column"][..]),
        (r#"{"context": "a"}"#, &["line 3", "`continuations`"]),
        (r#"{"context": "a", "continuations": [" b", ""]}"#, &["line 3", "continuation 1", "adds no token"]),
        (
            r#"{"context_ids": [], "continuation_ids": [[5]]}"#,
            &["line 3", "continuation 0", "no token before"],
        ),
        (r#"{"context_ids": [1], "continuation_ids": [[5, 2048]]}"#, &["line 3", "2048"]),
        (r#"{"context_ids": [1], "continuation_ids": [[5, 6, 7]]}"#, &["line 3", "3 tokens", "room for 2"]),
    ] {
        fs::write(&file, format!("{good}\n\n{line}\n")).unwrap();
        let output = run(&["score", "--context", "2", "--tasks", file.to_str().unwrap()]);
        refused(&output, 2, &[&["tasks.jsonl"], parts].concat());
    }
    fs::write(&file, "\n").unwrap();
    refused(&run(&["score", "--tasks", file.to_str().unwrap()]), 2, &["tasks.jsonl", "no task"]);
    refused(&run(&["score", "--tasks", "missing.jsonl"]), 1, &["missing.jsonl"]);
}
