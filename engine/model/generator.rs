//! The counter-based generator of synthetic weights.
//!
//! Value `i` of a tensor depends on the tensor's name, the seed and `i` alone, so any rows of any
//! tensor can be generated directly, in any order, on any machine.
//!
//! ```text
//! mix(z)  = z ^= z >> 30; z *= 0xbf58476d1ce4e5b9; z ^= z >> 27; z *= 0x94d049bb133111eb; z ^= z >> 31
//! g       = 0x9e3779b97f4a7c15
//! key     = fnv1a64(name) ^ mix(seed + g)
//! u       = ((mix(key + (i + 1) g) >> 40) - 2^23) / 2^23          in [-1, 1)
//! value   = 1 + u / 4 (norms);  u / 16 (embedding);  sqrt(3 / columns) u (other matrices)
//! ```

use super::names;

/// Golden ratio of 2^64: the step between counters.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The values of one tensor.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    key: u64,
    offset: f32,
    scale: f32,
}

impl Stream {
    pub(super) fn new(name: &str, cols: usize, seed: u64) -> Self {
        let (offset, scale) = match name {
            _ if names::is_norm(name) => (1.0, 0.25),
            names::EMBEDDING => (0.0, 0.0625),
            _ => (0.0, (3.0 / cols as f64).sqrt() as f32),
        };
        Self { key: key(name, seed), offset, scale }
    }

    /// Writes the values from index `first` on, not yet rounded to a stored type.
    pub(super) fn fill(&self, first: usize, out: &mut [f32]) {
        for (i, out) in (first as u64..).zip(out) {
            *out = self.offset + self.scale * uniform(self.key, i);
        }
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

pub(super) fn key(name: &str, seed: u64) -> u64 {
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    name.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, fnv) ^ mix(seed.wrapping_add(STEP))
}

/// Returns a multiple of 2^-23 in [-1, 1), exact in f32.
pub(super) fn uniform(key: u64, i: u64) -> f32 {
    let h = mix(key.wrapping_add(i.wrapping_add(1).wrapping_mul(STEP)));
    ((h >> 40) as i32 - (1 << 23)) as f32 / (1 << 23) as f32
}
