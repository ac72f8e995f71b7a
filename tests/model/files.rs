//! Model files, valid and invalid: what opens reads exactly, what does not is named in the error.

use std::fs;
use std::path::Path;

use crate::common::checkpoint::{Tiny, bytes, stored, values};
use safetensors::Dtype;
use samara::model::{Checkpoint, Config, Size, names};
use samara::quant::Format;
use serde_json::{Value, json};

/// Asserts an error whose sentence holds every one of `parts`.
#[track_caller]
fn refused<T>(result: samara::Result<T>, parts: &[&str]) {
    let message = result.err().expect("this is an error").to_string();
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

/// Wraps a header, and data after it, in the form of a safetensors file.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

const QKV: &str = "transformer.layers.1.attn.qkv_proj.weight";

#[test]
fn every_stored_type_reads_exactly() {
    // The made-up values are bf16; none of them exceeds the precision or range of f16.
    let made_up = Tiny::new(Dtype::BF16).open().unwrap();
    let expected = values(&Checkpoint::synthetic_with(made_up.config().clone(), 1));
    for (dtype, format) in [(Dtype::BF16, Format::Bf16), (Dtype::F32, Format::F32), (Dtype::F16, Format::F16)]
    {
        let dir = tempfile::tempdir().unwrap();
        Tiny::new(dtype).write(dir.path());
        let model = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(stored(&model), format);
        assert!((0..model.weights().len()).all(|index| model.fits_f16(index).unwrap()));
        let (read, made) = (values(&model).concat(), expected.concat());
        assert_eq!(read.len(), made.len());
        for (read, made) in read.iter().zip(&made) {
            // f16 loses values below its smallest step, 2^-24.
            let error = if dtype == Dtype::F16 { 2f32.powi(-25) } else { 0.0 };
            assert!((read - made).abs() <= error, "{dtype}: {made} was read as {read}");
        }
    }
}

#[test]
fn corenet_names_and_padding_rows_are_understood() {
    let mut tiny = Tiny::with(Dtype::BF16, &[("vocab_size", json!(32000))]);
    let expected = values(&tiny.open().unwrap());
    let (_, shape, data) = tiny.tensors.get_mut(names::EMBEDDING).unwrap();
    shape[0] = 32128;
    data.resize(32128 * 64 * 2, 0xff); // NaN: never to be read
    let bare = |name: &str| name.strip_prefix("transformer.").unwrap().to_owned();
    tiny.tensors = tiny.tensors.into_iter().map(|(name, tensor)| (bare(&name), tensor)).collect();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), tiny.config.to_string()).unwrap();
    fs::write(dir.path().join("weights.safetensors"), tiny.safetensors()).unwrap();
    let model = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(model.weights()[0].rows, 32000);
    assert_eq!(model.weights()[2].name, names::qkv_proj(0));
    assert_eq!(values(&model), expected);
}

/// Writes the model in two shards and an index; returns the index's text.
fn write_shards(tiny: &Tiny, dir: &Path) -> String {
    let shard = |name: &str| if name.contains("layers.1.") { "b.safetensors" } else { "a.safetensors" };
    fs::write(dir.join("config.json"), tiny.config.to_string()).unwrap();
    for part in ["a.safetensors", "b.safetensors"] {
        fs::write(dir.join(part), tiny.part(|name| shard(name) == part)).unwrap();
    }
    let map: serde_json::Map<String, Value> =
        tiny.tensors.keys().map(|name| (name.clone(), json!(shard(name)))).collect();
    let index = json!({"metadata": {}, "weight_map": map}).to_string();
    fs::write(dir.join("model.safetensors.index.json"), &index).unwrap();
    index
}

#[test]
fn shards_are_read_and_judged_through_their_index() {
    let (tiny, dir) = (Tiny::new(Dtype::F32), tempfile::tempdir().unwrap());
    let text = write_shards(&tiny, dir.path());
    assert_eq!(values(&Checkpoint::open(dir.path()).unwrap()), values(&tiny.open().unwrap()));

    let index = dir.path().join("model.safetensors.index.json");
    for outside in ["../b.safetensors", "/etc/passwd", "sub/b.safetensors", "..", "", "..\\\\b.safetensors"] {
        fs::write(&index, text.replace("b.safetensors", outside)).unwrap();
        refused(Checkpoint::open(dir.path()), &["index.json", "layers.1.", "no file name in its directory"]);
    }
    fs::write(&index, text.replace("b.safetensors", "c.safetensors")).unwrap();
    refused(Checkpoint::open(dir.path()), &["index.json", "c.safetensors", "not there"]);
    fs::write(&index, text.replace("b.safetensors", "a.safetensors")).unwrap();
    refused(Checkpoint::open(dir.path()), &["index.json", "transformer.layers.1.", "found none"]);
    fs::write(&index, "{\"weight_map\": 3}").unwrap();
    refused(Checkpoint::open(dir.path()), &["index.json", "weight_map"]);
    fs::write(&index, "{").unwrap();
    refused(Checkpoint::open(dir.path()), &["index.json", "JSON"]);

    fs::write(&index, text).unwrap();
    fs::write(dir.path().join("b.safetensors"), tiny.safetensors()).unwrap();
    refused(Checkpoint::open(dir.path()), &["a.safetensors", "b.safetensors", "twice", "transformer."]);
}

