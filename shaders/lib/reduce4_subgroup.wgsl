// Sum of a vector over a workgroup of WG invocations: subgroups add, then one barrier and a sum of one
// vector per subgroup. Every invocation must call; the first gets the result. reduce4_tree.wgsl
// defines the same names without subgroups.
// `main` is here, and calls the kernel's `run`, because subgroup built-ins are arguments of the entry point:
// naga writes those that are members of a struct to HLSL without a value, and DX12 refuses them.

struct Invocation {
    group: vec3<u32>,
    groups: vec3<u32>,
    index: u32,
    subgroup: u32,
    subgroups: u32,
    lane: u32,
}

fn reduce_add4(value: vec4<f32>, at: Invocation) -> vec4<f32> {
    let part = subgroupAdd(value);
    if at.lane == 0u {
        scratch[at.subgroup] = part;
    }
    workgroupBarrier();
    var total = scratch[0];
    for (var i = 1u; i < at.subgroups; i++) {
        total += scratch[i];
    }
    return total;
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
