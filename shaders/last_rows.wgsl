// The last row of x and of y: out_x[:] = x[T - 1,:] and out_y[:] = y[T - 1,:], where no others are wanted any more.
// Invocation i copies vector i of x's row, or behind those of y's: neighbours touch neighbouring vectors, so every
// load and store is coalesced. Nothing is rounded. Both rows in one launch: what they take is a launch.

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
