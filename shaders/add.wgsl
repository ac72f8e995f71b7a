// Residual connection: out = a + b, element by element.
// Invocation i adds vector i of both inputs, so that loads and stores are coalesced.
// One f32 rounding per value.
// Bound by bandwidth: only the launch could be saved, and add_rms_norm saves it.

override WG: u32 = 64;

struct Params {
    vectors: u32, // T * D / 4
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>; // [T, D / 4]
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>; // [T, D / 4]
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>; // [T, D / 4]

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < params.vectors {
        out[id.x] = a[id.x] + b[id.x];
    }
}