#[test]
fn damaged_files_are_named() {
    let (tiny, dir) = (Tiny::new(Dtype::BF16), tempfile::tempdir().unwrap());
    tiny.write(dir.path());
    let path = dir.path().join("model.safetensors");
    let sound = fs::read(&path).unwrap();
    let check = |damaged: &[u8], parts: &[&str]| {
        fs::write(&path, damaged).unwrap();
        let name = path.display().to_string();
        refused(Checkpoint::open(dir.path()), &[&[name.as_str()], parts].concat());
    };
    let header = u64::from_le_bytes(sound[..8].try_into().unwrap()) as usize;
    let data = sound.len() - 8 - header;
    check(&sound[..sound.len() - 5], &[&data.to_string(), &(data - 5).to_string()]);
    check(&[&sound[..], b"more"].concat(), &[&data.to_string(), &(data + 4).to_string()]);
    check(&sound[..100], &["header length", &header.to_string(), "92 bytes"]);
    check(&sound[..5], &["5 bytes"]);
    check(&[], &["0 bytes"]);
    check(&[&u64::MAX.to_le_bytes()[..], &sound[8..]].concat(), &["header length", &u64::MAX.to_string()]);
    check(&[&sound[..8], &[0xff; 4000]].concat(), &["header"]);
    let two = |a: [usize; 2], b: [usize; 2]| {
        format!(
            r#"{{"a": {{"dtype": "F32", "shape": [4], "data_offsets": {a:?}}},
                "b": {{"dtype": "F32", "shape": [4], "data_offsets": {b:?}}}}}"#
        )
    };
    check(&file(&two([0, 16], [8, 24]), &[0; 24]), &["header", "`b`", "offset"]);
    check(&file(&two([0, 16], [20, 36]), &[0; 36]), &["header", "`b`", "offset"]);
    check(&file(&two([0, 16], [16, 40]), &[0; 40]), &["header", "shape"]);
    let huge = r#"{"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 16]}}"#;
    check(&file(huge, &[0; 16]), &["header", "overflow"]);
    check(&file("[]", &[]), &["header"]);
}

#[test]
fn wrong_tensors_are_named_with_both_shapes() {
    let spoil = |change: &dyn Fn(&mut Tiny), parts: &[&str]| {
        let mut tiny = Tiny::new(Dtype::BF16);
        change(&mut tiny);
        refused(tiny.open(), &[&["`model.safetensors`"], parts].concat());
    };
    let transposed = |tiny: &mut Tiny| tiny.tensors.get_mut(QKV).unwrap().1.reverse();
    spoil(&transposed, &[QKV, "expected [256, 64]", "found [64, 256]"]);
    spoil(&|tiny| drop(tiny.tensors.remove(QKV)), &[QKV, "expected [256, 64]", "found none"]);
    let column = |tiny: &mut Tiny| tiny.tensors.get_mut(names::NORM).unwrap().1.push(1);
    spoil(&column, &[names::NORM, "expected [64]", "found [64, 1]"]);
    let whole = |tiny: &mut Tiny| tiny.tensors.get_mut(QKV).unwrap().0 = Dtype::I16;
    spoil(&whole, &[QKV, "BF16, F16 or F32", "I16"]);
    let padded = |tiny: &mut Tiny| {
        let rows = (Dtype::BF16, vec![32128, 64], vec![0; 32128 * 128]);
        tiny.tensors.insert(names::EMBEDDING.into(), rows);
    };
    spoil(&padded, &[names::EMBEDDING, "expected [40, 64]", "found [32128, 64]"]);
}

