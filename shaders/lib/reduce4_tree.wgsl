// Sums of a few vectors over a workgroup of WG invocations, a power of two, by one barrier tree for all
// of them. Every invocation calls `share` for each vector and `settle` once; then any may call `total`.
// reduce4_subgroup.wgsl defines the same names and says why `main` is here.

// Vector k of each invocation, then sums of several: 12 KiB for four tokens, their squares and WG 128.
var<workgroup> parts: array<vec4<f32>, (TOKENS + EXTRA) * WG>;

struct Invocation {
    group: vec3<u32>,
    groups: vec3<u32>,
    index: u32,
}

fn share(k: u32, value: vec4<f32>, at: Invocation) {
    parts[k * WG + at.index] = value;
}

fn settle(at: Invocation) {
    for (var stride = WG / 2u; stride > 0u; stride /= 2u) {
        workgroupBarrier();
        if at.index < stride {
            for (var k = at.index; k < (TOKENS + EXTRA) * WG; k += WG) {
                parts[k] += parts[k + stride];
            }
        }
    }
    if TOKENS > 1u {
        workgroupBarrier();
    }
}

// Never called: APART is 0 without subgroups.
fn spread(v: vec4<f32>) -> Values16 {
    return Values16(v, v, v, v);
}

fn quarter(at: Invocation) -> u32 {
    return 0u;
}

fn total(k: u32, at: Invocation) -> vec4<f32> {
    return parts[k * WG];
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    run(Invocation(group, groups, index));
}
