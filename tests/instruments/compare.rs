//! `samara compare`: what counts as faster and slower, and how it is reported.

use std::path::Path;
use std::process::Output;

use crate::common::documents::{self, Card};
use crate::common::program;
use samara::instruments::compare::{Comparison, Threshold, Unit, Verdict, compare};
use samara::instruments::document::Document;
use samara::instruments::samples::Samples;
use samara::model::Size;
use samara::quant::Format;
use serde_json::Value;

fn threshold(text: &str) -> Threshold {
    text.parse().unwrap()
}

fn bench(card: Card) -> Document {
    Document::Bench(documents::bench(&[&card], &[Size::M270], &[Format::Q8_0, Format::Q4_0], &[0, 512]))
}

/// A bench whose first row's tok/s was 100 and became `after`.
fn changed(after: &[f64]) -> (Document, Document) {
    let mut before = bench(Card::large());
    let set = |document: &mut Document, values: &[f64]| {
        let Document::Bench(bench) = document else { unreachable!() };
        bench.rows[0].tok_s = Samples::new(values.to_vec());
    };
    set(&mut before, &[99.0, 100.0, 101.0]);
    let mut changed = before.clone();
    set(&mut changed, after);
    (before, changed)
}

fn counts(comparison: &Comparison) -> [usize; 5] {
    use Verdict::{Faster, OnlyA, OnlyB, Same, Slower};
    [Slower, Faster, Same, OnlyA, OnlyB].map(|verdict| comparison.count(verdict))
}

#[test]
fn a_change_counts_beyond_the_threshold_and_the_spread() {
    for (after, wanted) in [
        (&[99.0, 100.0, 101.0][..], Verdict::Same),
        (&[95.0], Verdict::Same),
        (&[94.9], Verdict::Slower),
        (&[105.0], Verdict::Same),
        (&[105.1], Verdict::Faster),
        // The median fell by a tenth, but one sample reaches into the range of the other run.
        (&[80.0, 90.0, 99.0], Verdict::Same),
        (&[80.0, 90.0, 98.9], Verdict::Slower),
        (&[101.0, 120.0, 130.0], Verdict::Same),
        (&[101.1, 120.0, 130.0], Verdict::Faster),
    ] {
        let (a, b) = changed(after);
        let comparison = compare(&a, &b, threshold("5%")).unwrap();
        let row = &comparison.rows[0];
        assert_eq!((row.verdict, row.unit), (wanted, Unit::TokensPerSecond), "{after:?}");
        assert_eq!(row.name, "synthetic:270M q8_0, kv f16, pp512");
        // The other rows did not change.
        assert_eq!(comparison.count(Verdict::Same) + usize::from(wanted != Verdict::Same), 16);
    }
}

#[test]
fn times_that_grow_are_slower() {
    let before = documents::profile(&Card::large(), Size::M270, Format::Q4_0);
    let mut after = before.clone();
    for dispatch in &mut after.steps[1].dispatches {
        if dispatch.kernel == "qk_norm_rope_attention" {
            dispatch.ns = Samples::new(dispatch.ns.values().iter().map(|ns| ns * 4.0).collect());
        }
    }
    let [before, after] = [before, after].map(Document::Profile);
    let comparison = compare(&before, &after, threshold("5%")).unwrap();
    let slower: Vec<&str> = comparison
        .rows
        .iter()
        .filter(|row| row.verdict == Verdict::Slower)
        .map(|row| row.name.as_str())
        .collect();
    // The dispatches of the step together, then the kernel; the step's whole time is unchanged.
    assert_eq!(slower[0], "decode of 1 @ 128");
    assert!(slower.len() > 1 && slower[1..].iter().all(|name| name.contains(": qk_norm_rope_attention, H ")));
    let back = compare(&after, &before, threshold("5%")).unwrap();
    assert_eq!(back.count(Verdict::Faster), slower.len());
    assert_eq!(back.count(Verdict::Slower), 0);
}

#[test]
fn dispatches_of_a_kernel_and_shape_are_summed() {
    let document = documents::profile(&Card::large(), Size::M270, Format::Q4_0);
    let step = &document.steps[1];
    let shape = "1280 x 1280, q4_0";
    let alike: Vec<_> = step.dispatches.iter().filter(|d| d.shape == shape).collect();
    assert!(alike.len() > 1);
    let document = Document::Profile(document.clone());
    let comparison = compare(&document, &document, threshold("0%")).unwrap();
    let name = format!("decode of 1 @ 128: matvec_add, {shape}");
    let row = comparison.rows.iter().find(|row| row.name == name).unwrap();
    let first: f64 = alike.iter().map(|d| d.ns.values()[0]).sum();
    assert_eq!(row.a.as_ref().unwrap().values()[0], first);
    assert_eq!(counts(&comparison), [0, 0, comparison.rows.len(), 0, 0]);
}

#[test]
fn cards_are_compared_with_a_warning_that_says_so() {
    let (a, b) = (bench(Card::large()), bench(Card::software()));
    let comparison = compare(&a, &b, threshold("5%")).unwrap();
    assert_eq!(counts(&comparison), [16, 0, 0, 0, 0]);
    let [warning] = &comparison.warnings[..] else { panic!("{:?}", comparison.warnings) };
    for part in ["Invented X100", "llvmpipe", "device `discrete GPU` against `software`"] {
        assert!(warning.contains(part), "{warning}");
    }
    assert!(compare(&a, &a, threshold("5%")).unwrap().warnings.is_empty());

    // With two cards in a run the card is part of what was measured.
    let both = documents::bench(
        &[&Card::large(), &Card::small()],
        &[Size::M270],
        &[Format::Q8_0, Format::Q4_0],
        &[0],
    );
    let comparison = compare(&a, &Document::Bench(both), threshold("5%")).unwrap();
    assert_eq!(counts(&comparison), [0, 0, 8, 8, 8]);
    assert!(comparison.rows[0].name.starts_with("Invented X100 80GB (vulkan, subgroup): synthetic:270M"));
}

