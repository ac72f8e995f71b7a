// Matrix product for several tokens.
//   out[t, row0 + r] = W[r,:] . x[t,:]
// One workgroup of 64 invocations computes a tile of 8 * GROUPS tokens x 32 rows, each invocation
// GROUPS x 4 of it; few tokens take few groups. Steps of 32 columns of both operands are staged in
// workgroup memory, weights dequantized once for the tile; a full product then costs 8 vector loads for
// 64 multiply-adds. Tile rows are 9 vectors apart, so
// that 8 neighbours hit different banks. Interleaving (token i + 8 a, row j + 8 b) keeps stores of 8
// neighbours together. f32 accumulation. Tokens and rows past the end repeat the last one, unwritten.

override GROUPS: u32 = 4; // groups of 8 tokens in a tile, 1 to 4

const ROWS = 32u; // of W in a tile
const STEP = 32u; // columns
const PITCH = 9u; // vectors of a staged row: STEP / 4 and one to skew the banks

struct Params {
    cols: u32, // K, a multiple of STEP
    rows: u32, // of this part of the weight
    row0: u32, // where the part begins in out
    tokens: u32, // T
    width: u32, // N
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [T, K / 4]
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // [T, N]

var<workgroup> x_tile: array<vec4<f32>, 288>; // at most 32 x PITCH, each invocation stages GROUPS vectors
var<workgroup> w_tile: array<vec4<f32>, 288>; // ROWS x PITCH, each invocation stages one chunk of 16

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let first_row = group.x * ROWS;
    let tile_tokens = GROUPS * 8u;
    let first_token = group.y * tile_tokens;
    let vectors = params.cols / 4u;
    // Staging: two invocations a row of W, eight a row of x.
    let w_row = min(first_row + i / 2u, params.rows - 1u);
    let w_to = i / 2u * PITCH + i % 2u * 4u;
    let j = i % 8u;
    let k = i / 8u;
    var sums0 = vec4<f32>(0.0);
    var sums1 = vec4<f32>(0.0);
    var sums2 = vec4<f32>(0.0);
    var sums3 = vec4<f32>(0.0);
    for (var step = 0u; step < params.cols / STEP; step++) {
        let w = weight16(w_row, step * 2u + i % 2u, params.cols);
        w_tile[w_to] = w.a;
        w_tile[w_to + 1u] = w.b;
        w_tile[w_to + 2u] = w.c;
        w_tile[w_to + 3u] = w.d;
        for (var t = k; t < tile_tokens; t += 8u) {
            let token = min(first_token + t, params.tokens - 1u);
            x_tile[t * PITCH + j] = x[token * vectors + step * 8u + j];
        }
        workgroupBarrier();
        for (var c = 0u; c < STEP / 4u; c++) {
            let w0 = w_tile[j * PITCH + c];
            let w1 = w_tile[(j + 8u) * PITCH + c];
            let w2 = w_tile[(j + 16u) * PITCH + c];
            let w3 = w_tile[(j + 24u) * PITCH + c];
            let x0 = x_tile[k * PITCH + c];
            sums0 += vec4<f32>(dot(w0, x0), dot(w1, x0), dot(w2, x0), dot(w3, x0));
            if GROUPS > 1u {
                let x1 = x_tile[(k + 8u) * PITCH + c];
                sums1 += vec4<f32>(dot(w0, x1), dot(w1, x1), dot(w2, x1), dot(w3, x1));
            }
            if GROUPS > 2u {
                let x2 = x_tile[(k + 16u) * PITCH + c];
                sums2 += vec4<f32>(dot(w0, x2), dot(w1, x2), dot(w2, x2), dot(w3, x2));
            }
            if GROUPS > 3u {
                let x3 = x_tile[(k + 24u) * PITCH + c];
                sums3 += vec4<f32>(dot(w0, x3), dot(w1, x3), dot(w2, x3), dot(w3, x3));
            }
        }
        workgroupBarrier();
    }
    store(first_token + k, first_row + j, sums0);
    if GROUPS > 1u {
        store(first_token + k + 8u, first_row + j, sums1);
    }
    if GROUPS > 2u {
        store(first_token + k + 16u, first_row + j, sums2);
    }
    if GROUPS > 3u {
        store(first_token + k + 24u, first_row + j, sums3);
    }
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
