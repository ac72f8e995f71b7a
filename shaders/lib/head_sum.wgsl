// Sum over the LANES invocations that share a head; WG is a multiple of LANES. Every invocation must call, with
// a barrier before the next call: `scratch` is not free on return. One barrier and LANES broadcast reads. A head
// has at most 16 lanes, but a subgroup may be smaller, so every tier does it this way.

fn head_sum(value: f32, index: u32) -> f32 {
    scratch[index] = value;
    workgroupBarrier();
    let first = index - index % LANES;
    var total = 0.0;
    for (var i = 0u; i < LANES; i++) {
        total += scratch[first + i];
    }
    return total;
}
