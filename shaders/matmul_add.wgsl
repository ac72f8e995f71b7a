// Matrix product for several tokens, plus what was there before.
//   out[t, row0 + r] = residual[t, row0 + r] + W[r,:] . x[t,:]
// A workgroup computes a tile of tokens x rows in registers (lib/tile_*.wgsl) and adds the residual as it
// stores: the product alone is never stored. f32 accumulation. Tokens and rows past the end repeat the last one,
// unwritten.

struct Params {
    cols: u32, // K, a multiple of 32
    rows: u32, // of this part of the weight
    row0: u32, // where the part begins in out
    tokens: u32, // T
    width: u32, // N
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> residual: array<f32>; // [T, N]
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>; // [T, K / 4]
@group(0) @binding(3) var<storage, read_write> out: array<f32>; // [T, N]

// Those past the end are the last one.
fn weight_row(tile: u32, place: u32) -> u32 {
    return min(tile * ROWS + place, params.rows - 1u);
}

fn x_row(token: u32) -> u32 {
    return min(token, params.tokens - 1u);
}

// Rows place, place + 8, place + 16 and place + 24 of a tile, of one token.
fn store(token: u32, tile: u32, place: u32, sums: vec4<f32>) {
    if token < params.tokens {
        let row = tile * ROWS + place;
        let to = token * params.width + params.row0;
        for (var b = 0u; b < 4u; b++) {
            if row + 8u * b < params.rows {
                out[to + row + 8u * b] = residual[to + row + 8u * b] + sums[b];
            }
        }
    }
}
