// Matrix product for several tokens.
//   out[t, row0 + r] = W[r,:] . x[t,:]
// One workgroup of 64 invocations computes a tile of 8 * GROUPS tokens x 32 rows, each invocation
// GROUPS x 4 of it in registers (lib/tile.wgsl); few tokens take few groups. f32 accumulation. Tokens and
// rows past the end repeat the last one, unwritten.

override GROUPS: u32 = 4; // groups of 8 tokens in a tile: 1, 2, 3, 4 or 8

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

var<workgroup> x_tile: array<vec4<f32>, 72 * GROUPS>; // 8 GROUPS x PITCH, of tile_product
var<workgroup> w_tile: array<vec4<f32>, 288>; // ROWS x PITCH, of tile_product

fn weight_row(tile: u32, place: u32) -> u32 {
    return min(tile * ROWS + place, params.rows - 1u);
}

// Rows row, row + 8, row + 16 and row + 24 of one token.
fn store(token: u32, row: u32, sums: vec4<f32>) {
    if token < params.tokens {
        let to = token * params.width + params.row0;
        for (var b = 0u; b < 4u; b++) {
            if row + 8u * b < params.rows {
                out[to + row + 8u * b] = sums[b];
            }
        }
    }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let sums = tile_product(group, i, params.cols, params.tokens);
    let token = group.y * GROUPS * 8u + i / 8u;
    let row = group.x * ROWS + i % 8u;
    store(token, row, sums.a0);
    if GROUPS > 1u {
        store(token + 8u, row, sums.a1);
    }
    if GROUPS > 2u {
        store(token + 16u, row, sums.a2);
    }
    if GROUPS > 3u {
        store(token + 24u, row, sums.a3);
    }
    if GROUPS > 4u {
        store(token + 32u, row, sums.a4);
        store(token + 40u, row, sums.a5);
        store(token + 48u, row, sums.a6);
        store(token + 56u, row, sums.a7);
    }
}
