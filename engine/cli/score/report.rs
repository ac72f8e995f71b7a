//! Scores as a table and as JSON.

use std::fmt;

use samara::session::TokenScore;
use samara::{Error, Result};
use serde::Serialize;
use serde_json::Value;

use super::pairs::Pair;
use super::tasks::Task;
use crate::cli::table::Table;

/// The score of a continuation.
#[derive(Clone, Copy, Debug)]
pub struct Score {
    log_likelihood: f64,
    is_greedy: bool,
}

impl Score {
    /// Sums up the scores of its tokens.
    pub fn new(tokens: &[TokenScore]) -> Self {
        Self {
            log_likelihood: tokens.iter().map(|token| f64::from(token.logprob)).sum(),
            is_greedy: tokens.iter().all(TokenScore::is_greedy),
        }
    }
}

/// Every task with its scores.
#[derive(Debug)]
pub struct Report {
    lines: Vec<Line>,
    total: Total,
}

/// A task.
#[derive(Debug, Serialize)]
struct Line {
    id: Value,
    continuations: Vec<Continuation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gold: Option<Gold>,
}

#[derive(Debug, Serialize)]
struct Continuation {
    tokens: usize,
    log_likelihood: f64,
    per_token: f64,
    /// None for token ids.
    per_char: Option<f64>,
    per_byte: Option<f64>,
    is_greedy: bool,
}

/// The right continuation, and whether each measure finds it.
#[derive(Clone, Copy, Debug, Serialize)]
struct Gold {
    index: usize,
    acc: bool,
    acc_norm: Option<bool>,
    acc_bytes: Option<bool>,
}

/// All tasks together.
#[derive(Debug, Serialize)]
struct Total {
    tasks: usize,
    acc: Option<Mean>,
    acc_norm: Option<Mean>,
    acc_bytes: Option<Mean>,
}

/// A share of tasks with its standard error, which needs two tasks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Mean {
    value: f64,
    stderr: Option<f64>,
    tasks: usize,
}

impl Report {
    /// Joins scores with the continuations of tasks.
    pub fn new(tasks: &[Task], pairs: &[Pair], scores: &[Score]) -> Self {
        let mut scored = pairs.iter().zip(scores).map(|(pair, score)| Continuation::new(pair, score));
        let lines: Vec<Line> = tasks
            .iter()
            .map(|task| {
                let continuations: Vec<Continuation> = scored.by_ref().take(task.len()).collect();
                let gold = task.gold.map(|index| Gold::new(index, &continuations));
                Line { id: task.id.clone(), continuations, gold }
            })
            .collect();
        let mean = |of: fn(&Gold) -> Option<bool>| {
            Mean::of(&lines.iter().filter_map(|line| of(line.gold.as_ref()?)).collect::<Vec<_>>())
        };
        let (acc, acc_norm) = (mean(|gold| Some(gold.acc)), mean(|gold| gold.acc_norm));
        let total = Total { tasks: lines.len(), acc, acc_norm, acc_bytes: mean(|gold| gold.acc_bytes) };
        Self { lines, total }
    }

    /// Returns a line of JSON for each task and one for all.
    ///
    /// # Errors
    /// When a name cannot be written as JSON.
    pub fn json(&self) -> Result<String> {
        let refuse = |e: serde_json::Error| Error::Input(format!("a score cannot be written as JSON: {e}"));
        let lines = self.lines.iter().map(|line| serde_json::to_string(line).map_err(refuse));
        let total = std::iter::once_with(|| serde_json::to_string(&self.total).map_err(refuse));
        Ok(lines.chain(total).collect::<Result<Vec<_>>>()?.join("\n") + "\n")
    }
}

impl Continuation {
    fn new(pair: &Pair, score: &Score) -> Self {
        let Score { log_likelihood, is_greedy } = *score;
        // An empty text still has a delimiter's tokens; it has no length to divide by.
        let per = |length: usize| Some(log_likelihood / length as f64).filter(|_| length > 0);
        Self {
            tokens: pair.scored,
            log_likelihood,
            per_token: log_likelihood / pair.scored as f64,
            per_char: pair.length.and_then(|(chars, _)| per(chars)),
            per_byte: pair.length.and_then(|(_, bytes)| per(bytes)),
            is_greedy,
        }
    }
}

