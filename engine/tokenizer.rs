//! Text to token ids and back, over a Hugging Face `tokenizer.json`.
//!
//! Encoding is the `tokenizers` crate's. Decoding is done here, byte by byte: each token stands for some
//! bytes, and text is those bytes read as UTF-8. So a stream of tokens and the whole list give the same
//! text, also when a character is spread over several tokens. Knows nothing of models; the caller passes the
//! beginning-of-text token.

use std::collections::HashSet;
use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};

/// A tokenizer read from a `tokenizer.json`: byte-level BPE, or SentencePiece with byte fallback.
///
/// # Examples
/// ```
/// # fn main() -> samara::Result<()> {
/// let tokenizer = samara::Tokenizer::from_bytes(samara::model::demo::TOKENIZER, "demo")?;
/// let ids = tokenizer.encode("The Fox", None)?;
/// assert_eq!(tokenizer.decode(&ids)?, "The Fox");
/// # Ok(())
/// # }
/// ```
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    pieces: Pieces,
    special: HashSet<u32>,
}

/// How the text of a token in the vocabulary represents bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pieces {
    /// GPT-2's alphabet: one printable character for each byte.
    ByteLevel,
    /// U+2581 is a space and `<0xE2>` a byte; `strip` drops the one space that encoding put in front.
    SentencePiece { strip: bool },
}

impl Tokenizer {
    /// Reads a tokenizer from a `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read, [`Error::Model`] when it is no tokenizer of these kinds.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
        Self::from_bytes(&bytes, &path.display().to_string())
    }

    /// Reads a tokenizer from the contents of a `tokenizer.json`; `label` names them in errors.
    ///
    /// # Errors
    /// [`Error::Model`] when the contents are no tokenizer of these kinds.
    pub fn from_bytes(bytes: &[u8], label: &str) -> Result<Self> {
        let refuse = |why: String| Error::Model(format!("`{label}` is not a usable tokenizer.json: {why}"));
        // Parsed before the library does, because that panics on some damaged files.
        let file: TokenizerFile = serde_json::from_slice(bytes).map_err(|e| refuse(e.to_string()))?;
        let pieces = Pieces::of(file.decoder.as_ref()).ok_or_else(|| {
            refuse("its decoder is neither byte-level nor SentencePiece with byte fallback".to_owned())
        })?;
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| refuse(e.to_string()))?;
        // Some published files enable these, but a prompt must be neither truncated nor padded.
        inner.with_truncation(None).map_err(|e| refuse(e.to_string()))?;
        inner.with_padding(None);
        let added = inner.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        Ok(Self { inner, pieces, special })
    }

    /// Returns the ids of `text`, after `bos` if one is given.
    ///
    /// The tokenizer's own template is not applied. Special tokens written out in the text (`</s>`) become
    /// their ids, as in the reference implementation.
    ///
    /// # Errors
    /// [`Error::Input`] when the tokenizer has no token for a part of the text.
    pub fn encode(&self, text: &str, bos: Option<u32>) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|e| Error::Input(format!("the text cannot be tokenized: {e}")))?;
        Ok(bos.into_iter().chain(encoding.get_ids().iter().copied()).collect())
    }

    /// Returns the text of `ids`, special tokens left out; bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`Error::Input`] when the tokenizer has no such id.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let mut stream = self.stream();
        let mut text = String::new();
        for &id in ids {
            text += &stream.push(id)?;
        }
        Ok(text + &stream.finish())
    }

    /// Returns a decoder for ids that arrive one at a time.
    pub fn stream(&self) -> TextStream<'_> {
        let strip_space = self.pieces == Pieces::SentencePiece { strip: true };
        TextStream { tokenizer: self, pending: Vec::new(), strip_space }
    }

    /// Returns the number of tokens, special ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Returns the token with this id as the vocabulary spells it.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Returns the id of a token as the vocabulary spells it.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Returns the bytes that a token stands for; none for a special token.
    ///
    /// # Errors
    /// [`Error::Input`] when the tokenizer has no such id.
    pub fn bytes(&self, id: u32) -> Result<Vec<u8>> {
        let token = self.id_to_token(id).ok_or_else(|| {
            Error::Input(format!("token id {id}: the tokenizer has {} tokens", self.vocab_size()))
        })?;
        Ok(if self.special.contains(&id) { Vec::new() } else { self.pieces.bytes(&token) })
    }
}

/// Decodes ids that arrive one at a time into text, in whole characters.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The beginning of a character whose other bytes have not arrived: at most 3 bytes between calls.
    pending: Vec<u8>,
    /// The next byte is the first one of the text and is dropped if it is a space.
    strip_space: bool,
}

