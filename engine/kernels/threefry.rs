//! Threefry-2x32 with 20 rounds, a counter-based generator: Salmon, Moraes, Dror and Shaw, "Parallel random
//! numbers: as easy as 1, 2, 3", SC 2011. `shaders/lib/threefry.wgsl` is the same in WGSL.

const ROTATIONS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];
/// Makes the third word of the key schedule differ from zero.
const PARITY: u32 = 0x1bd1_1bda;

/// Returns 64 random bits for a key and a counter.
pub fn threefry(key: [u32; 2], counter: [u32; 2]) -> [u32; 2] {
    let schedule = [key[0], key[1], PARITY ^ key[0] ^ key[1]];
    let mut x = [counter[0].wrapping_add(key[0]), counter[1].wrapping_add(key[1])];
    for turn in 0..5 {
        for by in ROTATIONS[turn % 2] {
            x[0] = x[0].wrapping_add(x[1]);
            x[1] = x[1].rotate_left(by) ^ x[0];
        }
        let next = turn + 1;
        x[0] = x[0].wrapping_add(schedule[next % 3]);
        x[1] = x[1].wrapping_add(schedule[(next + 1) % 3]).wrapping_add(next as u32);
    }
    x
}

/// Returns the random number for the token at a position of a sequence, as a share of 2^32.
pub fn random(seed: u64, position: usize) -> u32 {
    threefry([seed as u32, (seed >> 32) as u32], [position as u32, 0])[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_of_the_authors() {
        // Random123, tests/kat_vectors: counter, key, result.
        let max = u32::MAX;
        for (counter, key, expected) in [
            ([0, 0], [0, 0], [0x6b20_0159, 0x99ba_4efe]),
            ([max, max], [max, max], [0x1cb9_96fc, 0xbb00_2be7]),
            ([0x243f_6a88, 0x85a3_08d3], [0x1319_8a2e, 0x0370_7344], [0xc492_3a9c, 0x483d_f7a0]),
        ] {
            assert_eq!(threefry(key, counter), expected);
        }
    }

    #[test]
    fn both_words_of_a_seed_and_the_position_count() {
        let all = [random(1, 2), random(1 << 32, 2), random(1 << 32 | 1, 2), random(1, 3), random(0, 2)];
        assert!((1..all.len()).all(|i| !all[..i].contains(&all[i])), "{all:?}");
    }
}
