// Four neighbouring logits of a row in one load, for a V that is a multiple of 4. The including kernel binds
// `logits: array<Bits>`. bits_scalars.wgsl defines the same names for any V.

alias Bits = vec4<u32>;

fn bits4(row: u32, vector: u32, vocabulary: u32) -> vec4<u32> {
    return logits[row * (vocabulary / 4u) + vector];
}
