//! `samara serve` as its clients see it: what is answered, what is refused, and that nobody gets in another's way.
#![cfg(feature = "server")]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use common::checkpoint::Tiny;
use common::has_gpu;
use common::program::{self, refused};
use common::serving::{Served, model, tokenizer};
use samara::model::demo;
use samara::sampler::{Sampler, SamplerOptions};
use samara::server::Options;
use samara::session::{Scoring, TokenScore};
use samara::{LoadOptions, Model};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

fn options() -> Options {
    Options { name: "demo".into(), ..Options::default() }
}

/// The first choice's text.
fn text(answer: &Value) -> &str {
    answer["choices"][0]["text"].as_str().unwrap()
}

/// What a session alone generates, text and finish reason.
fn alone(prompt: &str, max_tokens: usize, sampling: SamplerOptions) -> (String, &'static str) {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode(prompt, Some(1)).unwrap();
    let mut session = model().session(None).unwrap();
    session.prefill(&ids).unwrap();
    let tokens = session.generate(Sampler::new(sampling).unwrap()).limit(max_tokens);
    let new: Vec<u32> = tokens.collect::<samara::Result<_>>().unwrap();
    let mut stream = tokenizer.stream();
    ids.iter().for_each(|&id| drop(stream.push(id).unwrap()));
    let text: String = new.iter().map(|&id| stream.push(id).unwrap()).collect();
    (text + &stream.finish(), if new.len() < max_tokens { "stop" } else { "length" })
}

