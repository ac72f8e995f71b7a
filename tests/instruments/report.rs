//! `samara report`: a page that is self-contained and loads nothing.

use std::process::Output;

use crate::common::documents::{self, Card};
use crate::common::program;
use samara::instruments::document::{Bench, Document};
use samara::instruments::report::report;
use samara::instruments::samples::Samples;
use samara::model::Size;
use samara::quant::Format;

const SECTIONS: [&str; 5] =
    ["throughput", "throughput-against-depth", "roofline", "time-by-layer", "ablation"];

fn named(document: Document) -> Vec<(String, Document)> {
    vec![("one.json".to_owned(), document)]
}

/// The sections of a page.
fn sections(page: &str) -> Vec<&'static str> {
    SECTIONS.into_iter().filter(|name| page.contains(&format!("<section id=\"{name}\">"))).collect()
}

#[test]
fn every_kind_of_document_has_its_sections() {
    let card = Card::large();
    let bench = |depths: &[usize]| {
        Document::Bench(documents::bench(&[&card], &[Size::M270], &[Format::Q4_0], depths))
    };
    let profile = Document::Profile(documents::profile(&card, Size::M270, Format::Q4_0));
    let ablation = Document::Ablation(documents::ablation(&card, Size::M270, Format::Q4_0));
    let kernels = Document::Kernels(documents::kernels(&card));
    let of = |document| sections(&report(&named(document)));
    assert_eq!(of(bench(&[0])), ["throughput"]);
    assert_eq!(of(bench(&[0, 512])), ["throughput", "throughput-against-depth"]);
    assert_eq!(of(profile), ["roofline", "time-by-layer"]);
    assert_eq!(of(ablation), ["ablation"]);
    assert_eq!(of(kernels), ["roofline"]);
    assert_eq!(of(Document::Bench(Bench { version: 1, rows: Vec::new() })), [""; 0]);
    assert_eq!(sections(&report(&documents::everything())), SECTIONS);
}

/// Every text between two others.
fn between<'a>(page: &'a str, start: &str, end: &str) -> Vec<&'a str> {
    page.split(start).skip(1).map(|rest| rest.split_once(end).unwrap().0).collect()
}

#[test]
fn the_page_refers_to_nothing_outside_itself() {
    let page = report(&documents::everything());
    let rest = page.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
    for part in ["http", "//", "url(", "@import", "<script", "<link", "<img", "<iframe", " src=", " onload="]
    {
        assert!(!rest.contains(part), "the page holds `{part}`");
    }
    let ids = between(&page, " id=\"", "\"");
    let anchors = between(&page, " href=\"", "\"");
    assert!(!anchors.is_empty());
    for anchor in anchors {
        assert!(ids.contains(&anchor.strip_prefix('#').unwrap()), "{anchor}");
    }
}

#[test]
fn every_chart_is_named_described_and_followed_by_its_numbers() {
    let page = report(&documents::everything());
    let mut ids = between(&page, " id=\"", "\"");
    let figures = between(&page, "<figure ", "</figure>");
    // Decode and prefill; at depth, on each of three cards; two rooflines; two steps of two profiles; one ablation.
    assert_eq!(figures.len(), 2 + 2 * 3 + 2 + 2 * 2 + 1);
    for figure in figures {
        assert_eq!(figure.matches("role=\"img\"").count(), 1);
        for id in between(figure, "aria-labelledby=\"", "\"")[0].split(' ') {
            assert!(ids.contains(&id), "{id}");
        }
        assert!(figure.contains("<desc ") && figure.contains("<tbody><tr>") && figure.contains("<h3>"));
    }
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "no two elements share an id");
    assert!(page.starts_with("<!DOCTYPE html><html lang=\"en\">"));
}

#[test]
fn numbers_of_the_documents_are_on_the_page() {
    let card = Card::large();
    let mut bench = documents::bench(&[&card], &[Size::M270], &[Format::Q4_0], &[0, 512]);
    bench.rows[0].tok_s = Samples::new(vec![1234.0, 1235.0, 1239.0]);
    let page = report(&named(Document::Bench(bench)));
    let row = "<td class=\"number\">1235</td><td class=\"number\">1234</td><td class=\"number\">1239</td>";
    assert!(page.contains(row));
    assert!(page.contains("copy ceiling</th><td>2.60 TB/s</td>"));

    let profile = documents::profile(&card, Size::M270, Format::Q4_0);
    let step = &profile.steps[1];
    let layer: f64 =
        step.dispatches.iter().filter(|d| d.label.starts_with("layer.3/")).map(|d| d.ns.median()).sum();
    let calls =
        step.dispatches.iter().filter(|d| d.kernel == "matvec_add" && d.shape == "1280 x 1280, q4_0").count();
    assert!(calls > 1);
    let page = report(&named(Document::Profile(profile.clone())));
    let whole = format!(">{:.2}</td>", layer / 1e3);
    assert!(page.contains(&whole), "{whole}");
    let point = format!(
        "<td>matvec_add</td><td>1280 x 1280, q4_0</td><td>decode of 1, synthetic:270M q4_0, kv f16</td><td class=\"number\">{calls}</td>"
    );
    assert!(page.contains(&point));
    for kernel in ["norm_matmul", "norm_matvec", "attention", "qk_norm_rope_attention", "embed", "argmax"] {
        assert!(page.contains(&format!("</svg>{kernel}</li>")), "{kernel} is in the legend");
    }
}

