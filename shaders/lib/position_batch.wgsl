// Positions of the rows of a batch in the KV cache: each row is of another sequence, at its (position, slot) in
// `position`, clamped to the cache. position_sequence.wgsl defines the same names.

fn position_of(t: u32) -> u32 {
    return min(position[2u * t], params.capacity - 1u);
}

// The part of the cache that holds the row's sequence.
fn slot(t: u32) -> u32 {
    return min(position[2u * t + 1u], params.slots - 1u);
}

// Rows of this step that row t sees: itself.
fn seen(t: u32) -> u32 {
    return 1u;
}
