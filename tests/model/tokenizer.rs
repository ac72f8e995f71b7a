//! The tokenizer against ids made by the reference implementation, and streaming against whole texts.

use std::path::PathBuf;

use crate::common;
use proptest::prelude::*;
use samara::Error;
use samara::tokenizer::Tokenizer;

fn golden(name: &str) -> PathBuf {
    common::golden("llama2-tokenizer").join(name)
}

fn llama2() -> &'static Tokenizer {
    static TOKENIZER: std::sync::OnceLock<Tokenizer> = std::sync::OnceLock::new();
    TOKENIZER.get_or_init(|| Tokenizer::from_file(golden("tokenizer.json")).unwrap())
}

/// A byte-level tokenizer without merges: GPT-2's alphabet, and `</s>` as id 256.
fn byte_level() -> Tokenizer {
    let printable = |b: &u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let letters = (0u32..256).filter(printable).chain(256..324).map(|c| char::from_u32(c).unwrap());
    let vocab: serde_json::Map<_, _> =
        letters.enumerate().map(|(id, letter)| (letter.to_string(), id.into())).collect();
    let step = serde_json::json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true
    });
    let file = serde_json::json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": null,
        "added_tokens": [{"id": 256, "content": "</s>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}],
        "normalizer": null, "pre_tokenizer": step.clone(), "post_processor": null, "decoder": step,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    Tokenizer::from_bytes(file.to_string().as_bytes(), "byte level").unwrap()
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = tokenizer.stream();
    let pushed: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    pushed + &stream.finish()
}

#[test]
fn llama2_ids_match_the_reference_and_texts_come_back() {
    let cases: Vec<serde_json::Value> =
        serde_json::from_slice(&std::fs::read(golden("cases.json")).unwrap()).unwrap();
    assert!(cases.len() > 20);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let expected: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        let ids = llama2().encode(text, None).unwrap();
        assert_eq!(ids, expected, "{text:?}");
        assert_eq!(llama2().decode(&ids).unwrap(), text);
        assert_eq!(streamed(llama2(), &ids), text);

        let with_bos = llama2().encode(text, Some(1)).unwrap();
        assert_eq!((with_bos[0], &with_bos[1..]), (1, expected.as_slice()));
        assert_eq!(streamed(llama2(), &with_bos), text);
    }
}

#[test]
fn decoding_agrees_with_the_library() {
    let library = tokenizers::Tokenizer::from_file(golden("tokenizer.json")).unwrap();
    for ids in [&[15043, 3186][..], &[1, 29871, 15043], &[1, 1, 243, 162, 169, 156, 2], &[13, 13, 2440], &[2]]
    {
        assert_eq!(llama2().decode(ids).unwrap(), library.decode(ids, true).unwrap(), "{ids:?}");
    }
    assert_eq!(llama2().vocab_size(), 32000);
    assert_eq!(llama2().id_to_token(15043).as_deref(), Some("\u{2581}Hello"));
    assert_eq!(llama2().token_to_id("<s>"), Some(1));
    assert_eq!(llama2().id_to_token(32000), None);
}

#[test]
fn a_character_appears_with_its_last_byte() {
    // `<0xF0> <0x9F> <0xA6> <0x99>` is a llama.
    let mut stream = llama2().stream();
    let parts: Vec<String> = [1, 243, 162, 169, 156, 3186].map(|id| stream.push(id).unwrap()).into();
    assert_eq!(parts, ["", "", "", "", "🦙", " world"]);
    assert_eq!(stream.finish(), "");
}

#[test]
fn bytes_that_are_no_character_are_replaced() {
    // Cut off by the end, by another character, and by the first byte of a new one.
    assert_eq!(streamed(llama2(), &[243, 162]), "\u{fffd}");
    assert_eq!(streamed(llama2(), &[243, 162, 3186]), "\u{fffd} world");
    assert_eq!(streamed(llama2(), &[243, 162, 243, 162, 169, 156]), "\u{fffd}🦙");
    assert_eq!(streamed(llama2(), &[258, 258, 3186]), "\u{fffd}\u{fffd} world");
}

#[test]
fn special_tokens_are_read_from_text_and_never_printed() {
    let ids = llama2().encode("</s>", None).unwrap();
    assert!(ids.contains(&2), "{ids:?}");
    assert_eq!(llama2().decode(&[1, 15043, 2]).unwrap(), "Hello");
    let tokenizer = byte_level();
    assert_eq!(tokenizer.encode("</s>", None).unwrap(), [256]);
    assert_eq!(tokenizer.decode(&[256]).unwrap(), "");
}

#[test]
fn a_truncation_in_the_file_does_not_cut_prompts() {
    assert_eq!(byte_level().encode("longer than three", None).unwrap().len(), 17);
}

#[test]
fn unknown_ids_and_unusable_files_are_refused() {
    let message = llama2().decode(&[15043, 32000]).unwrap_err().to_string();
    assert!(message.contains("32000"), "{message}");
    assert!(matches!(Tokenizer::from_file("/no/such/tokenizer.json"), Err(Error::Io { .. })));

    let whole = std::fs::read(golden("tokenizer.json")).unwrap();
    for cut in [0, 1, 200, 1500, whole.len() / 2, whole.len() - 2] {
        let error = Tokenizer::from_bytes(&whole[..cut], "cut.json").err().unwrap();
        assert!(matches!(&error, Error::Model(message) if message.contains("cut.json")), "{error}");
    }
    for text in
        ["null", "[]", "{}", r#"{"decoder":{"type":"WordPiece"}}"#, r#"{"decoder":{"type":"ByteLevel"}}"#]
    {
        assert!(matches!(Tokenizer::from_bytes(text.as_bytes(), "x"), Err(Error::Model(_))), "{text}");
    }
}

proptest! {
    #[test]
    fn llama2_texts_come_back(text in ".{0,40}") {
        prop_assume!(!["<s>", "</s>", "<unk>"].iter().any(|token| text.contains(token)));
        let ids = llama2().encode(&text, None).unwrap();
        prop_assert_eq!(llama2().decode(&ids).unwrap(), text);
    }

    #[test]
    fn any_ids_stream_to_the_bytes_read_as_utf8(ids in prop::collection::vec(3u32..600, 0..60)) {
        let mut bytes: Vec<u8> = Vec::new();
        for &id in &ids {
            match id {
                3..259 => bytes.push((id - 3) as u8),
                _ => bytes.extend(llama2().id_to_token(id).unwrap().replace('\u{2581}', " ").bytes()),
            }
        }
        let first = usize::from(bytes.first() == Some(&b' '));
        prop_assert_eq!(streamed(llama2(), &ids), String::from_utf8_lossy(&bytes[first..]));
    }

    #[test]
    fn byte_level_texts_come_back(text in "\\PC{0,40}") {
        let tokenizer = byte_level();
        let ids = tokenizer.encode(&text, Some(256)).unwrap();
        prop_assert_eq!(ids.len(), text.len() + 1);
        prop_assert_eq!(streamed(&tokenizer, &ids), text);
    }
}