#[test]
fn software_adapters_and_replaced_shaders_are_announced() {
    let of =
        |card: &Card| report(&named(Document::Ablation(documents::ablation(card, Size::M270, Format::Q4_0))));
    assert!(!of(&Card::large()).contains("class=\"warning\""));
    assert!(of(&Card::software()).contains("<strong>Software adapter: </strong>llvmpipe"));
    let mut replaced = Card::large();
    replaced.environment.replaced_shaders.push("product/rows.wgsl".to_owned());
    assert!(of(&replaced).contains("<strong>Replaced shaders: </strong>Invented X100"));
}

#[test]
fn runs_on_one_adapter_are_named_by_what_differs() {
    let mut plain = Card::large();
    plain.environment.tier = "plain".to_owned();
    let bench = documents::bench(&[&Card::large(), &plain], &[Size::M270], &[Format::Q4_0], &[0]);
    let page = report(&named(Document::Bench(bench)));
    assert!(
        page.contains("Invented X100 80GB (tier subgroup)")
            && page.contains("Invented X100 80GB (tier plain)")
    );
    assert!(page.contains("OpenELM on Invented X100 80GB."));
}

#[test]
fn whatever_a_file_holds_is_escaped() {
    let evil = "<script>alert('x')</script>\"'&</svg>";
    let mut card = Card::large();
    for field in [&mut card.environment.adapter, &mut card.environment.driver, &mut card.environment.tier] {
        *field = evil.to_owned();
    }
    card.environment.replaced_shaders.push(evil.to_owned());
    let mut bench = documents::bench(&[&card], &[Size::M270], &[Format::Q4_0], &[0, 512]);
    bench.rows.iter_mut().for_each(|row| {
        row.subject.model = evil.to_owned();
        row.subject.format = evil.to_owned();
        row.test = evil.to_owned();
    });
    let mut profile = documents::profile(&card, Size::M270, Format::Q4_0);
    profile.steps.iter_mut().flat_map(|step| &mut step.dispatches).for_each(|dispatch| {
        dispatch.label = format!("{evil}/{}", dispatch.label);
        dispatch.kernel = evil.to_owned();
        dispatch.shape = evil.to_owned();
    });
    let mut ablation = documents::ablation(&card, Size::M270, Format::Q4_0);
    ablation.rows.iter_mut().for_each(|row| row.name = evil.to_owned());
    let documents = [Document::Bench(bench), Document::Profile(profile), Document::Ablation(ablation)];
    let page = report(&documents.map(|document| (evil.to_owned(), document)));
    assert!(!page.contains("<script"));
    assert_eq!(page.matches("<svg ").count(), page.matches("</svg>").count());
    // As text of the page and of a drawing.
    assert!(page.contains("<td>&lt;script&gt;alert('x')&lt;/script&gt;&quot;'&amp;&lt;/svg&gt;</td>"));
    assert!(
        page.contains("\n&lt;script&gt;alert(&apos;x&apos;)&lt;/script&gt;&quot;&apos;&amp;&lt;/svg&gt;\n")
    );
    assert_eq!(sections(&page), SECTIONS);
}

#[test]
fn numbers_that_make_no_sense_break_nothing() {
    let mut documents = documents::everything();
    let values = [0.0, -1.0, 1e300, f64::MIN_POSITIVE];
    for value in values {
        let samples = Samples::new(vec![value]);
        for (_, document) in &mut documents {
            match document {
                Document::Bench(bench) => bench.rows.iter_mut().for_each(|row| {
                    row.tok_s = samples.clone();
                    row.ceilings.copy_gb_s = value;
                }),
                Document::Profile(profile) => {
                    profile.ceilings.fma_gflop_s = value;
                    profile.ceilings.copy_gb_s = value;
                    let dispatches = profile.steps.iter_mut().flat_map(|step| &mut step.dispatches);
                    dispatches.for_each(|dispatch| {
                        dispatch.ns = samples.clone();
                        (dispatch.read, dispatch.written) = (0, 0);
                    });
                }
                Document::Kernels(kernels) => {
                    kernels.rows.iter_mut().for_each(|row| row.ns = samples.clone())
                }
                Document::Ablation(ablation) => {
                    ablation.rows.iter_mut().for_each(|row| row.decode_tok_s = samples.clone());
                }
            }
        }
        let page = report(&documents);
        assert_eq!(sections(&page), SECTIONS, "{value}");
        assert!(!page.contains("NaN") && !page.contains("inf<"), "{value}");
    }
}

fn run(args: &[&str]) -> Output {
    program::run(&[&["report"], args].concat())
}

#[test]
fn the_command_writes_the_page_or_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (bench, broken, page) = (place("bench.json"), place("broken.json"), place("page.html"));
    let document = documents::bench(&[&Card::software()], &[Size::M270], &[Format::Q4_0], &[0]);
    std::fs::write(&bench, Document::Bench(document).to_json()).unwrap();
    std::fs::write(&broken, r#"{"kind": "bench", "version": 9, "rows": []}"#).unwrap();

    for (args, code, part) in [
        (&[][..], 2, "<FILE>"),
        (&[&bench[..], &broken, "-o", &page], 2, "version 9"),
        (&["no/such.json", "-o", &page], 1, "no/such.json"),
        (&[&bench, "-o", &place("none/page.html")], 1, "none/page.html"),
    ] {
        let output = run(args);
        let message = program::errors(&output);
        assert_eq!(output.status.code(), Some(code), "{message}");
        assert!(message.starts_with("error: ") && message.contains(part), "{message}");
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);

    let output = run(&[&bench, "-o", &page]);
    let message = program::errors(&output);
    assert!(output.status.success() && output.stdout.is_empty(), "{message}");
    assert!(message.starts_with(&format!("wrote `{page}`: 1 result, ")), "{message}");
    let page = std::fs::read_to_string(page).unwrap();
    assert_eq!(sections(&page), ["throughput"]);
    assert!(page.contains("Software adapter"));
}
