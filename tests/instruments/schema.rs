//! The documents against their JSON schemas: those made by code, those that the program prints, and wrong ones, which
//! have to be rejected.

use std::path::{Path, PathBuf};

use crate::common::documents::{self, Card};
use crate::common::has_gpu;
use crate::common::program::{errors, run, stdout};
use jsonschema::Validator;
use samara::graph::fuse::Rule;
use samara::instruments::document::Document;
use samara::kernels::LIST;
use samara::model::Size;
use samara::quant::Format;
use serde_json::{Value, json};

const KINDS: [&str; 4] = ["bench", "profile", "ablation", "kernels"];

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("benches/schema/{name}.schema.json"))
}

fn schema(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path(name)).unwrap()).unwrap()
}

/// The validator of a kind; the schemas that it refers to are beside it.
fn validator(kind: &str) -> Validator {
    let base = format!("file://{}", path(kind).display());
    jsonschema::draft202012::options().with_base_uri(base).build(&schema(kind)).unwrap()
}

/// Fails with every path at which a document violates its schema.
fn check(document: &Value) {
    let kind = document["kind"].as_str().expect("a document has a kind");
    let errors: Vec<String> =
        validator(kind).iter_errors(document).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{kind}: {errors:#?}");
}

/// A small document of each kind.
fn samples() -> Vec<Value> {
    let card = Card::large();
    let mut kernels = documents::kernels(&card);
    kernels.rows.truncate(3);
    let mut profile = documents::profile(&card, Size::M270, Format::Q4_0);
    profile.steps.iter_mut().for_each(|step| step.dispatches.truncate(3));
    let bench = documents::bench(&[&card], &[Size::M270], &[Format::Q8_0], &[0, 512]);
    [
        Document::Bench(bench),
        Document::Profile(profile),
        Document::Ablation(documents::ablation(&card, Size::M270, Format::Q4_0)),
        Document::Kernels(kernels),
    ]
    .iter()
    .map(|document| serde_json::to_value(document).unwrap())
    .collect()
}

#[test]
fn the_schemas_are_schemas_and_describe_every_field() {
    for name in KINDS.into_iter().chain(["common", "start"]) {
        let schema = schema(name);
        assert!(jsonschema::draft202012::meta::is_valid(&schema), "{name}");
        let mut fields = 0;
        walk(&schema, &mut |value| {
            if value["additionalProperties"] == json!(false) {
                for (field, definition) in value["properties"].as_object().unwrap() {
                    assert!(definition["description"].is_string(), "{name}: {field} has no description");
                    fields += 1;
                }
            }
        });
        assert!(fields > 10, "{name} has {fields} fields");
    }
}

/// Calls `visit` with a value and everything inside it.
fn walk(value: &Value, visit: &mut impl FnMut(&Value)) {
    visit(value);
    match value {
        Value::Array(items) => items.iter().for_each(|item| walk(item, visit)),
        Value::Object(fields) => fields.values().for_each(|field| walk(field, visit)),
        _ => {}
    }
}

#[test]
fn documents_fit_their_schemas() {
    for (_, document) in documents::everything() {
        check(&serde_json::to_value(&document).unwrap());
    }
    samples().iter().for_each(check);
}

#[test]
fn the_schemas_know_the_words_of_the_program() {
    let common = schema("common");
    let formats: Vec<String> = Format::ALL.iter().map(Format::to_string).collect();
    assert_eq!(common["$defs"]["subject"]["properties"]["format"]["enum"], json!(formats));

    let mut bench = samples().swap_remove(0);
    bench["rows"][0]["subject"]["rules_off"] =
        json!(Rule::ALL.iter().map(ToString::to_string).collect::<Vec<_>>());
    check(&bench);
    let mut kernels = samples().swap_remove(3);
    for entry in LIST.iter() {
        kernels["rows"][0]["kernel"] = json!(entry.name);
        check(&kernels);
    }
}

#[test]
fn a_field_more_or_less_is_refused() {
    for document in samples() {
        let validator = validator(document["kind"].as_str().unwrap());
        let mut places = Vec::new();
        pointers(&document, String::new(), &mut places);
        assert!(places.len() >= 5, "{places:?}");
        for place in &places {
            let fields: Vec<String> =
                document.pointer(place).unwrap().as_object().unwrap().keys().cloned().collect();
            for field in fields {
                let mut less = document.clone();
                less.pointer_mut(place).unwrap().as_object_mut().unwrap().remove(&field);
                assert!(!validator.is_valid(&less), "without {place}/{field}");
            }
            let mut more = document.clone();
            more.pointer_mut(place).unwrap()["more"] = json!(1);
            assert!(!validator.is_valid(&more), "{place}/more");
        }
    }
}

/// Collects the paths of all objects; of a list, the first element is enough.
fn pointers(value: &Value, place: String, found: &mut Vec<String>) {
    match value {
        Value::Array(items) => {
            items.iter().take(1).for_each(|item| pointers(item, format!("{place}/0"), found))
        }
        Value::Object(fields) => {
            fields.iter().for_each(|(name, field)| pointers(field, format!("{place}/{name}"), found));
            found.push(place);
        }
        _ => {}
    }
}

#[test]
fn wrong_values_are_refused() {
    let [bench, profile, ablation, kernels] = [0, 1, 2, 3];
    let cases = [
        (bench, "/kind", json!("profile")),
        (bench, "/version", json!(2)),
        (bench, "/rows", json!([])),
        (bench, "/rows/0/tok_s/median", json!(0)),
        (bench, "/rows/0/tok_s/samples", json!([])),
        (bench, "/rows/0/tok_s/samples/0", json!(-1.5)),
        (bench, "/rows/0/tok_s/samples/0", json!("12")),
        (bench, "/rows/0/first_token_ms/min", json!(null)),
        (bench, "/rows/0/host_us_per_token/min", json!(-0.1)),
        (bench, "/rows/0/test", json!("pp0")),
        (bench, "/rows/0/test", json!("pp512 @ d0")),
        (bench, "/rows/0/prompt", json!(0)),
        (bench, "/rows/0/depth", json!(1.5)),
        (bench, "/rows/0/peak_bytes", json!(-1)),
        (bench, "/rows/0/bandwidth_share", json!(0)),
        (bench, "/rows/0/subject/format", json!("q5_0")),
        (bench, "/rows/0/subject/kv", json!("q4_0")),
        (bench, "/rows/0/subject/parameters", json!(0)),
        (bench, "/rows/0/subject/rules_off", json!(["a-rule", "a-rule"])),
        (bench, "/rows/0/environment/clock", json!("sundial")),
        (bench, "/rows/0/environment/device", json!("abacus")),
        (bench, "/rows/0/environment/tier", json!("fast")),
        (bench, "/rows/0/environment/backend", json!("cuda")),
        (bench, "/rows/0/environment/software", json!("no")),
        (bench, "/rows/0/environment/tuned", json!(-1)),
        (bench, "/rows/0/ceilings/copy_gb_s", json!(0)),
        (bench, "/rows/0/ceilings/matrix_gflop_s", json!(0)),
        (profile, "/steps/0/name", json!("decode")),
        (profile, "/steps/1/name", json!("prefill")),
        (profile, "/steps/1/tokens", json!(2)),
        (profile, "/steps", json!([])),
        (profile, "/steps/0/wall_ns/min", json!(0)),
        (profile, "/steps/0/dispatches", json!([])),
        (profile, "/steps/0/dispatches/0/label", json!("layer/attn")),
        (profile, "/steps/0/dispatches/0/kernel", json!("Mat Vec")),
        (profile, "/steps/0/dispatches/0/ns/min", json!(-1)),
        (profile, "/steps/0/dispatches/0/flops", json!(0.5)),
        (ablation, "/generated", json!(0)),
        (ablation, "/rows/0/name", json!("")),
        (ablation, "/rows/0/decode_dispatches", json!(0)),
        (ablation, "/rows/0/norm_dispatches", json!(-1)),
        (kernels, "/rows/0/bound", json!("bandwidth")),
        (kernels, "/rows/0/ns/median", json!(0)),
        (kernels, "/rows/0/copies", json!(0)),
        (kernels, "/rows/0/share", json!(-0.5)),
    ];
    let documents = samples();
    for (index, place, value) in cases {
        let mut document = documents[index].clone();
        *document.pointer_mut(place).unwrap_or_else(|| panic!("{place} is there")) = value.clone();
        assert!(!validator(KINDS[index]).is_valid(&document), "{place} = {value}");
    }
}

/// Runs the program and checks the document that it prints; without an adapter there is none.
fn printed(args: &[&str]) -> Option<Value> {
    if !has_gpu() {
        return None;
    }
    let output = run(args);
    let document = serde_json::from_str(&stdout(&output)).unwrap();
    check(&document);
    Some(document)
}

#[test]
fn bench_prints_a_bench() {
    for model in ["demo", "synthetic:micro"] {
        let args = ["bench", "-m", model, "-p", "16", "-n", "8", "-r", "2", "-o", "json"];
        let Some(bench) = printed(&args) else { return };
        let tests: Vec<&str> =
            bench["rows"].as_array().unwrap().iter().map(|row| row["test"].as_str().unwrap()).collect();
        assert_eq!(tests, ["pp16", "tg8"]);
        assert_eq!(bench["rows"][0]["subject"]["model"], model);
    }
}

#[test]
fn generate_writes_how_it_started() {
    if !has_gpu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("start.json");
    let output = run(&[
        "generate",
        "-m",
        "demo",
        "-n",
        "3",
        "--stats",
        file.to_str().unwrap(),
        "The Fox and the Grapes",
    ]);
    let told = errors(&output);
    assert!(output.status.success(), "{told}");
    assert!(told.contains(" from the start; ") && told.contains("(device "), "{told}");
    let start: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    check(&start);
    let ms = |field: &str| start[field].as_f64().unwrap();
    assert_eq!((&start["generated"], &start["subject"]["model"]), (&json!(3), &json!("demo")));
    let parts = ms("device_ms") + ms("weights_ms").max(ms("pipelines_ms"));
    assert!(parts <= ms("load_ms"), "{start}");
    assert!(ms("load_ms") + ms("prefill_ms") <= ms("first_token_ms"), "{start}");
    let validator = validator("start");
    for field in start.as_object().unwrap().keys() {
        let mut less = start.clone();
        less.as_object_mut().unwrap().remove(field);
        assert!(!validator.is_valid(&less), "without {field}");
        let mut wrong = start.clone();
        wrong[field] = json!(-1);
        assert!(!validator.is_valid(&wrong), "{field} is -1");
    }
    let nowhere = run(&["generate", "-m", "demo", "-n", "1", "--stats", "no/such/folder/x.json", "A"]);
    assert_eq!(nowhere.status.code(), Some(1));
}

#[test]
fn profile_prints_a_profile() {
    for model in ["demo", "synthetic:micro"] {
        let args = ["profile", "-m", model, "-p", "16", "-r", "2", "-o", "json"];
        let Some(profile) = printed(&args) else { return };
        assert_eq!((&profile["steps"][0]["tokens"], &profile["steps"][1]["tokens"]), (&json!(16), &json!(1)));
    }
}

#[test]
fn ablate_prints_an_ablation() {
    for (model, layers) in [("demo", 8), ("synthetic:micro", 4)] {
        let args = ["ablate", "-m", model, "-p", "4", "-n", "2", "-r", "2", "-o", "json"];
        let Some(ablation) = printed(&args) else { return };
        let rows = ablation["rows"].as_array().unwrap();
        assert_eq!(rows.len(), Rule::ALL.len() + 4);
        assert!(rows.iter().all(|row| row["norms"] == json!(4 * layers + 1)), "{rows:?}");
    }
}

#[test]
fn kernel_bench_prints_kernels() {
    let args = ["kernel", "bench", "rope", "--case", "decode", "--samples", "5", "-o", "json"];
    let Some(kernels) = printed(&args) else { return };
    let rows = kernels["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 5);
    assert!(rows.iter().all(|row| row["kernel"] == "rope" && row["bound"] == "memory"), "{rows:?}");
}
