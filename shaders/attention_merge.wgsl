// Merges the partial results of workgroups that shared the keys of a row and head (lib/attend.wgsl).
//   out[t,h,:] = sum_i 2^(top_i - top) * sum_i[:] / sum_i 2^(top_i - top) * total_i,   top = max_i top_i
// Part i is Dh sums, then (top_i, total_i, 0, 0); a part without keys has the lowest top and zeros.
// Each invocation computes one vector of the output. Bound by the launch.

override WG: u32 = 64;
override COLS: u32 = 16; // Dh / 4
override SPLITS: u32 = 4;

struct Params {
    rows: u32, // T * H
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> parts: array<vec4<f32>>; // [T, H, SPLITS, Dh / 4 + 1]
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>; // [T, H, Dh / 4]

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.x / COLS;
    if row >= params.rows {
        return;
    }
    let first = row * SPLITS * (COLS + 1u);
    // The first part is never empty.
    var top = parts[first + COLS].x;
    for (var i = 1u; i < SPLITS; i++) {
        top = max(top, parts[first + i * (COLS + 1u) + COLS].x);
    }
    var total = 0.0;
    var sum = vec4<f32>(0.0);
    for (var i = 0u; i < SPLITS; i++) {
        let part = first + i * (COLS + 1u);
        // Exactly 1 for the largest top, so that a single part keeps its bits.
        let own = parts[part + COLS].x;
        let weight = select(exp2(own - top), 1.0, own == top);
        total += weight * parts[part + COLS].y;
        sum += weight * parts[part + id.x % COLS];
    }
    out[id.x] = sum / total;
}
