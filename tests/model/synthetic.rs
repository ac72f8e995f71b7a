//! Synthetic weights are the published bits, in memory and in files.

use std::fs;
use std::path::Path;

use crate::common::checkpoint::stored;
use crate::common::golden;
use half::bf16;
use samara::model::synth::{prompt, write_checkpoint};
use samara::model::{Checkpoint, Config, Size};
use samara::quant::Format;
use samara::tensor::DType;
use sha2::{Digest, Sha256};

const HASHES: &str = include_str!("../golden/synthetic/hashes.json");

/// Compares the bf16 bytes of the listed tensors with their published sums.
fn check(model: &Checkpoint, key: &str) {
    let hashes: serde_json::Value = serde_json::from_str(HASHES).unwrap();
    let hashes = hashes[key].as_object().unwrap();
    assert!(!hashes.is_empty());
    for (name, expected) in hashes {
        let index = model.find(name).unwrap();
        let weight = &model.weights()[index];
        let mut values = vec![0.0; weight.rows * weight.cols];
        // In pieces of rows: where a range begins must not matter.
        for (i, rows) in values.chunks_mut(1000 * weight.cols).enumerate() {
            let first = i * 1000;
            model.read_rows(index, first..first + rows.len() / weight.cols, rows).unwrap();
        }
        let bytes: Vec<u8> = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        let sum: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(sum, expected["sha256"].as_str().unwrap(), "{key}: {name}");
    }
}

#[test]
fn tensors_have_the_published_sums() {
    let micro = Config { vocab_size: 512, ..Config::published(Size::Micro) };
    check(&Checkpoint::synthetic_with(micro, 0), "micro --vocab 512");
    check(&Checkpoint::synthetic(Size::M270, 0), "270M");
}

#[test]
fn a_written_model_is_the_golden_file_byte_for_byte() {
    let (golden, dir) = (golden("micro"), tempfile::tempdir().unwrap());
    let to = dir.path().join("new/micro");
    write_checkpoint(Size::Micro, &to, DType::Bf16, 0, 512, false).unwrap();
    assert!(
        fs::read(to.join("model.safetensors")).unwrap()
            == fs::read(golden.join("model.safetensors")).unwrap()
    );
    let json = |path: &Path| -> serde_json::Value {
        serde_json::from_str(&fs::read_to_string(path.join("config.json")).unwrap()).unwrap()
    };
    assert_eq!(json(&to), json(&golden));
    let mut names: Vec<_> = fs::read_dir(&to).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors"], "nothing temporary is left");
    check(&Checkpoint::open(&to).unwrap(), "micro --vocab 512");
}

#[test]
fn a_model_is_overwritten_only_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let write =
        |dtype, vocab, overwrite| write_checkpoint(Size::Micro, dir.path(), dtype, 0, vocab, overwrite);
    write(DType::Bf16, 64, false).unwrap();
    let message = write(DType::F32, 64, false).unwrap_err().to_string();
    assert!(message.contains("config.json") && message.contains("already"), "{message}");
    assert_eq!(stored(&Checkpoint::open(dir.path()).unwrap()), Format::Bf16);
    for (dtype, format) in [(DType::F32, Format::F32), (DType::F16, Format::F16)] {
        write(dtype, 64, true).unwrap();
        assert_eq!(stored(&Checkpoint::open(dir.path()).unwrap()), format);
    }
    let message = write(DType::Q4_0, 64, true).unwrap_err().to_string();
    assert!(message.contains("q4_0"), "{message}");
    let message = write(DType::F32, 2, true).unwrap_err().to_string();
    assert!(message.contains("eos_token_id"), "{message}");
    assert_eq!(stored(&Checkpoint::open(dir.path()).unwrap()), Format::F16, "left as it was");
}

#[test]
fn prompts_are_those_of_the_goldens() {
    assert_eq!(prompt(32000, 8), [1, 7225, 310, 26946, 14322, 11812, 8912, 23703]);
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("../golden/micro/golden.json")).unwrap();
    let ids: Vec<u32> = serde_json::from_value(golden["prompt_ids"].clone()).unwrap();
    assert_eq!(prompt(512, ids.len()), ids);
}
