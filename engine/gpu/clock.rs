//! Clocks: how a device can time dispatches.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// The clocks, the coarsest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Clock {
    /// The host's clock around many repetitions of a dispatch.
    Wall,
    /// GPU timestamps at the ends of passes: each dispatch is a separate pass.
    PassTimestamps,
    /// GPU timestamps between the dispatches of one pass.
    Timestamps,
}

impl Clock {
    const ALL: [Self; 3] = [Self::Wall, Self::PassTimestamps, Self::Timestamps];

    /// The features that a device needs for its best clock.
    pub(super) const FEATURES: wgpu::Features =
        wgpu::Features::TIMESTAMP_QUERY.union(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES);

    pub(super) fn of(features: wgpu::Features) -> Self {
        if features.contains(Self::FEATURES) {
            Self::Timestamps
        } else if features.contains(wgpu::Features::TIMESTAMP_QUERY) {
            Self::PassTimestamps
        } else {
            Self::Wall
        }
    }
}

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Wall => "wall",
            Self::PassTimestamps => "pass-timestamps",
            Self::Timestamps => "timestamps",
        })
    }
}

impl FromStr for Clock {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|clock| clock.to_string() == name);
        found.ok_or_else(|| {
            Error::Input(format!("clock `{name}` is none of timestamps, pass-timestamps, wall"))
        })
    }
}
