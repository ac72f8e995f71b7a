// Embedding lookup with dequantization.
//   out[t,:] = E[ids[t] - row0, :]   if row0 <= ids[t] < row0 + rows; rows of other tokens are not written
// Invocation i copies a chunk of 16 columns of one token. A table split over several bindings takes one
// dispatch per part. Ids are device data, so the range check also keeps reads in bounds.

override WG: u32 = 64;

struct Params {
    chunks: u32, // T * D / 16
    cols: u32, // D
    rows: u32, // of this part of the table
    row0: u32, // where the part begins in the table
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> ids: array<u32>; // [T]
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>; // [T, D / 4]

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.chunks {
        return;
    }
    let row_chunks = params.cols / 16u;
    let row = ids[id.x / row_chunks] - params.row0; // wraps to a large value below row0
    if row < params.rows {
        let chunk = id.x % row_chunks;
        let w = weight_chunk(piece(row, chunk / PARTS, params.cols), chunk % PARTS);
        out[id.x * 4u] = w.a;
        out[id.x * 4u + 1u] = w.b;
        out[id.x * 4u + 2u] = w.c;
        out[id.x * 4u + 3u] = w.d;
    }
}