#[test]
fn models_health_and_tokens_are_reported() {
    if !has_gpu() {
        return;
    }
    let served = Served::start(options());
    let models = served.get("/v1/models").ok();
    assert_eq!([&models["object"], &models["data"][0]["id"]], ["list", "demo"]);
    assert_eq!(models["data"][0]["max_model_len"], 512);
    assert_eq!(served.get("/health").ok(), json!({"status": "ready"}));
    assert_eq!(served.get("/tokenizer_info").ok()["eos_token"], "</s>");
    let tokens = served.post("/tokenize", r#"{"prompt": "The Fox and the Grapes"}"#).ok();
    assert_eq!(tokens["tokens"], json!(demo::KNOWN_PROMPT));
    let body = json!({"tokens": &demo::KNOWN_PROMPT[1..]}).to_string();
    assert_eq!(served.post("/detokenize", &body).ok()["prompt"], "The Fox and the Grapes");
    served.get("/v1/nothing").refused(404, &["/v1/nothing"]);
    served.get("/v1/completions").refused(405, &["GET", "/v1/completions"]);
    assert_eq!(served.metric(r#"samara_requests_total{path="/health",status="200"}"#), 1.0);
    assert_eq!(served.metric(r#"samara_requests_total{path="other",status="404"}"#), 1.0);
    assert_eq!(served.metric("samara_queue_depth"), 0.0);
}

#[test]
fn a_completion_is_what_a_session_generates() {
    if !has_gpu() {
        return;
    }
    let served = Served::start(options());
    let known = tokenizer().decode(&demo::KNOWN_TEXT).unwrap();
    let mut body = json!({"model": "demo", "prompt": "The Fox and the Grapes", "temperature": 0});
    let answer = served.complete(&body).ok();
    assert_eq!(text(&answer), known);
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["choices"][0]["logprobs"], Value::Null);
    assert_eq!(answer["usage"], json!({"prompt_tokens": 8, "completion_tokens": 16, "total_tokens": 24}));
    // The same as ids, and to the end of the text.
    body["prompt"] = json!(demo::KNOWN_PROMPT);
    assert_eq!(text(&served.complete(&body).ok()), known);
    body["max_tokens"] = json!(500);
    let answer = served.complete(&body).ok();
    let (whole, reason) = alone("The Fox and the Grapes", 500, SamplerOptions::default());
    assert_eq!(text(&answer), whole);
    assert_eq!(answer["choices"][0]["finish_reason"], reason);
    // Echo, several prompts, and no new tokens.
    let prompts = json!({"prompt": ["The Fox", "The Crow"], "temperature": 0, "max_tokens": 5, "echo": true});
    let answer = served.complete(&prompts).ok();
    for (index, prompt) in ["The Fox", "The Crow"].iter().enumerate() {
        let (new, _) = alone(prompt, 5, SamplerOptions::default());
        assert_eq!(answer["choices"][index]["text"], format!("{prompt}{new}"));
        assert_eq!(answer["choices"][index]["index"], index);
    }
    assert_eq!(answer["usage"]["completion_tokens"], 10);
    let lists = json!({"prompt": [[1, 303], [1, 303, 442]], "max_tokens": 0, "echo": true});
    let answer = served.complete(&lists).ok();
    assert_eq!(answer["choices"][1]["text"], tokenizer().decode(&[303, 442]).unwrap());
    assert_eq!(answer["choices"].as_array().unwrap().len(), 2);
}

#[test]
fn a_stream_is_the_same_answer_in_pieces() {
    if !has_gpu() {
        return;
    }
    let served = Served::start(options());
    let bodies = [
        json!({"prompt": "The Fox and the Grapes", "temperature": 0, "max_tokens": 60}),
        json!({"prompt": ["The Wolf", "The Crow and the Pitcher"], "seed": 3, "max_tokens": 40, "echo": true}),
        json!({"prompt": "A Lion", "temperature": 0, "max_tokens": 200, "stop": ["\n\n", " the"]}),
    ];
    for mut body in bodies {
        let whole = served.complete(&body).ok();
        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
        let chunks: Vec<Value> = served.stream(&body).collect();
        assert!(chunks.len() > 3);
        let (last, rest) = chunks.split_last().unwrap();
        assert_eq!([&last["usage"], &last["choices"]], [&whole["usage"], &json!([])]);
        assert!(rest.iter().all(|chunk| chunk["usage"].is_null() && chunk["object"] == "text_completion"));
        let streamed = served.stream(&body).whole();
        assert_eq!(streamed["choices"], whole["choices"]);
    }
}

#[test]
fn a_stop_string_ends_the_text_and_is_not_part_of_it() {
    if !has_gpu() {
        return;
    }
    let served = Served::start(options());
    let (whole, _) = alone("The Fox and the Grapes", 80, SamplerOptions::default());
    // Strings that begin and end within tokens.
    for stop in ["ox one d", "spied", "e"] {
        let at = whole.find(stop).unwrap();
        let body = json!({
            "prompt": "The Fox and the Grapes", "temperature": 0, "max_tokens": 80, "stop": stop, "stream": true,
        });
        let answer = served.stream(&body).whole();
        assert_eq!(text(&answer), &whole[..at], "{stop}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
    let body = json!({
        "prompt": "The Fox and the Grapes", "temperature": 0, "max_tokens": 80, "stop": ["not in there", "e"],
    });
    let answer = served.complete(&body).ok();
    assert_eq!(text(&answer), &whole[..whole.find('e').unwrap()]);
    assert!(answer["usage"]["completion_tokens"].as_u64().unwrap() < 20);
    served.wait_for("samara_running_sequences", 0.0);
}

#[test]
fn a_seed_decides_what_is_drawn() {
    if !has_gpu() {
        return;
    }
    let served = Served::start(options());
    let ask = |seed: i64| {
        let body = json!({
            "prompt": "The Wolf", "max_tokens": 30, "seed": seed, "temperature": 0.9, "top_p": 0.95, "top_k": 50,
            "min_p": 0.01, "repeat_penalty": 1.1,
        });
        text(&served.complete(&body).ok()).to_owned()
    };
    let sampling = |seed: i64| SamplerOptions {
        temperature: 0.9,
        top_k: 50,
        top_p: 0.95,
        min_p: 0.01,
        repeat_penalty: 1.1,
        repeat_window: 0,
        seed: seed.cast_unsigned(),
    };
    for seed in [7, -7] {
        assert_eq!(ask(seed), alone("The Wolf", 30, sampling(seed)).0);
    }
    assert_ne!(ask(7), ask(8));
    let unseeded = json!({"prompt": "The Wolf", "max_tokens": 30});
    assert_ne!(text(&served.complete(&unseeded).ok()), text(&served.complete(&unseeded).ok()));
}

/// What a scorer returns for all tokens but the first.
fn scores(tokens: &[u32], top: usize) -> Vec<TokenScore> {
    let mut scorer = model().scorer(1, None).unwrap();
    scorer.score(&[Scoring { tokens: tokens.to_vec(), from: 1, top }]).unwrap().remove(0)
}

/// Checks log-probabilities of a choice from the token `from` on: bit for bit.
fn has_scores(choice: &Value, from: usize, scores: &[TokenScore]) {
    let tokenizer = tokenizer();
    let logprobs = &choice["logprobs"];
    assert!(!scores.is_empty());
    for (index, score) in (from..).zip(scores) {
        let token = String::from_utf8(tokenizer.bytes(score.token).unwrap()).unwrap();
        assert_eq!(logprobs["tokens"][index], token);
        assert_eq!(logprobs["token_logprobs"][index], f64::from(score.logprob), "{index}");
        let top = logprobs["top_logprobs"][index].as_object().unwrap();
        assert_eq!(top[&token], f64::from(score.logprob));
        for &(id, logprob) in score.top() {
            let name = String::from_utf8(tokenizer.bytes(id).unwrap()).unwrap();
            assert_eq!(top[&name], f64::from(logprob), "{index}: {name}");
        }
        assert!(
            top.len() == score.top().len() + usize::from(!score.top().iter().any(|t| t.0 == score.token))
        );
    }
}

#[test]
fn an_echo_has_the_scores_of_the_prompt() {
    if !has_gpu() {
        return;
    }
    let served = Served::start(options());
    let prompt = demo::KNOWN_PROMPT;
    let mut body = json!({"prompt": prompt, "temperature": 0, "max_tokens": 1, "logprobs": 3, "echo": true});
    // One token more, as lm-evaluation-harness requests it: the scorer knows it.
    let answer = served.complete(&body).ok();
    let choice = &answer["choices"][0];
    has_scores(choice, 1, &scores(&[&prompt[..], &demo::KNOWN_TEXT[..1]].concat(), 3));
    assert_eq!(choice["text"], "The Fox and the Grapes\n");
    let logprobs = &choice["logprobs"];
    assert_eq!(logprobs["tokens"][0], "<s>");
    assert!(logprobs["token_logprobs"][0].is_null() && logprobs["top_logprobs"][0].is_null());
    let tokens: Vec<&str> =
        logprobs["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    let mut offset = 0;
    for (index, token) in tokens.iter().enumerate() {
        assert_eq!(logprobs["text_offset"][index], offset);
        offset += if index == 0 { 0 } else { token.chars().count() };
    }
    assert_eq!(tokens.len(), prompt.len() + 1);
    assert_eq!(answer["usage"]["completion_tokens"], 1);
    // No new tokens, then several from the batch, whose log-probabilities come without the echo too.
    body["max_tokens"] = json!(0);
    has_scores(&served.complete(&body).ok()["choices"][0], 1, &scores(&prompt, 3));
    body["max_tokens"] = json!(4);
    let answer = served.complete(&body).ok();
    has_scores(&answer["choices"][0], 1, &scores(&prompt, 3));
    body["echo"] = json!(false);
    let new = served.complete(&body).ok();
    for field in ["tokens", "token_logprobs", "top_logprobs"] {
        let all = answer["choices"][0]["logprobs"][field].as_array().unwrap();
        assert_eq!(new["choices"][0]["logprobs"][field], json!(all[prompt.len()..]), "{field}");
    }
    assert_eq!(new["choices"][0]["logprobs"]["text_offset"][0], 0);
    body["stream"] = json!(true);
    assert_eq!(served.stream(&body).whole()["choices"], new["choices"]);
    // One token alone: nothing precedes it.
    let one = json!({"prompt": [1], "max_tokens": 0, "logprobs": 0, "echo": true});
    let answer = served.complete(&one).ok();
    assert_eq!(answer["choices"][0]["logprobs"]["token_logprobs"], json!([null]));
}

#[test]
fn an_echo_leaves_out_special_tokens_wherever_they_come_from() {
    if !has_gpu() {
        return;
    }
    let served = Served::start(options());
    let ask = |prompt: &str| {
        let body = json!({"prompt": prompt, "temperature": 0, "max_tokens": 3, "logprobs": 1, "echo": true});
        served.complete(&body).ok()["choices"][0].clone()
    };
    for prompt in ["The Fox", "<s>The Fox", "The Fox</s> and<s> the Ä"] {
        let choice = ask(prompt);
        let text = choice["text"].as_str().unwrap();
        assert!(text.starts_with("The Fox"), "{text}");
        let logprobs = &choice["logprobs"];
        let offsets: Vec<usize> = serde_json::from_value(logprobs["text_offset"].clone()).unwrap();
        let tokens: Vec<String> = serde_json::from_value(logprobs["tokens"].clone()).unwrap();
        for (token, &offset) in tokens.iter().zip(&offsets) {
            let rest: String = text.chars().skip(offset).collect();
            let special = ["<s>", "</s>"].contains(&token.as_str());
            // The first token of a text loses its space.
            let begins =
                rest.starts_with(token.as_str()) || offset == 0 && rest.starts_with(token.trim_start());
            assert!(
                special || token.starts_with("bytes:") || begins,
                "{prompt}: `{token}` at {offset} of `{text}`"
            );
        }
    }
}

#[test]
fn logprobs_are_those_of_the_logits() {
    if !has_gpu() {
        return;
    }
    let served = Served::start(options());
    let body = json!({"prompt": "The Wolf", "max_tokens": 8, "seed": 1, "logprobs": 0});
    let answer = served.complete(&body).ok();
    let logprobs = &answer["choices"][0]["logprobs"];
    let tokenizer = tokenizer();
    let mut session = model().session(None).unwrap();
    session.prefill(&tokenizer.encode("The Wolf", Some(1)).unwrap()).unwrap();
    let sampling = SamplerOptions { temperature: 1.0, seed: 1, ..SamplerOptions::default() };
    let mut sampler = Sampler::new(sampling).unwrap();
    for index in 0..8 {
        let logits = session.next_logits().unwrap();
        let id = sampler.sample(&logits, session.history()).unwrap();
        let token = String::from_utf8(tokenizer.bytes(id).unwrap()).unwrap();
        assert_eq!(logprobs["tokens"][index], token);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        let expected = f64::from(logits[id as usize]) - sum.ln();
        let told = logprobs["token_logprobs"][index].as_f64().unwrap();
        assert!((told - expected).abs() < 1e-4, "{told} is not {expected}");
        assert_eq!(logprobs["top_logprobs"][index], json!({token: told}));
        session.prefill(&[id]).unwrap();
    }
}

#[test]
fn requests_at_once_get_what_each_gets_alone() {
    if !has_gpu() {
        return;
    }
    let served = Served::start(Options { sequences: 5, ..options() });
    let beginnings =
        ["The Fox", "The Wolf and the Lamb", "A", "The Ant", "Once a Lion was", "The Crow", "An Ass"];
    let bodies: Vec<Value> = (0..21_usize)
        .map(|index| {
            let seeded = index.is_multiple_of(3);
            json!({
                "prompt": beginnings[index % beginnings.len()].repeat(1 + index % 4), "max_tokens": 5 + 4 * index,
                "echo": index.is_multiple_of(5), "logprobs": if index.is_multiple_of(4) { json!(2) } else { Value::Null },
                "temperature": if seeded { 0.8 } else { 0.0 }, "seed": index, "stream": index.is_multiple_of(2),
            })
        })
        .collect();
    let ask = |body: &Value| {
        if body["stream"] == true { served.stream(body).whole() } else { served.complete(body).ok() }
    };
    let expected: Vec<Value> = bodies.iter().map(|body| ask(body)["choices"].clone()).collect();
    thread::scope(|scope| {
        for (body, expected) in bodies.iter().zip(&expected) {
            scope.spawn(move || assert_eq!(&ask(body)["choices"], expected, "{body}"));
        }
    });
    served.wait_for("samara_running_sequences", 0.0);
    let steps = served.metric("samara_batch_size_count");
    let alone = served.metric(r#"samara_batch_size_bucket{le="1"}"#);
    assert!(steps > alone, "nothing ran together: {steps} steps, {alone} of one sequence");
}

#[test]
fn a_request_that_breaks_takes_no_other_down() {
    let Some(gpu) = common::gpu() else { return };
    let checkpoint = Tiny::with_bad_token(128).open().unwrap();
    let bad = checkpoint.config().vocab_size - 1;
    let model = Model::from_checkpoint(&checkpoint, gpu, LoadOptions::default()).unwrap();
    let served = Served::start_with(&model, options());
    let body = |prompt: Vec<usize>, scored: bool| {
        let mut body = json!({"prompt": prompt, "temperature": 0, "max_tokens": 100});
        if scored {
            (body["echo"], body["logprobs"]) = (json!(true), json!(1));
        }
        body
    };
    let good: Vec<Value> = (0..8).map(|index| body(vec![1, 5 + index, 9], index.is_multiple_of(2))).collect();
    let expected: Vec<Value> =
        good.iter().map(|body| served.complete(body).ok()["choices"].clone()).collect();
    for _ in 0..3 {
        thread::scope(|scope| {
            for (index, (good, expected)) in good.iter().zip(&expected).enumerate() {
                let served = &served;
                scope.spawn(move || assert_eq!(&served.complete(good).ok()["choices"], expected, "{good}"));
                // Some break when they are scored, some when they are read.
                let body = body(vec![1, bad, 5 + index], index.is_multiple_of(2));
                scope.spawn(move || served.complete(&body).refused(500, &["logits at position", "numbers"]));
            }
        });
    }
    served.get("/health").ok();
    served.wait_for("samara_running_sequences", 0.0);
    assert_eq!(served.metric("samara_queue_depth"), 0.0);
}

#[test]
fn what_cannot_be_answered_is_refused_by_name() {
    if !has_gpu() {
        return;
    }
    let served = Served::start(Options { body_bytes: 4000, prompts: 3, max_tokens: Some(400), ..options() });
    let post = |body: &str| served.post("/v1/completions", body);
    for nonsense in ["{\"prompt\": ", "", "{\"prompt\": \"a\"} {}", "\u{0}\u{1}", "{\"prompt\": \"\\ud800\"}"]
    {
        post(nonsense).refused(400, &["the body of the request is not JSON"]);
    }
    post("[1]").refused(400, &["the body of the request"]);
    let long_stop = ["ok".to_owned(), "a".repeat(257)];
    let cases: [(Value, u16, &str, &[&str]); 25] = [
        (json!({}), 400, "", &["missing field `prompt`"]),
        (json!({"prompt": "a", "max_token": 3}), 400, "", &["max_token"]),
        (json!({"prompt": "a", "max_tokens": "3"}), 400, "", &["`max_tokens`", "string"]),
        (json!({"prompt": "a", "max_tokens": -3}), 400, "", &["`max_tokens`", "-3"]),
        (json!({"prompt": "a", "max_tokens": 401}), 400, "max_tokens", &["401", "400"]),
        (json!({"prompt": "a", "stream_options": {"x": 1}, "stream": true}), 400, "", &["stream_options"]),
        (json!({"prompt": "a", "stream_options": {}}), 400, "stream_options", &["stream"]),
        (json!({"prompt": "a", "model": "gpt"}), 404, "model", &["gpt", "demo"]),
        (json!({"prompt": "a", "n": 2}), 400, "n", &["`n` is 2"]),
        (json!({"prompt": "a", "best_of": 3}), 400, "best_of", &["3"]),
        (json!({"prompt": "a", "presence_penalty": 0.5}), 400, "presence_penalty", &["0.5"]),
        (json!({"prompt": "a", "frequency_penalty": -1}), 400, "frequency_penalty", &["-1"]),
        (json!({"prompt": "a", "logit_bias": {"50": 1}}), 400, "logit_bias", &["logit_bias"]),
        (json!({"prompt": "a", "suffix": "b"}), 400, "suffix", &["\"b\""]),
        (json!({"prompt": "a", "temperature": -1}), 400, "temperature", &["-1"]),
        (json!({"prompt": "a", "top_p": 0}), 400, "top_p", &["top_p"]),
        (json!({"prompt": "a", "logprobs": 6}), 400, "logprobs", &["6", "5"]),
        (json!({"prompt": "a", "stop": ["1", "2", "3", "4", "5"]}), 400, "stop", &["5", "4"]),
        (json!({"prompt": "a", "stop": ""}), 400, "stop", &["empty"]),
        (json!({"prompt": "a", "stop": long_stop}), 400, "stop", &["257 bytes", "256"]),
        (json!({"prompt": []}), 400, "prompt", &["empty"]),
        (json!({"prompt": [[]]}), 400, "prompt", &["empty"]),
        (json!({"prompt": [1, 2048]}), 400, "prompt", &["entry 1", "2048", "2047"]),
        (json!({"prompt": ["a", "b", "c", "d"]}), 400, "prompt", &["4", "3"]),
        (json!({"prompt": 3}), 400, "prompt", &["`prompt`"]),
    ];
    for (body, status, param, parts) in cases {
        let error = served.complete(&body).refused(status, parts);
        assert_eq!(error["type"], "invalid_request_error");
        assert_eq!(error["param"].as_str().unwrap_or_default(), param, "{body}");
    }
    let long = json!({"prompt": vec![5; 500], "max_tokens": 13});
    let error = served.complete(&long).refused(400, &["500 tokens", "13", "513", "512"]);
    assert_eq!(error["code"], "context_length_exceeded");
    post(&format!("{{\"prompt\": \"{}\"}}", "a".repeat(5000))).refused(413, &["4000"]);
    served.complete(&json!({"prompt": "a", "stop": "a".repeat(256), "max_tokens": 1})).ok();
    // Neutral values are accepted.
    let harmless = json!({
        "prompt": "a", "max_tokens": 1, "user": "someone", "n": 1, "best_of": 1, "presence_penalty": 0,
        "frequency_penalty": 0.0, "logit_bias": null, "suffix": null, "stop": null, "logprobs": null, "top_k": -1,
    });
    served.complete(&harmless).ok();
    assert_eq!(served.metric(r#"samara_requests_total{path="/v1/completions",status="413"}"#), 1.0);
}

#[test]
fn a_full_queue_refuses_and_later_takes_again() {
    if !has_gpu() {
        return;
    }
    let served = Served::start(Options { sequences: 1, queue: 2, ..options() });
    let body = json!({"prompt": "The Fox", "max_tokens": 400, "temperature": 0, "stream": true});
    let mut running = served.stream(&body);
    running.next().unwrap();
    let two = json!({"prompt": ["The Wolf", "The Crow"], "max_tokens": 1, "temperature": 0});
    thread::scope(|scope| {
        let waiting = scope.spawn(|| served.complete(&two).ok());
        served.wait_for("samara_queue_depth", 2.0);
        let reply = served.complete(&json!({"prompt": "The Ant"}));
        let error = reply.refused(429, &["queue is full", "0 of its 2"]);
        assert_eq!([&error["type"], &error["code"]], ["rate_limit_error", "queue_full"]);
        assert_eq!(reply.headers["retry-after"], "1");
        drop(running);
        assert_eq!(waiting.join().unwrap()["choices"].as_array().unwrap().len(), 2);
    });
    served.complete(&json!({"prompt": "The Ant", "max_tokens": 1})).ok();
    assert_eq!(served.metric("samara_queue_depth"), 0.0);
}

#[test]
fn who_leaves_frees_the_slot() {
    if !has_gpu() {
        return;
    }
    let served = Served::start(Options { sequences: 1, ..options() });
    let body = json!({"prompt": "The Fox", "max_tokens": 500, "temperature": 0, "stream": true});
    let mut stream = served.stream(&body);
    stream.next().unwrap();
    served.wait_for("samara_running_sequences", 1.0);
    drop(stream);
    served.wait_for("samara_running_sequences", 0.0);
    assert_eq!(served.metric("samara_cancelled_sequences_total"), 1.0);
    assert!(served.metric("samara_generated_tokens_total") < 499.0);
    // Without a stream too, before the first byte of the answer.
    let mut connection = TcpStream::connect(served.address).unwrap();
    let body = json!({"prompt": "The Fox", "max_tokens": 500, "temperature": 0}).to_string();
    let head = format!("POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len());
    connection.write_all((head + &body).as_bytes()).unwrap();
    served.wait_for("samara_running_sequences", 1.0);
    drop(connection);
    served.wait_for("samara_cancelled_sequences_total", 2.0);
    served.wait_for(r#"samara_requests_total{path="/v1/completions",status="499"}"#, 1.0);
}

#[test]
fn a_text_that_no_context_holds_is_refused_before_it_is_read() {
    if !has_gpu() {
        return;
    }
    let served = Served::start(Options { context: Some(8), ..options() });
    let vocabulary = tokenizer();
    let longest = (0..vocabulary.vocab_size() as u32)
        .map(|id| vocabulary.id_to_token(id).map_or(0, |token| token.len()))
        .max()
        .unwrap();
    let most = 8 * longest;
    let ask = |bytes: usize| served.complete(&json!({"prompt": "a".repeat(bytes), "max_tokens": 1}));
    let error = ask(most + 1).refused(400, &[&format!("{} bytes", most + 1), "8 tokens", &most.to_string()]);
    assert_eq!(error["code"], "context_length_exceeded");
    // A text short enough for the limit is tokenized, and its tokens counted.
    ask(most).refused(400, &["the prompt has", "8"]);
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody() {
    if !has_gpu() {
        return;
    }
    let write_timeout = Duration::from_millis(100);
    let served = Served::start(Options { sequences: 8, write_timeout, ..options() });
    // Some 8 MB, as each token of a prompt is listed with five others: far more than the server's end of a connection
    // holds, and its client has room for a few thousand bytes.
    let prompt =
        |number: usize| (0..480).map(move |i| if i == 0 { 1 } else { 3 + (number * 131 + i * 37) % 2000 });
    let prompts: Vec<Vec<usize>> = (0..64).map(|number| prompt(number).collect()).collect();
    let body = json!({
        "prompt": prompts, "max_tokens": 30, "temperature": 0, "stream": true, "logprobs": 5, "echo": true,
    });
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(2048).unwrap();
    socket.connect(&served.address.into()).unwrap();
    let mut lazy = TcpStream::from(socket);
    let body = body.to_string();
    let head = format!("POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len());
    lazy.write_all((head + &body).as_bytes()).unwrap();
    served.wait_for("samara_connections", 2.0);
    let quick = json!({"prompt": "The Wolf", "max_tokens": 20, "temperature": 0});
    let (expected, _) = alone("The Wolf", 20, SamplerOptions::default());
    for _ in 0..3 {
        assert_eq!(text(&served.complete(&quick).ok()), expected);
    }
    // Only the connection that asks is left, and what was begun for the other has ended.
    served.wait_for("samara_connections", 1.0);
    served.wait_for("samara_running_sequences", 0.0);
    served.wait_for("samara_queue_depth", 0.0);
    assert!(served.metric("samara_cancelled_sequences_total") > 0.0);
    // What had been sent ends before the answer does.
    let mut received = Vec::new();
    lazy.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    if let Err(error) = lazy.read_to_end(&mut received) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    assert!(received.starts_with(b"HTTP/1.1 200") && !received.ends_with(b"0\r\n\r\n"));
}

#[test]
fn a_client_that_does_not_finish_is_not_waited_for() {
    if !has_gpu() {
        return;
    }
    let short = Duration::from_millis(300);
    let served = Served::start(Options { read_timeout: short, connections: 1, ..options() });
    let answer = |sent: &str| {
        let mut connection = TcpStream::connect(served.address).unwrap();
        connection.write_all(sent.as_bytes()).unwrap();
        let mut answer = String::new();
        let start = Instant::now();
        connection.read_to_string(&mut answer).unwrap();
        assert!(start.elapsed() < 20 * short);
        answer
    };
    // No head, half a head, half a body: each frees the only connection for the next.
    assert_eq!(answer(""), "");
    answer("POST /v1/completions HTTP/1.1\r\nhost");
    let slow =
        answer("POST /v1/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 9\r\n\r\n{");
    assert!(slow.starts_with("HTTP/1.1 408"), "{slow}");
    assert!(answer("nonsense\r\n\r\n").starts_with("HTTP/1.1 400"));
    served.get("/health").ok();
}

#[test]
fn a_server_that_stops_finishes_what_it_began() {
    if !has_gpu() {
        return;
    }
    let mut served = Served::start(Options { sequences: 1, ..options() });
    let body = json!({"prompt": "The Fox", "max_tokens": 100, "temperature": 0, "stream": true});
    let mut stream = served.stream(&body);
    let first = stream.next().unwrap();
    let (whole, _) = alone("The Fox", 100, SamplerOptions::default());
    thread::scope(|scope| {
        let one = json!({"prompt": "The Wolf", "max_tokens": 3, "temperature": 0});
        let waiting =
            served.stream(&json!({"prompt": "The Wolf", "max_tokens": 3, "temperature": 0, "stream": true}));
        served.stop();
        let address = served.address;
        let start = Instant::now();
        while TcpStream::connect(address).is_ok() {
            assert!(start.elapsed() < Duration::from_secs(20), "it still accepts");
            thread::sleep(Duration::from_millis(5));
        }
        // The one that runs and the one that waits are both answered.
        let rest = scope.spawn(|| stream.whole());
        let waited = waiting.whole();
        assert_eq!(text(&waited), alone("The Wolf", 3, SamplerOptions::default()).0, "{one}");
        assert_eq!(format!("{}{}", text(&first), text(&rest.join().unwrap())), whole);
    });
    served.join().unwrap();
}

#[test]
fn a_server_that_stops_waits_only_so_long() {
    if !has_gpu() {
        return;
    }
    let served = Served::start(Options { drain: Duration::from_millis(50), ..options() });
    let body = json!({"prompt": "The Fox", "max_tokens": 500, "temperature": 0, "stream": true});
    let mut stream = served.stream(&body);
    stream.next().unwrap();
    let start = Instant::now();
    served.join().unwrap();
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn limits_under_which_nothing_runs_are_refused() {
    for (args, parts) in [
        (vec!["--sequences", "0"], ["--sequences 0", "1 to 64"]),
        (vec!["--sequences", "65"], ["--sequences 65", "1 to 64"]),
        (vec!["--queue", "0"], ["--queue 0", "1 to 1048576"]),
        (vec!["--prompts", "1048577"], ["--prompts 1048577", "1 to 1048576"]),
        (vec!["--connections", "18446744073709551615"], ["--connections 18446744073709551615", "1048576"]),
        (vec!["--body-bytes", "2000000000"], ["--body-bytes 2000000000", "1073741824"]),
        (vec!["--patience", "0"], ["--patience 0", "1 to 86400"]),
        (vec!["--patience", "86401"], ["--patience 86401", "1 to 86400"]),
        (vec!["--drain", "18446744073709551615"], ["--drain 18446744073709551615", "0 to 86400"]),
        (vec!["-m", "synthetic:270m"], ["synthetic:270m", "--tokenizer"]),
    ] {
        refused(&program::run(&[&["serve"], &args[..]].concat()), 2, &parts);
    }
}

#[cfg(unix)]
#[test]
fn the_program_serves_until_a_signal_stops_it() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    if !has_gpu() {
        return;
    }
    for signal in ["TERM", "INT"] {
        let mut child =
            program::samara().args(["serve", "--port", "0", "-q"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").unwrap();
        let health = ureq::get(format!("{url}/health")).call().unwrap().body_mut().read_to_string().unwrap();
        assert_eq!(health, r#"{"status":"ready"}"#);
        // The address is taken now.
        let port = url.rsplit(':').next().unwrap();
        refused(&program::run(&["serve", "--port", port, "-q"]), 1, &["listen on", port]);
        let killed = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

#[cfg(unix)]
#[test]
fn a_second_signal_stops_the_program_at_once() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    if !has_gpu() {
        return;
    }
    for signal in ["TERM", "INT"] {
        let mut program = program::samara();
        program.args(["serve", "--port", "0", "-q", "--patience", "600", "--drain", "600"]);
        let mut child = program.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://").unwrap();
        // A request that is not sent whole is one that the server waits for; the answer says that it has begun.
        let mut half = TcpStream::connect(address).unwrap();
        let head = "POST /tokenize HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n";
        half.write_all(head.as_bytes()).unwrap();
        let mut begun = [0; 12];
        half.read_exact(&mut begun).unwrap();
        assert_eq!(&begun, b"HTTP/1.1 100");
        let kill = || Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
        assert!(kill().success());
        let start = Instant::now();
        while TcpStream::connect(address).is_ok() {
            assert!(start.elapsed() < Duration::from_secs(20), "it still accepts");
            thread::sleep(Duration::from_millis(5));
        }
        assert!(kill().success());
        let start = Instant::now();
        assert_eq!(child.wait().unwrap().code(), Some(130));
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}