#[test]
fn tensors_without_a_place_are_refused_where_they_would_matter() {
    let extra = |name: &str| {
        let mut tiny = Tiny::new(Dtype::F16);
        tiny.tensors.insert(name.into(), (Dtype::F16, vec![1], vec![0; 2]));
        tiny.open()
    };
    refused(extra("lm_head.weight"), &["model.safetensors", "lm_head.weight", "untied"]);
    refused(extra("transformer.layers.2.attn_norm.weight"), &["layers.2.attn_norm", "no place"]);
    refused(extra("layers.0.attn.qkv_proj.bias"), &["layers.0.attn.qkv_proj.bias", "no place"]);
    for harmless in ["transformer.layers.0.attn.pos_embedding.inv_freq", "causal_mask", "optimizer.step"] {
        assert!(extra(harmless).is_ok(), "{harmless}");
    }
    let mut tiny = Tiny::new(Dtype::F16);
    tiny.tensors.insert("norm.weight".into(), tiny.tensors[names::NORM].clone());
    refused(tiny.open(), &[names::NORM, "twice"]);
}

#[test]
fn values_that_are_no_numbers_are_named_by_place() {
    for (dtype, value, shown) in [
        (Dtype::BF16, f32::NAN, "NaN"),
        (Dtype::F16, f32::INFINITY, "inf"),
        (Dtype::F32, f32::NEG_INFINITY, "-inf"),
    ] {
        let mut tiny = Tiny::new(dtype);
        let (_, _, data) = tiny.tensors.get_mut(QKV).unwrap();
        let width = if dtype == Dtype::F32 { 4 } else { 2 };
        let at = (3 * 64 + 7) * width;
        data[at..at + width].copy_from_slice(&bytes(dtype, &[value]));
        let model = tiny.open().unwrap();
        let index = model.find(QKV).unwrap();
        let mut rows = vec![0.0; 2 * 64];
        model.read_rows(index, 0..2, &mut rows).unwrap();
        refused(model.read_rows(index, 2..4, &mut rows), &[QKV, "row 3, column 7", shown, "finite"]);
        // Weights stored as f16 are not scanned for f16; their infinities are found when they are loaded.
        match dtype {
            Dtype::F16 => assert!(model.fits_f16(index).unwrap()),
            _ => refused(model.fits_f16(index), &[QKV, "row 3, column 7"]),
        }
    }
}

#[test]
fn values_past_f16_are_found() {
    let mut tiny = Tiny::new(Dtype::F32);
    let (_, _, data) = tiny.tensors.get_mut(QKV).unwrap();
    data[130 * 4..131 * 4].copy_from_slice(&(-65505.0f32).to_le_bytes());
    data[131 * 4..132 * 4].copy_from_slice(&65504.0f32.to_le_bytes());
    let model = tiny.open().unwrap();
    let index = model.find(QKV).unwrap();
    assert!(!model.fits_f16(index).unwrap());
    assert!(model.fits_f16(0).unwrap());
}

#[test]
fn configurations_that_are_not_run_are_refused_by_key() {
    let base = Tiny::new(Dtype::BF16).config;
    let check = |key: &str, value: Value, parts: &[&str]| {
        let mut config = base.clone();
        config[key] = value;
        let found = Config::from_json(&config.to_string(), Path::new("dir/config.json"));
        refused(found, &[&["`dir/config.json`", key], parts].concat());
    };
    check("ffn_with_glu", json!(false), &["false", "true"]);
    check("normalize_qk_projections", json!(false), &["false", "true"]);
    check("share_input_output_layers", json!(false), &["false", "true"]);
    check("normalization_layer_name", json!("layer_norm"), &["layer_norm", "rms_norm"]);
    check("activation_fn_name", json!("gelu"), &["gelu", "swish", "silu"]);
    check("model_type", json!("llama"), &["llama", "openelm"]);
    check("quantization", json!({"bits": 4, "group_size": 64}), &["bits", "null"]);
    check("rope_scaling", json!({"type": "yarn"}), &["yarn", "null"]);
    check("head_dim", json!(48), &["48", "32, 64 or 128"]);
    check("head_dim", json!(0), &["0"]);
    check("model_dim", json!(0), &["0", "32768"]);
    check("model_dim", json!(48), &["48", "multiple of 32"]);
    check("model_dim", json!(1u64 << 40), &["1099511627776", "32768"]);
    check("model_dim", json!(-64), &["-64"]);
    check("model_dim", json!("64"), &["\"64\""]);
    check("model_dim", Value::Null, &["missing"]);
    check("vocab_size", json!(u64::MAX), &["18446744073709551615", "1048576"]);
    check("vocab_size", json!(0), &["0"]);
    check("max_context_length", json!(0), &["0", "1048576"]);
    check("num_transformer_layers", json!(0), &["0", "512"]);
    check("num_transformer_layers", json!(1_000_000_000), &["1000000000", "512"]);
    check("num_query_heads", json!([2]), &["[2]", "2 values"]);
    check("num_query_heads", json!([2, 100_000]), &["100000", "1024"]);
    check("num_query_heads", json!([2, "4"]), &["\"4\""]);
    check("num_kv_heads", json!([1, 3]), &["num_kv_heads[1]", "3", "4"]);
    check("num_kv_heads", json!([0, 2]), &["0"]);
    check("ffn_multipliers", json!([0.5, 1e300]), &["ffn_multipliers[1]", "262144"]);
    check("ffn_multipliers", json!([0.5, -1.0]), &["-1.0", "above zero"]);
    check("ffn_multipliers", json!([]), &["0 numbers"]);
    check("ffn_multipliers", json!([1, 2, 3]), &["3 numbers", "2"]);
    check("ffn_multipliers", json!("wide"), &["wide"]);
    check("ffn_dim_divisor", json!(0), &["0"]);
    check("ffn_dim_divisor", json!(17), &[]);
    check("rope_freq_constant", json!(1e300), &["1e+300", "1e9"]);
    check("rope_freq_constant", json!(0), &["0"]);
    check("rope_freq_constant", json!("10000"), &["\"10000\""]);
    check("bos_token_id", json!(40), &["40", "39"]);
    check("eos_token_id", json!(-1), &["-1", "39"]);
    check("eos_token_id", json!([2]), &["[2]"]);
}

