// Sums of a few vectors over a workgroup of WG invocations: subgroups add, then one barrier and a sum of one
// vector per subgroup. With LANES 1, each invocation keeps its own. Every invocation calls `share` for each vector
// and `settle` once; then invocations t < TOKENS, or all, may call `total`. reduce4_tree.wgsl defines the same
// names without subgroups.
// With one subgroup and TOKENS 1 the barrier is not needed. Deleting it made [1152, 1280] 7 % faster on llvmpipe,
// a branch around it did not.
// `main` is here and calls the kernel's `run`, because subgroup built-ins have to be arguments of the entry point:
// naga writes those that are members of a struct to HLSL without a value, and DX12 rejects them.

override PITCH: u32 = WG / 4u + SLOTS; // no subgroup has fewer than 4 invocations

var<workgroup> parts: array<vec4<f32>, (TOKENS + EXTRA) * PITCH>;

struct Invocation {
    group: vec3<u32>,
    groups: vec3<u32>,
    index: u32,
    subgroup: u32,
    subgroups: u32,
    lane: u32,
}

fn share(k: u32, value: vec4<f32>, at: Invocation) {
    if LANES == 1u {
        parts[k * PITCH + at.index] = value;
        return;
    }
    let part = subgroupAdd(value);
    if at.lane == 0u {
        parts[k * PITCH + at.subgroup] = part;
    }
}

// The quarter of a chunk of 16 values that an invocation loads for its subgroup, if all share a chunk (LANES 1); else
// the first.
fn quarter(at: Invocation) -> u32 {
    return select(0u, at.lane % 4u, LANES == 1u);
}

// The four quarters, from the invocations that loaded them. Every invocation must call. Only called with LANES 1, where
// loops are uniform, which WGSL's analysis cannot see.
@diagnostic(off, subgroup_uniformity)
fn spread(v: vec4<f32>) -> Values16 {
    return Values16(
        subgroupBroadcast(v, 0u),
        subgroupBroadcast(v, 1u),
        subgroupBroadcast(v, 2u),
        subgroupBroadcast(v, 3u),
    );
}

fn settle(at: Invocation) {
    workgroupBarrier();
}

fn total(k: u32, at: Invocation) -> vec4<f32> {
    if LANES == 1u {
        return parts[k * PITCH + at.index];
    }
    let first = k * PITCH;
    var sum = parts[first];
    for (var i = 1u; i < at.subgroups; i++) {
        sum += parts[first + i];
    }
    return sum;
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    run(Invocation(group, groups, index, subgroup, subgroups, lane));
}
