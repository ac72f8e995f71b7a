//! Lines of tasks: contexts with continuations, as text or as token ids.

use std::path::Path;

use samara::{Error, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::cli::files;

/// A line of the tasks.
#[derive(Debug)]
pub struct Task {
    /// Its number, from 1.
    pub line: usize,
    /// The name it gives itself, or else its number.
    pub id: Value,
    pub content: Content,
    /// Index of the right continuation.
    pub gold: Option<usize>,
}

/// What is scored.
#[derive(Debug)]
pub enum Content {
    Text { context: String, delimiter: String, continuations: Vec<String> },
    Ids { context: Vec<u32>, continuations: Vec<Vec<u32>> },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    id: Option<Value>,
    context: Option<String>,
    delimiter: Option<String>,
    continuations: Option<Vec<String>>,
    context_ids: Option<Vec<u32>>,
    continuation_ids: Option<Vec<Vec<u32>>>,
    gold: Option<usize>,
}

impl Task {
    fn parse(line: usize, text: &str) -> std::result::Result<Self, String> {
        let fields: Fields = serde_json::from_str(text).map_err(|e| {
            let why = e.to_string();
            let why = why.split(" at line ").next().unwrap_or(&why);
            format!("{why} (column {})", e.column())
        })?;
        let content = match fields {
            Fields {
                context: Some(context),
                continuations: Some(continuations),
                context_ids: None,
                continuation_ids: None,
                delimiter,
                ..
            } => Content::Text { context, delimiter: delimiter.unwrap_or_default(), continuations },
            Fields {
                context: None,
                continuations: None,
                context_ids: Some(context),
                continuation_ids: Some(continuations),
                delimiter: None,
                ..
            } => Content::Ids { context, continuations },
            _ => {
                return Err(
                    "expected `context` and `continuations`, or `context_ids` and `continuation_ids`, and \
                            `delimiter` only with text"
                        .into(),
                );
            }
        };
        let task = Self { line, id: fields.id.unwrap_or_else(|| line.into()), content, gold: fields.gold };
        match (task.len(), task.gold) {
            (0, _) => Err("there is no continuation".into()),
            (count, Some(gold)) if gold >= count => {
                Err(format!("`gold` is {gold}, but there are {count} continuations"))
            }
            _ => Ok(task),
        }
    }

    /// Returns the number of continuations.
    pub fn len(&self) -> usize {
        match &self.content {
            Content::Text { continuations, .. } => continuations.len(),
            Content::Ids { continuations, .. } => continuations.len(),
        }
    }

    /// Returns whether it has text.
    pub fn has_text(&self) -> bool {
        matches!(self.content, Content::Text { .. })
    }
}

/// Reads the tasks of a file; empty lines are skipped.
pub fn read(path: &Path) -> Result<Vec<Task>> {
    let text = files::read_text(path)?;
    let lines = text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty());
    let tasks = lines.map(|(index, text)| {
        let refuse = |why| Error::Input(format!("`{}`, line {}: {why}", path.display(), index + 1));
        Task::parse(index + 1, text).map_err(refuse)
    });
    let tasks = tasks.collect::<Result<Vec<_>>>()?;
    if tasks.is_empty() {
        return Err(Error::Input(format!("`{}` has no task", path.display())));
    }
    Ok(tasks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_text_or_ids() {
        let task = Task::parse(3, r#"{"context": "a", "continuations": [" b", " c"], "gold": 1}"#).unwrap();
        assert_eq!((task.len(), task.gold, &task.id, task.has_text()), (2, Some(1), &3.into(), true));
        let task = Task::parse(1, r#"{"id": "x", "context_ids": [1], "continuation_ids": [[2]]}"#).unwrap();
        assert_eq!((task.len(), task.gold, &task.id, task.has_text()), (1, None, &"x".into(), false));
    }

    #[test]
    fn what_is_wrong_with_a_line_is_reported() {
        for (line, part) in [
            ("{", "column 1"),
            ("[1]", "column"),
            (r#"{"context": "a"}"#, "`continuations`"),
            (r#"{"context": "a", "continuations": []}"#, "no continuation"),
            (r#"{"context": "a", "continuations": ["b"], "gold": 1}"#, "`gold` is 1, but there are 1"),
            (r#"{"context": "a", "continuations": ["b"], "gold": -1}"#, "-1"),
            (r#"{"context": "a", "continuations": ["b"], "colour": 1}"#, "`colour`"),
            (r#"{"context": "a", "context_ids": [1], "continuation_ids": [[1]]}"#, "`context_ids`"),
            (r#"{"context_ids": [1.5], "continuation_ids": [[1]]}"#, "1.5"),
            (r#"{"context_ids": [4294967296], "continuation_ids": [[1]]}"#, "4294967296"),
            (r#"{"context_ids": [1], "continuation_ids": [[1]], "delimiter": " "}"#, "`delimiter`"),
        ] {
            let why = Task::parse(1, line).unwrap_err();
            assert!(why.contains(part) && !why.contains('\n'), "{line}: {why}");
        }
    }
}
