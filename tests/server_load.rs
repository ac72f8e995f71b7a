//! `samara serve` under load: 64 clients at once for `SAMARA_LOAD_SECONDS` (10), some of whom leave, some of whom
//! send nonsense. Every whole answer is what the same request got alone; nothing leaks, nothing stalls.
//!
//! `SAMARA_LOAD_SECONDS=600 cargo test --release --test server_load -- --nocapture` prints latencies and rates.
#![cfg(all(feature = "server", target_os = "linux"))]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::has_gpu;
use common::program::samara;
use common::serving::Client;
use serde_json::{Value, json};

const CLIENTS: usize = 64;
const SEQUENCES: &str = "32";
const BODY_BYTES: usize = 16 << 10;
/// How far resident memory may grow once every kind of request was served for a quarter of the time, however long it
/// is: steps of other rows, splits and scores may still be built for the first time.
const GROWTH_KIB: u64 = 32 << 10;
/// Average memory that an answer may leave allocated.
const GROWTH_OF_ANSWER_KIB: u64 = 1;
/// Longest silence of a stream that has begun. The time to the first token depends on the requests before it.
const STALL: Duration = Duration::from_secs(20);

/// What every client saw.
#[derive(Default)]
struct Seen {
    /// Seconds to the first chunk, between chunks, and to the end.
    first: Vec<f64>,
    gaps: Vec<f64>,
    whole: Vec<f64>,
    tokens: u64,
    left: usize,
    refused: usize,
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.first.extend(other.first);
        self.gaps.extend(other.gaps);
        self.whole.extend(other.whole);
        self.tokens += other.tokens;
        self.left += other.left;
        self.refused += other.refused;
    }

    /// Prints percentiles and the rate.
    fn report(&mut self, title: &str, time: Duration) {
        let rate = self.tokens as f64 / time.as_secs_f64();
        let answers = self.whole.len() as f64 / time.as_secs_f64();
        eprintln!("{title}: {rate:.0} tok/s, {answers:.1} whole answers/s in {:.1} s", time.as_secs_f64());
        for (what, seconds) in
            [("first token", &mut self.first), ("next token", &mut self.gaps), ("whole", &mut self.whole)]
        {
            seconds.sort_by(f64::total_cmp);
            let at = |share: f64| 1e3 * seconds[((seconds.len() - 1) as f64 * share) as usize];
            let [p50, p90, p99, most] = [0.5, 0.9, 0.99, 1.0].map(at);
            eprintln!("  {what:<12} p50 {p50:8.1}  p90 {p90:8.1}  p99 {p99:8.1}  most {most:8.1} ms");
        }
    }
}

/// The program, killed with the test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Program {
    fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

/// Numbers that look random, the same in every run.
struct Draw(u64);

impl Draw {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % most as u64) as usize
    }
}

/// Requests of mixed lengths, drawn and greedy, with and without stop strings.
fn requests() -> Vec<Value> {
    let mut draw = Draw(5);
    let beginnings = ["The Fox", "A Wolf and a Lamb", "The Crow was", "An Ant", "Once a Lion met a Mouse"];
    let request = |index: usize| {
        let prompt = beginnings[index % beginnings.len()]
            .repeat(1 + draw.below(if index.is_multiple_of(6) { 40 } else { 5 }));
        let max_tokens = 1 + draw.below(if index.is_multiple_of(5) { 160 } else { 40 });
        let mut request = json!({
            "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": true,
            "stream_options": {"include_usage": true},
        });
        match index % 7 {
            0 => request["stop"] = json!(["\n\n", " so"]),
            1 => (request["temperature"], request["seed"]) = (json!(0.9), json!(index)),
            2 => request["logprobs"] = json!(2),
            3 => (request["echo"], request["logprobs"]) = (json!(true), json!(1)),
            4 => (request["stream"], request["stream_options"]) = (json!(false), Value::Null),
            5 => request["prompt"] = json!([request["prompt"], beginnings[index % 3]]),
            _ => {}
        }
        request
    };
    (0..32).map(request).collect()
}

/// Reads a stream to its end, and notes when its parts came.
fn complete(client: &Client, request: &Value, seen: &mut Seen) -> Value {
    let start = Instant::now();
    if request["stream"] == false {
        let answer = client.complete(request).ok();
        seen.whole.push(start.elapsed().as_secs_f64());
        seen.tokens += answer["usage"]["completion_tokens"].as_u64().unwrap();
        return answer["choices"].clone();
    }
    let (mut last, mut chunks): (Option<Instant>, Vec<Value>) = (None, Vec::new());
    for chunk in client.stream(request) {
        let now = Instant::now();
        match last {
            None => seen.first.push((now - start).as_secs_f64()),
            Some(last) => seen.gaps.push((now - last).as_secs_f64()),
        }
        last = Some(now);
        chunks.push(chunk);
    }
    seen.whole.push(start.elapsed().as_secs_f64());
    let answer = common::serving::put_together(chunks.into_iter());
    seen.tokens += answer["usage"]["completion_tokens"].as_u64().unwrap();
    answer["choices"].clone()
}

