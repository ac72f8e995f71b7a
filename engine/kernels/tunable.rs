//! Tunables: values that decide how fast a dispatch is, not what it computes.

use std::collections::BTreeMap;
use std::fmt;

/// A value that decides how fast a dispatch is, not what it computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunable {
    /// The name of the shader's `override`.
    pub name: &'static str,
    /// The value without any tuning.
    pub default: u32,
    /// Every value that the kernel can run with.
    pub values: Vec<u32>,
}

impl Tunable {
    /// Returns the tunable `WG`, the invocations of a workgroup.
    pub fn workgroup(default: u32) -> Self {
        Self { name: "WG", default, values: vec![32, 64, 128, 256] }
    }
}

/// Values for tunables by name. A tunable without a valid value keeps its default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice(BTreeMap<String, u32>);

impl Choice {
    /// Returns the choice of every default.
    pub fn defaults(tunables: &[Tunable]) -> Self {
        tunables.iter().map(|tunable| (tunable.name.to_owned(), tunable.default)).collect()
    }

    /// Returns every possible choice of one value for each tunable.
    pub fn all(tunables: &[Tunable]) -> Vec<Self> {
        let with = |choices: Vec<Self>, tunable: &Tunable| {
            let each = |choice: Self| {
                tunable.values.iter().map(move |&value| {
                    let mut choice = choice.clone();
                    choice.0.insert(tunable.name.to_owned(), value);
                    choice
                })
            };
            choices.into_iter().flat_map(each).collect()
        };
        tunables.iter().fold(vec![Self::default()], with)
    }

    /// Returns the value of a tunable.
    pub fn of(&self, tunable: &Tunable) -> u32 {
        let chosen = self.0.get(tunable.name).filter(|value| tunable.values.contains(value));
        *chosen.unwrap_or(&tunable.default)
    }

    /// Returns the choice, with the values of `other` for tunables that it has none for.
    pub fn or(mut self, other: Self) -> Self {
        other.0.into_iter().for_each(|(name, value)| _ = self.0.entry(name).or_insert(value));
        self
    }

    /// Yields names and values in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        self.0.iter().map(|(name, &value)| (name.as_str(), value))
    }
}

impl fmt::Display for Choice {
    /// Writes `WG=64 GROUPS=4`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values: Vec<String> = self.iter().map(|(name, value)| format!("{name}={value}")).collect();
        f.pad(&values.join(" "))
    }
}

impl FromIterator<(String, u32)> for Choice {
    fn from_iter<I: IntoIterator<Item = (String, u32)>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}
