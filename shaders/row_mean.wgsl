// Mean of each run of W values of a row: out[r,n] = sum(x[r, n*W .. (n+1)*W]) / W
//   a run is a whole row of an activation, or a head of queries or keys
// Workgroup (n, r) computes one mean; invocation i adds values i, i + WG, ... of the run. Sum in f32. One of the
// steps of an unfused RMSNorm, a launch and a round trip: it measures what rms_norm and qk_norm save.

override WG: u32 = 64;

struct Params {
    runs: u32, // N
    width: u32, // W
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>; // [R, N, W]
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // [R, N]

var<workgroup> scratch: array<f32, WG>; // for reduce_add

// Called by `main` of lib/reduce_*.wgsl.
fn run(group: vec3<u32>, at: Invocation) {
    let run = group.y * params.runs + group.x;
    var sum = 0.0;
    for (var i = at.index; i < params.width; i += WG) {
        sum += x[run * params.width + i];
    }
    let total = reduce_add(sum, at);
    if at.index == 0u {
        out[run] = total / f32(params.width);
    }
}
