//! The names that instruments use for what they measured, and where.

use crate::instruments::document::{Environment, Subject};

/// Returns a model with its format, cache and the rules that are off: `demo q4_0, kv f16, without add-rms-norm`.
pub fn subject(subject: &Subject) -> String {
    format!("{} {}, kv {}{}", subject.model, subject.format, subject.kv, without(subject))
}

/// Returns the rules that are off, as the end of a name; nothing when all are on.
pub fn without(subject: &Subject) -> String {
    if subject.rules_off.is_empty() {
        String::new()
    } else {
        format!(", without {}", subject.rules_off.join(", "))
    }
}

/// Returns the facts of an environment, in words, with the same names in the same order for each.
pub(crate) fn facts(environment: &Environment) -> [(&'static str, String); 11] {
    let Environment { software, device, replaced_shaders, tuned, .. } = environment;
    let device =
        if *software && device != "software" { format!("{device}, software") } else { device.clone() };
    let shaders = if replaced_shaders.is_empty() { "none".to_owned() } else { replaced_shaders.join(", ") };
    [
        ("adapter", environment.adapter.clone()),
        ("device", device),
        ("backend", environment.backend.clone()),
        ("driver", environment.driver.clone()),
        ("tier", environment.tier.clone()),
        ("clock", environment.clock.clone()),
        ("tuned", tuned.to_string()),
        ("replaced shaders", shaders),
        ("system", environment.system.clone()),
        ("samara", environment.samara.clone()),
        ("commit", environment.commit.clone()),
    ]
}

/// Returns the clock in words.
pub fn clock(clock: &str) -> &str {
    match clock {
        "timestamps" => "timestamps of the device",
        "pass-timestamps" => "timestamps of the device around passes",
        "wall" => "the wall clock",
        other => other,
    }
}