/// Sends one request after the other until `end`.
fn one_client(client: &Client, number: usize, end: Instant, asked: &[(Value, Value)]) -> Seen {
    let (mut draw, mut seen) = (Draw(number as u64), Seen::default());
    // However slow the machine is, one whole answer.
    while Instant::now() < end || seen.whole.is_empty() {
        let (request, expected) = &asked[draw.below(asked.len())];
        match draw.below(20) {
            0 | 1 => {
                // Leaves after a few chunks, or at once.
                let mut request = request.clone();
                request["stream"] = true.into();
                client.stream(&request).take(draw.below(6)).for_each(drop);
                seen.left += 1;
            }
            2 => {
                let nonsense =
                    ["{\"prompt\": ", "{\"prompt\": 7}", "{\"prompt\": \"a\", \"max_tokens\": 9999}"];
                client.post("/v1/completions", nonsense[draw.below(3)]).refused(400, &[]);
                seen.refused += 1;
            }
            3 => {
                let body = json!({"prompt": "a".repeat(BODY_BYTES)}).to_string();
                client.post("/v1/completions", &body).refused(413, &[]);
                seen.refused += 1;
            }
            _ => assert_eq!(&complete(client, request, &mut seen), expected, "{request}"),
        }
    }
    seen
}

#[test]
fn many_clients_at_once_get_what_each_gets_alone() {
    if !has_gpu() {
        return;
    }
    let seconds = std::env::var("SAMARA_LOAD_SECONDS").map_or(10, |seconds| seconds.parse().unwrap());
    let time = Duration::from_secs(seconds);
    let bytes = BODY_BYTES.to_string();
    let mut program = samara();
    program.args(["serve", "--port", "0", "-q", "--sequences", SEQUENCES, "--body-bytes", &bytes]);
    let mut program = Program(program.stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(program.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let client = Client::new(line.trim().strip_prefix("listening on ").unwrap());

    // Alone, one after the other: what everyone is to get, and how fast one client is.
    let (mut alone, start) = (Seen::default(), Instant::now());
    let asked: Vec<(Value, Value)> = requests()
        .into_iter()
        .map(|request| {
            let answer = complete(&client, &request, &mut alone);
            (request, answer)
        })
        .collect();
    alone.report("one client", start.elapsed());

    // What a driver does at the first use of a step is not measured.
    let begun = Instant::now();
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (client, asked) = (&client, &asked);
            scope.spawn(move || one_client(client, number, begun, asked));
        }
    });
    eprintln!("the first requests of {CLIENTS} clients: {:.1} s", begun.elapsed().as_secs_f64());

    let (start, warm) = (Instant::now(), AtomicUsize::new(0));
    let mut seen = Seen::default();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (client, asked) = (&client, &asked);
                scope.spawn(move || one_client(client, CLIENTS + number, start + time, asked))
            })
            .collect();
        thread::sleep(time / 4);
        warm.store(program.resident_kib() as usize, Ordering::Relaxed);
        clients.into_iter().for_each(|client| seen.add(client.join().unwrap()));
    });
    let took = start.elapsed();
    let (left, refused) = (seen.left, seen.refused);
    seen.report(&format!("{CLIENTS} clients, {left} streams left, {refused} requests refused"), took);

    for gauge in ["samara_running_sequences", "samara_queue_depth"] {
        client.wait_for(gauge, 0.0);
    }
    // The connection that asks is one.
    client.wait_for("samara_connections", 1.0);
    let (before, after) = (warm.into_inner() as u64, program.resident_kib());
    eprintln!("resident: {} MiB after a quarter, {} MiB at the end", before >> 10, after >> 10);
    let most = before + GROWTH_KIB + GROWTH_OF_ANSWER_KIB * seen.whole.len() as u64;
    assert!(after < most, "resident memory grew from {before} to {after} KiB");
    assert!(client.metric("samara_cancelled_sequences_total") > 0.0);
    assert!(left > 0 && refused > 0 && seen.whole.len() >= CLIENTS);
    let longest = *seen.gaps.last().unwrap();
    assert!(longest < STALL.as_secs_f64(), "a stream was silent for {longest} s");

    let killed = Command::new("kill").args(["-s", "TERM", &program.0.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(program.0.wait().unwrap().code(), Some(0));
}