impl TextStream<'_> {
    /// Returns the text that `id` completes; it is empty while a character lacks bytes.
    ///
    /// What these calls and [`TextStream::finish`] return, put together, is [`Tokenizer::decode`] of all ids.
    ///
    /// # Errors
    /// [`Error::Input`] when the tokenizer has no such id.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let bytes = self.tokenizer.bytes(id)?;
        let skip = usize::from(self.strip_space && bytes.first() == Some(&b' '));
        self.strip_space &= bytes.is_empty();
        self.pending.extend(&bytes[skip..]);

        let (mut text, mut unfinished) = (String::new(), Vec::new());
        let mut chunks = self.pending.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text += chunk.valid();
            let invalid = chunk.invalid();
            let open = std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none());
            if open && chunks.peek().is_none() {
                unfinished = invalid.to_vec();
            } else if !invalid.is_empty() {
                // No later byte can turn these into a character.
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.pending = unfinished;
        Ok(text)
    }

    /// Ends the text; an incomplete character is returned as U+FFFD.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

impl Pieces {
    /// Returns the kind of a tokenizer with this decoder, if it is supported.
    fn of(decoder: Option<&Decoder>) -> Option<Self> {
        match decoder? {
            Decoder::ByteLevel {} => Some(Self::ByteLevel),
            Decoder::Sequence { decoders } => match decoders.as_slice() {
                [
                    Decoder::Replace { pattern, content },
                    Decoder::ByteFallback {},
                    Decoder::Fuse {},
                    rest @ ..,
                ] if pattern.string.as_deref() == Some("\u{2581}") && content == " " => match rest {
                    [] => Some(Self::SentencePiece { strip: false }),
                    [Decoder::Strip { content: ' ', start: 1, stop: 0 }] => {
                        Some(Self::SentencePiece { strip: true })
                    }
                    _ => None,
                },
                _ => None,
            },
            _ => None,
        }
    }

    /// Returns the bytes of a token that is not special.
    fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            // A token with characters outside the alphabet was added by hand and stands for its spelling.
            Self::ByteLevel => {
                token.chars().map(byte_of).collect::<Option<_>>().unwrap_or_else(|| token.into())
            }
            Self::SentencePiece { .. } => match fallback_byte(token) {
                Some(byte) => vec![byte],
                None => token.replace('\u{2581}', " ").into_bytes(),
            },
        }
    }
}

/// Returns the byte that a character of GPT-2's alphabet stands for.
///
/// Printable Latin-1 stands for itself; the other 68 bytes, in order, are the characters from U+0100.
fn byte_of(character: char) -> Option<u8> {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    match u8::try_from(character) {
        Ok(byte) => printable(byte).then_some(byte),
        Err(_) => (0..=u8::MAX).filter(|&byte| !printable(byte)).nth(character as usize - 0x100),
    }
}

/// Returns the byte of a SentencePiece token such as `<0xE2>`.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let hexadecimal = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    hexadecimal.then(|| u8::from_str_radix(digits, 16).ok())?
}

/// The part of a `tokenizer.json` that defines how tokens become text.
#[derive(Deserialize)]
struct TokenizerFile {
    decoder: Option<Decoder>,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Decoder {
    ByteLevel {},
    Sequence {
        decoders: Vec<Decoder>,
    },
    Replace {
        pattern: Pattern,
        content: String,
    },
    ByteFallback {},
    Fuse {},
    Strip {
        content: char,
        start: usize,
        stop: usize,
    },
    #[serde(other)]
    Unknown,
}

#[derive(Deserialize)]
struct Pattern {
    #[serde(rename = "String")]
    string: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_level_alphabet_is_one_character_for_each_byte() {
        let mut bytes: Vec<u8> = (0..0x200).filter_map(|c| byte_of(char::from_u32(c).unwrap())).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=u8::MAX).collect::<Vec<_>>());
        assert_eq!([byte_of('Ġ'), byte_of('Ċ'), byte_of('A')], [Some(b' '), Some(b'\n'), Some(b'A')]);
        assert_eq!(Pieces::ByteLevel.bytes("ÃŁ"), "ß".as_bytes());
        assert_eq!(Pieces::ByteLevel.bytes("日 本"), "日 本".as_bytes());
    }

    #[test]
    fn sentencepiece_tokens_are_bytes_or_text() {
        let pieces = Pieces::SentencePiece { strip: true };
        assert_eq!(pieces.bytes("<0xE2>"), [0xe2]);
        assert_eq!(pieces.bytes("<0x+1>"), b"<0x+1>");
        assert_eq!(pieces.bytes("<0xE2"), b"<0xE2");
        assert_eq!(pieces.bytes("\u{2581}elm"), b" elm");
    }
}
