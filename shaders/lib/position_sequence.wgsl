// Positions of the rows of a step in the KV cache: consecutive in one sequence, from `position[0]` on. A step that
// would overrun the cache is moved to its end. position_batch.wgsl defines the same names.

fn position_of(t: u32) -> u32 {
    return min(position[0], params.capacity - params.tokens) + t;
}

// The part of the cache that holds the row's sequence.
fn slot(t: u32) -> u32 {
    return 0u;
}

// Rows of this step that row t sees, at consecutive positions; the last is row t.
fn seen(t: u32) -> u32 {
    return t + 1u;
}
