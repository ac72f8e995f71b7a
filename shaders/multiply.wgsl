// Product of a window with factors: out[r,c] = a[r,c] * b[r, c / W] or a[r,c] * b[c % W]
//   one factor per run of W values, or one vector for all runs; a run is a row, or a head of one
// Invocation i computes value i, so loads and stores are coalesced. One f32 rounding. One of the steps of an
// unfused RMSNorm, a launch and a round trip for hardly any work: it measures what rms_norm and qk_norm save.

override WG: u32 = 64;
override PER_RUN: bool = true; // one factor for each run

struct Params {
    elements: u32, // R * C
    cols: u32, // C, a multiple of W
    width: u32, // W
    a_first: u32, // where the window begins in a
    a_stride: u32, // from row to row of a
    out_first: u32, // where the window begins in out
    out_stride: u32, // from row to row of out
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>; // [R, C] of [T, a_stride]
@group(0) @binding(2) var<storage, read> b: array<f32>; // [R, C / W] or [W]
@group(0) @binding(3) var<storage, read_write> out: array<f32>; // [R, C] of [T, out_stride]

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let i = (group.y * groups.x + group.x) * WG + index;
    if i < params.elements {
        let row = i / params.cols;
        let col = i % params.cols;
        let factor = b[select(i % params.width, i / params.width, PER_RUN)];
        out[params.out_first + row * params.out_stride + col] =
            a[params.a_first + row * params.a_stride + col] * factor;
    }
}
