// Four neighbouring logits of a row, NaN past its end, for a V that is no multiple of 4: rows are then not
// aligned to vectors. bits_vectors.wgsl defines the same names.

alias Bits = u32;

fn bits4(row: u32, vector: u32, vocabulary: u32) -> vec4<u32> {
    let lanes = vec4<u32>(vector * 4u) + vec4<u32>(0u, 1u, 2u, 3u);
    let at = row * vocabulary + min(lanes, vec4<u32>(vocabulary - 1u));
    let bits = vec4<u32>(logits[at.x], logits[at.y], logits[at.z], logits[at.w]);
    return select(bits, vec4<u32>(0xffffffffu), lanes >= vec4<u32>(vocabulary));
}
