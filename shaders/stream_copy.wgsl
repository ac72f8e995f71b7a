// Stream copy: measures an adapter's memory bandwidth, the ceiling of every memory-bound kernel.
//   out[i] = x[i]
// A workgroup copies 4 WG neighbouring vectors; invocation i takes vectors i, i + WG, i + 2 WG and i + 3 WG of
// them. So accesses are coalesced, and four loads are in flight before the first store. Values are copied as
// bits, so NaN survives. Measured on buffers far larger than any cache.

override WG: u32 = 256;

struct Params {
    vectors: u32, // N / 4
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<u32>>; // [N / 4], bits of f32
@group(0) @binding(2) var<storage, read_write> out: array<vec4<u32>>; // [N / 4]

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let first = (group.y * groups.x + group.x) * 4u * WG + index;
    let last = params.vectors - 1u;
    // Past the end the last vector is loaded again; it is not stored.
    let a = x[min(first, last)];
    let b = x[min(first + WG, last)];
    let c = x[min(first + 2u * WG, last)];
    let d = x[min(first + 3u * WG, last)];
    if first <= last {
        out[first] = a;
    }
    if first + WG <= last {
        out[first + WG] = b;
    }
    if first + 2u * WG <= last {
        out[first + 2u * WG] = c;
    }
    if first + 3u * WG <= last {
        out[first + 3u * WG] = d;
    }
}
