// One elementary operation on every value of a window: out[r,c] = f(x[r,c])
//   f(v) = v * v, v + constant or 1 / sqrt(v)
// Invocation i computes value i of out, so stores are coalesced. One f32 rounding; rsqrt within 2 ULP. One of the
// steps of an unfused RMSNorm, a launch and a round trip for hardly any work: it measures what rms_norm and
// qk_norm save.

override WG: u32 = 64;
override OPERATION: u32 = 0; // 0: v * v, 1: v + constant, 2: 1 / sqrt(v)

struct Params {
    elements: u32, // R * C
    cols: u32, // C
    first: u32, // where the window begins in x
    stride: u32, // from row to row of x
    constant: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>; // [R, C] of [T, stride]
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // [R, C]

fn apply(v: f32) -> f32 {
    switch OPERATION {
        case 0u: { return v * v; }
        case 1u: { return v + params.constant; }
        default: { return inverseSqrt(v); }
    }
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let i = (group.y * groups.x + group.x) * WG + index;
    if i < params.elements {
        out[i] = apply(x[params.first + i / params.cols * params.stride + i % params.cols]);
    }
}