impl Gold {
    fn new(index: usize, continuations: &[Continuation]) -> Self {
        // The first of equals, as numpy's argmax.
        let finds = |measure: fn(&Continuation) -> Option<f64>| {
            let values = continuations.iter().map(measure).collect::<Option<Vec<f64>>>()?;
            let best = (0..values.len()).rev().max_by(|&a, &b| values[a].total_cmp(&values[b]));
            Some(best == Some(index))
        };
        Self {
            index,
            acc: finds(|of| Some(of.log_likelihood)) == Some(true),
            acc_norm: finds(|of| of.per_char),
            acc_bytes: finds(|of| of.per_byte),
        }
    }
}

impl Mean {
    /// Returns the share of hits, if there is anything to hit; its standard error is that of the sample, with `n - 1`.
    fn of(hits: &[bool]) -> Option<Self> {
        let tasks = hits.len();
        let value = hits.iter().filter(|hit| **hit).count() as f64 / tasks as f64;
        let stderr = (tasks > 1).then(|| (value * (1.0 - value) / (tasks - 1) as f64).sqrt());
        (tasks > 0).then_some(Self { value, stderr, tasks })
    }
}

impl fmt::Display for Mean {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.4}", self.value)?;
        if let Some(stderr) = self.stderr {
            write!(f, " ± {stderr:.4}")?;
        }
        write!(f, " of {} tasks", self.tasks)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([
            "task",
            ">continuation",
            ">tokens",
            ">log_likelihood",
            ">per_token",
            ">per_char",
            ">per_byte",
            "greedy",
            "gold",
        ]);
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"));
        for line in &self.lines {
            let id = line.id.as_str().map_or_else(|| line.id.to_string(), |id| id.replace(['\n', '|'], " "));
            for (index, of) in line.continuations.iter().enumerate() {
                let mark = |is: bool| if is { "yes" } else { "" }.to_owned();
                table.push([
                    id.clone(),
                    index.to_string(),
                    of.tokens.to_string(),
                    number(Some(of.log_likelihood)),
                    number(Some(of.per_token)),
                    number(of.per_char),
                    number(of.per_byte),
                    mark(of.is_greedy),
                    mark(line.gold.is_some_and(|gold| gold.index == index)),
                ]);
            }
        }
        write!(f, "{table}")?;
        let Total { acc, acc_norm, acc_bytes, .. } = &self.total;
        for (name, mean) in [("acc      ", acc), ("acc_norm ", acc_norm), ("acc_bytes", acc_bytes)] {
            if let Some(mean) = mean {
                write!(f, "\n{name}  {mean}")?;
            }
        }
        if acc.is_some() { writeln!(f) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_means_are_those_of_a_sample() {
        // numpy: std([1, 1, 1, 0], ddof = 1) / 2.
        let mean = Mean::of(&[true, true, true, false]).unwrap();
        assert_eq!((mean.value, mean.tasks), (0.75, 4));
        assert!((mean.stderr.unwrap() - 0.25).abs() < 1e-12);
        assert_eq!(Mean::of(&[true]).unwrap().stderr, None);
        assert_eq!(Mean::of(&[]), None);
    }

    #[test]
    fn each_measure_has_its_own_winner() {
        let continuation = |tokens, log_likelihood: f64, chars: f64| Continuation {
            tokens,
            log_likelihood,
            per_token: log_likelihood / tokens as f64,
            per_char: Some(log_likelihood / chars),
            per_byte: None,
            is_greedy: false,
        };
        let all = [continuation(1, -2.0, 1.0), continuation(4, -3.0, 9.0), continuation(1, -2.0, 2.0)];
        let found = |index| {
            let gold = Gold::new(index, &all);
            (gold.acc, gold.acc_norm, gold.acc_bytes)
        };
        assert_eq!(found(0), (true, Some(false), None));
        assert_eq!(found(1), (false, Some(true), None));
        assert_eq!(found(2), (false, Some(false), None));
    }
}
