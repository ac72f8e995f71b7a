// Matrix product for several tokens.
//   out[t, row0 + r] = W[r,:] . x[t,:]
// A workgroup computes a tile of tokens x rows in registers (lib/tile_*.wgsl); few tokens take few groups.
// f32 accumulation. Tokens and rows past the end repeat the last one, unwritten.

struct Params {
    cols: u32, // K, a multiple of 32
    rows: u32, // of this part of the weight
    row0: u32, // where the part begins in out
    tokens: u32, // T
    width: u32, // N
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [T, K / 4]
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // [T, N]

fn x_row(token: u32) -> u32 {
    return min(token, params.tokens - 1u);
}
