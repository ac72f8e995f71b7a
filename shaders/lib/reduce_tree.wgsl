// Reductions over a workgroup of WG invocations, a power of two, by a barrier tree in `scratch`.
// Every invocation must call and gets the result; `scratch` is free again on return. reduce_subgroup.wgsl defines
// the same names with subgroup operations, and says why `main` is here and why `run` gets the group separately.

struct Invocation {
    index: u32,
}

fn reduce_add(value: f32, at: Invocation) -> f32 {
    scratch[at.index] = value;
    for (var stride = WG / 2u; stride > 0u; stride /= 2u) {
        workgroupBarrier();
        if at.index < stride {
            scratch[at.index] += scratch[at.index + stride];
        }
    }
    workgroupBarrier();
    let total = scratch[0];
    workgroupBarrier();
    return total;
}

fn reduce_max(value: f32, at: Invocation) -> f32 {
    scratch[at.index] = value;
    for (var stride = WG / 2u; stride > 0u; stride /= 2u) {
        workgroupBarrier();
        if at.index < stride {
            scratch[at.index] = max(scratch[at.index], scratch[at.index + stride]);
        }
    }
    workgroupBarrier();
    let top = scratch[0];
    workgroupBarrier();
    return top;
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    run(group, Invocation(index));
}
