// Gate and up projections of several tokens with their SwiGLU product.
//   out[t,f] = silu(W[f,:] . x[t,:]) * (W[F+f,:] . x[t,:]),   silu(g) = g / (1 + exp(-g))
// The tile of lib/tile.wgsl, 8 * GROUPS tokens, with 16 gate rows and the 16 up rows of the same outputs:
// an invocation's four rows are gate and up of 2 outputs, so the product needs no exchange, and the
// [T, 2F] intermediate is never stored. f32 accumulation; exp(-g) is kept finite. Tokens and outputs past
// the end repeat the last one, unwritten.

override GROUPS: u32 = 4; // groups of 8 tokens in a tile: 1, 2, 3, 4 or 8

struct Params {
    cols: u32, // K, a multiple of 32
    ffn_dim: u32, // F
    tokens: u32, // T
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [T, K / 4]
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // [T, F]

var<workgroup> x_tile: array<vec4<f32>, 72 * GROUPS>; // 8 GROUPS x PITCH, of tile_product
var<workgroup> w_tile: array<vec4<f32>, 288>; // ROWS x PITCH, of tile_product

// Places 0..16 of the tile are gates, 16..32 their ups.
fn weight_row(tile: u32, place: u32) -> u32 {
    return min(tile * (ROWS / 2u) + place % 16u, params.ffn_dim - 1u) + place / 16u * params.ffn_dim;
}

// Outputs f and f + 8 of one token from (gate f, gate f + 8, up f, up f + 8).
fn store(token: u32, f: u32, sums: vec4<f32>) {
    let products = sums.xy / (1.0 + exp(min(-sums.xy, vec2<f32>(88.0)))) * sums.zw;
    if token < params.tokens {
        let to = token * params.ffn_dim;
        if f < params.ffn_dim {
            out[to + f] = products.x;
        }
        if f + 8u < params.ffn_dim {
            out[to + f + 8u] = products.y;
        }
    }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let sums = tile_product(group, i, params.cols, params.tokens);
    let token = group.y * GROUPS * 8u + i / 8u;
    let f = group.x * (ROWS / 2u) + i % 8u;
    store(token, f, sums.a0);
    if GROUPS > 1u {
        store(token + 8u, f, sums.a1);
    }
    if GROUPS > 2u {
        store(token + 16u, f, sums.a2);
    }
    if GROUPS > 3u {
        store(token + 24u, f, sums.a3);
    }
    if GROUPS > 4u {
        store(token + 32u, f, sums.a4);
        store(token + 40u, f, sums.a5);
        store(token + 48u, f, sums.a6);
        store(token + 56u, f, sums.a7);
    }
}
