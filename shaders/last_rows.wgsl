// The last row of x and of y: out_x[:] = x[T - 1,:] and out_y[:] = y[T - 1,:], once no other row is needed.
// Invocation i copies vector i of x's row or, past its end, one of y's, so loads and stores are coalesced.
// Nothing is rounded. Both rows share a launch, because the launch is the whole cost.

override WG: u32 = 64;

struct Params {
    first_x: u32, // (T - 1) * N / 4
    first_y: u32, // (T - 1) * M / 4
    vectors_x: u32, // N / 4
    vectors_y: u32, // M / 4
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [T, N / 4]
@group(0) @binding(2) var<storage, read> y: array<vec4<f32>>; // [T, M / 4]
@group(0) @binding(3) var<storage, read_write> out_x: array<vec4<f32>>; // [1, N / 4]
@group(0) @binding(4) var<storage, read_write> out_y: array<vec4<f32>>; // [1, M / 4]

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < params.vectors_x {
        out_x[id.x] = x[params.first_x + id.x];
    } else if id.x < params.vectors_x + params.vectors_y {
        let vector = id.x - params.vectors_x;
        out_y[vector] = y[params.first_y + vector];
    }
}
