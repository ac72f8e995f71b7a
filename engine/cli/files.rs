//! The files that subcommands read: texts and lists of token ids.

use std::io::{self, IsTerminal, Read};
use std::path::Path;

use samara::{Error, Result};
use serde_json::Value;

/// Returns the text of a file.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    utf8(bytes, &format!("`{}`", path.display()))
}

/// Returns the text on standard input, unless that is a terminal.
pub fn read_stdin() -> Result<String> {
    let mut stdin = io::stdin();
    if stdin.is_terminal() {
        return Err(Error::Input(
            "there is no text: give it as an argument, with -f FILE or on standard input".into(),
        ));
    }
    let mut bytes = Vec::new();
    stdin.read_to_end(&mut bytes).map_err(|e| Error::io("read", "standard input", e))?;
    utf8(bytes, "standard input")
}

fn utf8(bytes: Vec<u8>, label: &str) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::Input(format!(
            "{label} is not UTF-8: no character starts at byte offset {at} (0x{:02x})",
            e.as_bytes()[at]
        ))
    })
}

/// Returns the token ids in a JSON file: a list, or an object that has one as `prompt_ids`.
///
/// There is at least one, and all are below `vocab`.
pub fn read_ids(path: &Path, vocab: usize) -> Result<Vec<u32>> {
    let refuse = |why: String| Error::Input(format!("`{}`: {why}", path.display()));
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let json: Value = serde_json::from_slice(&bytes).map_err(|e| refuse(format!("this is not JSON: {e}")))?;
    let list = json.as_array().or_else(|| json.get("prompt_ids")?.as_array());
    let list = list.ok_or_else(|| {
        refuse("expected a list of token ids, or an object with such a list as `prompt_ids`".to_owned())
    })?;
    if list.is_empty() {
        return Err(refuse("the list of token ids is empty".to_owned()));
    }
    let read = |(index, value): (usize, &Value)| {
        let id = value.as_u64().filter(|&id| id < vocab as u64).and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| {
            refuse(format!(
                "entry {index} is {value}: expected a token id, an integer from 0 to {}",
                vocab - 1
            ))
        })
    };
    list.iter().enumerate().map(read).collect()
}

/// Checks that a model with `vocab` tokens has every one of `ids`.
pub fn check_ids(ids: &[u32], vocab: usize) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= vocab) {
        None => Ok(()),
        Some(id) => Err(Error::Input(format!(
            "the tokenizer gives token id {id}, but the model has {vocab} tokens: they do not match"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(json: &str) -> Result<Vec<u32>> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ids.json");
        std::fs::write(&path, json).unwrap();
        read_ids(&path, 2048)
    }

    #[test]
    fn ids_are_read_from_lists_and_golden_files() {
        assert_eq!(ids("[1, 2047]").unwrap(), [1, 2047]);
        assert_eq!(ids(r#"{"prompt_ids": [0], "greedy_ids": [5]}"#).unwrap(), [0]);
    }

    #[test]
    fn bad_ids_are_named() {
        for (json, part) in [
            ("[1, 2", "not JSON"),
            ("[]", "empty"),
            ("7", "`prompt_ids`"),
            (r#"{"ids": [1]}"#, "`prompt_ids`"),
            ("[1, 2048]", "entry 1 is 2048"),
            ("[1, 1.5]", "entry 1 is 1.5"),
            ("[-1]", "entry 0 is -1"),
            (r#"[1, "2"]"#, r#"entry 1 is "2""#),
            ("[4294967297]", "4294967297"),
        ] {
            let message = ids(json).unwrap_err().to_string();
            assert!(message.contains("ids.json") && message.contains(part), "{json}: {message}");
        }
    }

    #[test]
    fn text_that_is_no_utf8_is_refused_by_offset() {
        let message = utf8(b"ab\xc3\xa9\xff".to_vec(), "`x`").unwrap_err().to_string();
        assert!(message.contains("byte offset 4 (0xff)"), "{message}");
        let message = utf8(b"a\xe2\x82".to_vec(), "`x`").unwrap_err().to_string();
        assert!(message.contains("byte offset 1 (0xe2)"), "{message}");
    }
}
