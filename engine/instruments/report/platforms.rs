//! The environments of measurements, each under a name that no other has.

use crate::instruments::document::{Ceilings, Document, Environment, Subject};
use crate::instruments::names;
use crate::session::KvFormat;

/// An environment with what is known about it.
pub struct Platform<'a> {
    /// The environment.
    pub environment: &'a Environment,
    /// The adapter, and, if environments share it, the facts in which they differ.
    pub label: String,
    /// The highest of each that any document measured there; ablations measure none.
    pub ceilings: Option<Ceilings>,
    /// Files with results from there.
    pub files: Vec<&'a str>,
}

/// Every environment of the documents, in the order in which they come.
pub struct Platforms<'a>(Vec<Platform<'a>>);

impl<'a> Platforms<'a> {
    /// Collects the environments.
    pub fn of(documents: &'a [(String, Document)]) -> Self {
        let mut platforms: Vec<Platform> = Vec::new();
        for (file, document) in documents {
            for (environment, ceilings) in measured(document) {
                let known = platforms.iter().position(|platform| platform.environment == environment);
                let index = known.unwrap_or(platforms.len());
                if known.is_none() {
                    let label = environment.adapter.clone();
                    platforms.push(Platform { environment, label, ceilings: None, files: Vec::new() });
                }
                let platform = &mut platforms[index];
                platform.ceilings = highest(platform.ceilings, ceilings);
                if !platform.files.contains(&&**file) {
                    platform.files.push(file);
                }
            }
        }
        let labels: Vec<String> = platforms.iter().map(|platform| label(platform, &platforms)).collect();
        platforms.iter_mut().zip(labels).for_each(|(platform, label)| platform.label = label);
        Self(platforms)
    }

    /// Yields the platforms.
    pub fn iter(&self) -> impl Iterator<Item = &Platform<'a>> {
        self.0.iter()
    }

    /// Returns the platform of an environment.
    pub fn at(&self, environment: &Environment) -> &Platform<'a> {
        &self.0[self.index(environment)]
    }

    /// Returns the index of an environment's platform.
    pub fn index(&self, environment: &Environment) -> usize {
        let index = self.0.iter().position(|platform| platform.environment == environment);
        index.expect("platforms are those of every document")
    }
}

/// Returns every environment in a document with the ceilings that it found there.
fn measured(document: &Document) -> Vec<(&Environment, Option<Ceilings>)> {
    match document {
        Document::Bench(bench) => {
            bench.rows.iter().map(|row| (&row.environment, Some(row.ceilings))).collect()
        }
        Document::Profile(profile) => vec![(&profile.environment, Some(profile.ceilings))],
        Document::Kernels(kernels) => vec![(&kernels.environment, Some(kernels.ceilings))],
        Document::Ablation(ablation) => vec![(&ablation.environment, None)],
    }
}

fn highest(a: Option<Ceilings>, b: Option<Ceilings>) -> Option<Ceilings> {
    let (Some(x), Some(y)) = (a, b) else { return a.or(b) };
    Some(Ceilings {
        copy_gb_s: x.copy_gb_s.max(y.copy_gb_s),
        fma_gflop_s: x.fma_gflop_s.max(y.fma_gflop_s),
        matrix_gflop_s: match (x.matrix_gflop_s, y.matrix_gflop_s) {
            (Some(x), Some(y)) => Some(x.max(y)),
            (x, y) => x.or(y),
        },
    })
}

/// Returns the adapter's name with the facts in which other platforms of the same adapter differ.
fn label(platform: &Platform, platforms: &[Platform]) -> String {
    let adapter = &platform.environment.adapter;
    let alike = || platforms.iter().filter(|other| other.environment.adapter == *adapter);
    let own = names::facts(platform.environment);
    let differing = own.iter().enumerate().filter(|(index, (_, value))| {
        alike().any(|other| names::facts(other.environment)[*index].1 != *value)
    });
    let differing: Vec<String> = differing.map(|(_, (name, value))| format!("{name} {value}")).collect();
    let software = if platform.environment.software { " [software]" } else { "" };
    if differing.is_empty() {
        format!("{adapter}{software}")
    } else {
        format!("{adapter}{software} ({})", differing.join(", "))
    }
}

/// Returns a short name for a chart: the end of a path, the cache's format only if it is not the default,
/// the number of rules that are off if there are several. The table has the rest.
pub fn short(subject: &Subject) -> String {
    let usual = subject.kv == KvFormat::default().to_string();
    let kv = if usual { String::new() } else { format!(", kv {}", subject.kv) };
    let without = match &subject.rules_off[..] {
        [] | [_] => names::without(subject),
        several => format!(", without {} rules", several.len()),
    };
    let model = subject.model.rsplit(['/', '\\']).find(|part| !part.is_empty()).unwrap_or(&subject.model);
    format!("{} {}{kv}{without}", cut(model, 28), subject.format)
}

/// Returns a text, or its end, in at most `length` characters.
fn cut(text: &str, length: usize) -> String {
    let count = text.chars().count();
    if count <= length {
        return text.to_owned();
    }
    let end: String = text.chars().skip(count + 1 - length).collect();
    format!("…{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_charts_are_short() {
        let mut subject = Subject {
            model: "/home/somebody/OpenELM-270M/".into(),
            parameters: 1,
            format: "q4_0".into(),
            kv: "f16".into(),
            rules_off: Vec::new(),
        };
        assert_eq!(short(&subject), "OpenELM-270M q4_0");
        subject.rules_off.push("add-rms-norm".into());
        assert_eq!(short(&subject), "OpenELM-270M q4_0, without add-rms-norm");
        subject.rules_off.push("qk-norm-rope".into());
        subject.kv = "f32".into();
        subject.model = "äöü".repeat(10);
        assert_eq!(short(&subject), format!("…{} q4_0, kv f32, without 2 rules", "äöü".repeat(9)));
        subject.model = "/".into();
        assert!(short(&subject).starts_with("/ q4_0"));
    }
}
