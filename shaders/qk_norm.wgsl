// RMSNorm of each q and k head over its own Dh values; v heads are left alone.
//   out[t,h,:] = qkv[t,h,:] * w * rsqrt(mean(qkv[t,h,:]^2) + eps),   w = q_weight for h < H, else k_weight
// One workgroup per head h and token t; invocation i takes vector i of the head. Sum of squares in f32.

override WG: u32 = 32;

struct Params {
    head_vectors: u32, // Dh / 4, at most WG
    query_heads: u32, // H
    row: u32, // (H + 2 Hkv) * Dh / 4
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> qkv: array<vec4<f32>>; // [T, H + 2 Hkv, Dh / 4]
@group(0) @binding(2) var<storage, read> q_weight: array<vec4<f32>>; // [Dh / 4]
@group(0) @binding(3) var<storage, read> k_weight: array<vec4<f32>>; // [Dh / 4]
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>; // [T, H + Hkv, Dh / 4]

var<workgroup> scratch: array<f32, WG>; // of reduce_add

@compute @workgroup_size(WG)
fn main(at: Invocation, @builtin(num_workgroups) groups: vec3<u32>) {
    let head = at.group.x;
    let owns = at.index < params.head_vectors;
    var v = vec4<f32>(0.0);
    if owns {
        v = qkv[at.group.y * params.row + head * params.head_vectors + at.index];
    }
    let mean = reduce_add(dot(v, v), at) / f32(params.head_vectors * 4u);
    if owns {
        var w = k_weight[at.index];
        if head < params.query_heads {
            w = q_weight[at.index];
        }
        let heads = groups.x;
        out[(at.group.y * heads + head) * params.head_vectors + at.index] =
            v * w * inverseSqrt(mean + params.eps);
    }
}