#[test]
fn multipliers_without_head_lists_are_checked_too() {
    let check = |changes: &[(&str, Value)], parts: &[&str]| {
        let mut config = Tiny::new(Dtype::BF16).config;
        config.as_object_mut().unwrap().retain(|key, _| !key.ends_with("_heads"));
        for (key, value) in changes {
            config[*key] = value.clone();
        }
        refused(Config::from_json(&config.to_string(), Path::new("config.json")), parts);
    };
    let groups = ("num_gqa_groups", json!(2));
    check(&[], &["num_gqa_groups", "missing"]);
    check(&[("num_gqa_groups", json!(0))], &["num_gqa_groups", "0"]);
    check(&[("num_gqa_groups", json!(u64::MAX))], &["num_gqa_groups", "1024"]);
    check(&[groups.clone(), ("qkv_multipliers", json!([1, 2, 3]))], &["qkv_multipliers", "3 numbers"]);
    check(&[groups.clone(), ("qkv_multipliers", json!([1, 1e308]))], &["num_query_heads[1]", "1024"]);
    check(&[groups, ("qkv_multipliers", json!([[1], 2]))], &["qkv_multipliers", "[1]"]);
}

#[test]
fn text_that_is_no_configuration_is_refused() {
    let long = format!("{{\"model_type\": \"{}\"}}", "é".repeat(1000));
    let deep = "[".repeat(100_000);
    let texts =
        ["", "{", "[]", "null", "{\"rope_freq_constant\": 1e999}", "{\"model_dim\": NaN}", &long, &deep];
    for text in texts {
        let error = Config::from_json(text, Path::new("dir/config.json")).unwrap_err().to_string();
        assert!(error.contains("`dir/config.json`") && error.len() < 300, "{error}");
    }
}

#[test]
fn sources_are_distinguished_by_name() {
    assert_eq!(Checkpoint::source("demo").unwrap().parameters(), 3_124_928);
    let model = Checkpoint::source("synthetic:270M:7").unwrap();
    assert_eq!((model.parameters(), stored(&model)), (271_527_168, Format::Bf16));
    assert_eq!(*model.config(), Config::published(Size::M270));
    refused(Checkpoint::source("synthetic:7B"), &["`7B`", "270M"]);
    refused(Checkpoint::source("synthetic:micro:x"), &["`x`", "seed"]);
    refused(Checkpoint::source("no/such/place"), &["`no/such/place`", "demo", "synthetic:SIZE"]);
    refused(Checkpoint::source("Cargo.toml"), &["`Cargo.toml`", "is a file"]);
    let dir = tempfile::tempdir().unwrap();
    let spec = dir.path().display().to_string();
    refused(Checkpoint::source(&spec), &[&spec, "config.json", "cannot read"]);
    fs::write(dir.path().join("config.json"), Tiny::new(Dtype::F32).config.to_string()).unwrap();
    refused(Checkpoint::source(&spec), &[&spec, "no weights", "model.safetensors"]);
}
