// Reductions over a workgroup of WG invocations by subgroup operations: one value per subgroup goes
// through `scratch`, so two barriers serve any WG. Every invocation must call and gets the result;
// `scratch` is free again on return. reduce_tree.wgsl defines the same names without subgroups.
// `main` is here and calls the kernel's `run`, because subgroup built-ins have to be arguments of the entry point:
// naga writes those that are members of a struct to HLSL without a value, and DX12 rejects them. `run` gets the group
// as a separate argument: values from a struct with non-uniform members, and barriers under them, count as non-uniform.

struct Invocation {
    index: u32,
    subgroup: u32,
    subgroups: u32,
    lane: u32,
}

fn reduce_add(value: f32, at: Invocation) -> f32 {
    let part = subgroupAdd(value);
    if at.lane == 0u {
        scratch[at.subgroup] = part;
    }
    workgroupBarrier();
    var total = 0.0;
    for (var i = 0u; i < at.subgroups; i++) {
        total += scratch[i];
    }
    workgroupBarrier();
    return total;
}

fn reduce_max(value: f32, at: Invocation) -> f32 {
    let part = subgroupMax(value);
    if at.lane == 0u {
        scratch[at.subgroup] = part;
    }
    workgroupBarrier();
    var top = scratch[0];
    for (var i = 1u; i < at.subgroups; i++) {
        top = max(top, scratch[i]);
    }
    workgroupBarrier();
    return top;
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    run(group, Invocation(index, subgroup, subgroups, lane));
}