#[test]
fn other_models_and_equal_names_are_distinguished() {
    let card = Card::large();
    let [a, b] = [Format::Q4_0, Format::Q8_0]
        .map(|format| Document::Ablation(documents::ablation(&card, Size::M270, format)));
    let comparison = compare(&a, &b, threshold("5%")).unwrap();
    assert_eq!(comparison.warnings.len(), 1);
    assert!(comparison.warnings[0].contains("`synthetic:270M q4_0, kv f16` against `synthetic:270M q8_0"));

    let Document::Bench(mut twice) = bench(card) else { unreachable!() };
    twice.rows.extend_from_within(..1);
    let twice = Document::Bench(twice);
    let comparison = compare(&twice, &twice, threshold("5%")).unwrap();
    assert_eq!(counts(&comparison), [0, 0, 18, 0, 0]);
    assert!(comparison.rows[16].name.ends_with("pp512 (number 2)"), "{}", comparison.rows[16].name);
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let card = Card::large();
    let kernels = Document::Kernels(documents::kernels(&card));
    let message = compare(&bench(card.clone()), &kernels, threshold("5%")).unwrap_err().to_string();
    assert!(message.contains("kinds `bench` and `kernels`"), "{message}");
    let other = documents::bench(&[&card], &[Size::M450], &[Format::Q8_0], &[0]);
    let message = compare(&bench(card), &Document::Bench(other), threshold("5%")).unwrap_err().to_string();
    assert!(message.contains("no measurement in common"), "{message}");
}

#[test]
fn thresholds_are_percentages_or_fractions() {
    for (text, shown) in
        [("5%", "5%"), ("0.05", "5%"), ("7 %", "7%"), ("0", "0%"), ("100%", "100%"), ("0.5%", "0.5%")]
    {
        assert_eq!(threshold(text).to_string(), shown);
    }
    for text in ["5", "1", "-1%", "101%", "nan%", "inf", "%", "", "five"] {
        let message = text.parse::<Threshold>().unwrap_err().to_string();
        assert!(message.contains(&format!("`{text}`")) && message.contains("like 5%"), "{message}");
    }
}

fn write(directory: &Path, name: &str, document: &Document) -> String {
    let path = directory.join(name);
    std::fs::write(&path, document.to_json()).unwrap();
    path.to_str().unwrap().to_owned()
}

fn run(args: &[&str]) -> Output {
    program::run(&[&["compare"], args].concat())
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_regression_exits_with_1_and_the_table() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = changed(&[80.0, 81.0, 82.0]);
    let [a, b] = [("a.json", a), ("b.json", b)].map(|(name, d)| write(directory.path(), name, &d));

    let output = run(&[&a, &b]);
    let (table, message) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    let row = "| synthetic:270M q8_0, kv f16, pp512 | 100 ± 1 | 81.0 ± 1.0 | tok/s | -19.0% | slower  |\n";
    assert!(table.contains(row), "{table}");
    assert!(
        table.contains("1 slower, 0 faster, 15 the same; 0 only in A, 0 only in B; threshold 5%"),
        "{table}"
    );
    assert_eq!(message, format!("error: 1 of 16 measurements in `{b}` are slower than in `{a}`\n"));

    let output = run(&[&b, &a, "--threshold", "0.05", "-o", "json"]);
    let (json, message) = texts(&output);
    assert!(output.status.success() && message.is_empty(), "{message}");
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["kind"], &json["threshold"]), (&Value::from("bench"), &Value::from(0.05)));
    assert_eq!(json["rows"][0]["verdict"], "faster");
    assert_eq!(json["rows"][0]["a"]["median"], 81.0);

    let output = run(&[&a, &b, "--threshold", "20%"]);
    let (table, _) = texts(&output);
    assert!(output.status.success() && table.starts_with("0 slower"), "{table}");
    let (table, _) = texts(&run(&[&a, &a, "--all"]));
    assert_eq!(table.matches("| same ").count(), 16, "{table}");
}

#[test]
fn bad_input_exits_with_2() {
    let directory = tempfile::tempdir().unwrap();
    let bench = write(directory.path(), "bench.json", &bench(Card::large()));
    let kernels = Document::Kernels(documents::kernels(&Card::large()));
    let kernels = write(directory.path(), "kernels.json", &kernels);
    let broken = directory.path().join("broken.json");
    std::fs::write(&broken, "{").unwrap();
    let broken = broken.to_str().unwrap();
    for (args, part) in [
        (&[&bench[..], broken][..], "broken.json"),
        (&[&bench, "no/such.json"], "no/such.json"),
        (&[&bench, &kernels], "kinds `bench` and `kernels`"),
        (&[&bench, &bench, "--threshold", "5"], "threshold `5`"),
        (&[&bench], "<B>"),
    ] {
        let output = run(args);
        let (out, message) = texts(&output);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.starts_with("error: ") && message.contains(part), "{message}");
        assert!(out.is_empty());
    }
}
