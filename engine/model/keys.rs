//! The keys of a `config.json`: values of a type and within limits, or an error that names file, key and value.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The object of a `config.json`, and the file that messages name.
pub(super) struct Keys<'a> {
    pub(super) map: Map<String, Value>,
    file: &'a Path,
}

impl<'a> Keys<'a> {
    pub(super) fn read(text: &str, file: &'a Path) -> Result<Self> {
        let map = serde_json::from_str(text)
            .map_err(|e| Error::Model(format!("`{}` is not a JSON object: {e}", file.display())))?;
        Ok(Self { map, file })
    }

    /// Returns a value; null counts as absent.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn refuse(&self, key: &str, found: impl Display, wanted: impl Display) -> Error {
        Error::Model(format!("`{}`: `{key}` is {found}, but samara needs {wanted}", self.file.display()))
    }

    pub(super) fn expect(&self, key: &str, allowed: &[&str]) -> Result<()> {
        match self.get(key) {
            Some(value) if !allowed.contains(&value.to_string().as_str()) => {
                Err(self.refuse(key, shown(value), allowed.join(" or ")))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn size(&self, key: &str, limits: RangeInclusive<u64>) -> Result<usize> {
        let value = self
            .get(key)
            .ok_or_else(|| Error::Model(format!("`{}`: `{key}` is missing", self.file.display())))?;
        self.whole(key, value, limits)
    }

    pub(super) fn whole(&self, key: &str, value: &Value, limits: RangeInclusive<u64>) -> Result<usize> {
        let fits = value.as_u64().filter(|n| limits.contains(n)).and_then(|n| usize::try_from(n).ok());
        fits.ok_or_else(|| {
            let wanted = format!("a whole number from {} to {}", limits.start(), limits.end());
            self.refuse(key, shown(value), wanted)
        })
    }

    /// Reads a number or a list of numbers above zero; `None` if it is absent.
    pub(super) fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let number = |value: &Value| {
            value
                .as_f64()
                .filter(|number| *number > 0.0)
                .ok_or_else(|| self.refuse(key, shown(value), "numbers above zero"))
        };
        list.iter().map(number).collect::<Result<_>>().map(Some)
    }
}

/// Returns a value as JSON, truncated so that a hostile file cannot flood the terminal.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
