// Sum of a vector over a workgroup of WG invocations, a power of two, by a barrier tree in `scratch`.
// Every invocation must call; the first gets the result. reduce4_subgroup.wgsl defines the same names, and
// says why `main` is here.

struct Invocation {
    group: vec3<u32>,
    groups: vec3<u32>,
    index: u32,
}

fn reduce_add4(value: vec4<f32>, at: Invocation) -> vec4<f32> {
    scratch[at.index] = value;
    for (var stride = WG / 2u; stride > 0u; stride /= 2u) {
        workgroupBarrier();
        if at.index < stride {
            scratch[at.index] += scratch[at.index + stride];
        }
    }
    return scratch[0];
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    run(Invocation(group, groups, index));
}
