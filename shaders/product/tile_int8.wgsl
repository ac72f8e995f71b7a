// The product loop for many tokens, tile by tile, in 8-bit integers, for tier int8: four products per instruction
// (dot4I8Packed), whose sum over a block of 32 columns is exact; then both scales are applied in f32.
// Prologue, epilogue and slots are those of tile_f32.wgsl; a format's fragment defines the words of a block (`Piece`,
// `piece`) and the order of values in them (`packed`).
// x is rounded while it is staged, each block by one invocation in registers, as in rows_int8.wgsl:
//   scale = max |v| / 127,   q = round(v / scale)
// Invocation i = j + 8 k holds tokens k + 8 a, a < GROUPS, times rows j + 8 b, b < ROWS / 8. A block is two vectors;
// those of neighbouring rows or tokens are side by side. Per block, 3 GROUPS + 12 loads from workgroup memory feed
// 32 GROUPS dot products of an invocation with four rows: 7.1 per load with 8 groups.
// Every tile of rows rounds x again: some 5 operations per value are 160 per block, which serves 8 ROWS dot products,
// so 62 % more work with tiles of 32 rows and 31 % with 64, and 4 bytes are read per value instead of 1.1. A separate
// dispatch would round once, but cost a launch and a round trip per product, 4 a layer where a layer has 6 launches,
// and gains of norms could not be fused. So rounding stays here until a GPU shows otherwise, and the default tile has
// 64 rows where there are enough for all.
// A sum is added up block by block for any tunables, so a token's bits depend neither on them nor on other tokens.
// On llvmpipe, 32 tokens, [768 -> 1280], two runs on a busy machine: 0.61 and 0.82 of the time of f32 in q8_0, 0.58
// and 0.46 in q4_0. On an H200, prompts of 512, q4_0: 54 thousand tokens/s for the 270M against 42 in f32, 15.3 for the
// 1.1B against 12.7, half of what matrix units reach. The tier is opt-in.

override GROUPS: u32 = 4; // groups of 8 tokens in a tile: 1, 2, 3, 4 or 8
override ROWS: u32 = 32; // of the weight in a tile: 32 or 64

override TOKENS: u32 = 8u * GROUPS;

const SPACING = 8u; // of the outputs of a slot
const BLOCKS = 2u; // of 32 columns that are staged at once; K may end with half of them

// A block without a larger magnitude is zero, because 127 / max would overflow. No model has values so small.
const LEAST = 1e-30;

// All invocations write and read all; at the end x_scales holds the squares of a token's even and odd blocks.
var<workgroup> x_tile: array<vec4<u32>, 2u * BLOCKS * TOKENS>; // [BLOCKS, 2, TOKENS]
var<workgroup> w_tile: array<vec4<u32>, 2u * BLOCKS * ROWS>; // [BLOCKS, 2, ROWS]
var<workgroup> x_scales: array<f32, BLOCKS * TOKENS>; // [BLOCKS, TOKENS]
var<workgroup> w_scales: array<f32, BLOCKS * ROWS>; // [BLOCKS, ROWS]

// A block of four rows, 8 apart.
struct Weights {
    r0: Words,
    r1: Words,
    r2: Words,
    r3: Words,
    scales: vec4<f32>,
}

// 32 integers.
struct Words {
    a: vec4<u32>,
    b: vec4<u32>,
}

fn stage_weights(first: u32, step: u32, i: u32) {
    let last = params.cols / 32u - 1u;
    for (var n = i; n < BLOCKS * ROWS; n += 64u) {
        let index = n / BLOCKS;
        let b = n % BLOCKS;
        let w = piece(weight_rows(vec4<u32>(first + index)).x, min(step * BLOCKS + b, last), params.cols);
        let start = b * ROWS;
        let s = start + index;
        let at = start + s;
        w_tile[at] = w.a;
        w_tile[at + ROWS] = w.b;
        w_scales[s] = w.scale;
    }
}

// Magnitudes as bits, which order like their values. NaN is the largest, so it reaches the output.
fn bits_of(v: vec4<f32>) -> vec4<u32> {
    return bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu);
}

fn words_of(p: vec4<f32>, q: vec4<f32>, inverse: f32) -> vec2<u32> {
    return packed(vec4<i32>(round(p * inverse)), vec4<i32>(round(q * inverse)));
}

// Stages block n % BLOCKS of the token n / BLOCKS, rounded; returns its sum of squares so far. A block past the end
// has the scale 0.
fn stage_token(first: u32, n: u32, step: u32, squares: f32) -> f32 {
    let token = n / BLOCKS;
    let b = n % BLOCKS;
    let block = step * BLOCKS + b;
    let blocks = params.cols / 32u;
    let inside = block < blocks;
    let vector = 8u * select(0u, block, inside);
    let at = min(params.first_row + first + token, params.last_row) * (8u * blocks) + vector;
    var values: array<vec4<f32>, 8>;
    var largest = vec4<u32>();
    var sum = squares;
    for (var c = 0u; c < 8u; c++) {
        let v = x[at + c];
        values[c] = scaled(v, gains4(vector + c));
        largest = max(largest, bits_of(values[c]));
        sum = add_squares(v, sum);
    }
    let top = bitcast<f32>(max(max(largest.x, largest.y), max(largest.z, largest.w)));
    let inverse = select(0.0, 127.0 / top, top > LEAST);
    let low = vec4<u32>(words_of(values[0], values[1], inverse), words_of(values[2], values[3], inverse));
    let high = vec4<u32>(words_of(values[4], values[5], inverse), words_of(values[6], values[7], inverse));
    let start = b * TOKENS;
    let s = start + token;
    let to = start + s;
    x_tile[to] = low;
    x_tile[to + TOKENS] = high;
    x_scales[s] = select(0.0, top / 127.0, inside);
    return select(squares, sum, inside);
}

fn words(at: u32) -> Words {
    return Words(w_tile[at], w_tile[at + ROWS]);
}

// Block b of the four rows from index j, 8 apart.
fn weights(j: u32, b: u32) -> Weights {
    let start = b * ROWS;
    let s = start + j;
    let at = start + s;
    let scales = vec4<f32>(w_scales[s], w_scales[s + 8u], w_scales[s + 16u], w_scales[s + 24u]);
    return Weights(words(at), words(at + 8u), words(at + 16u), words(at + 24u), scales);
}

fn dot4(p: vec4<u32>, q: vec4<u32>) -> i32 {
    return dot4I8Packed(p.x, q.x) + dot4I8Packed(p.y, q.y) + dot4I8Packed(p.z, q.z) + dot4I8Packed(p.w, q.w);
}

fn dot8(p: Words, q: Words) -> i32 {
    return dot4(p.a, q.a) + dot4(p.b, q.b);
}

// Adds the products of a block of a token with four rows to `acc`.
fn accumulate4(w: Weights, v: Words, scale: f32, acc: vec4<f32>) -> vec4<f32> {
    let exact = vec4<i32>(dot8(w.r0, v), dot8(w.r1, v), dot8(w.r2, v), dot8(w.r3, v));
    return acc + vec4<f32>(exact) * (w.scales * scale);
}

fn accumulate(w: Weights, token: u32, b: u32, upper: bool, acc: Rows) -> Rows {
    let start = b * TOKENS;
    let s = start + token;
    let at = start + s;
    let v = Words(x_tile[at], x_tile[at + TOKENS]);
    let scale = x_scales[s];
    if upper {
        return Rows(acc.low, accumulate4(w, v, scale, acc.high));
    }
    return Rows(accumulate4(w, v, scale, acc.low), acc.high);
}

// Adds block b of the lower or the upper rows.
fn add_block(sums: ptr<function, Sums>, j: u32, k: u32, b: u32, upper: bool) {
    let w = weights(select(j, j + 32u, upper), b);
    (*sums).a0 = accumulate(w, k, b, upper, (*sums).a0);
    if GROUPS > 1u {
        (*sums).a1 = accumulate(w, k + 8u, b, upper, (*sums).a1);
    }
    if GROUPS > 2u {
        (*sums).a2 = accumulate(w, k + 16u, b, upper, (*sums).a2);
    }
    if GROUPS > 3u {
        (*sums).a3 = accumulate(w, k + 24u, b, upper, (*sums).a3);
    }
    if GROUPS > 4u {
        (*sums).a4 = accumulate(w, k + 32u, b, upper, (*sums).a4);
        (*sums).a5 = accumulate(w, k + 40u, b, upper, (*sums).a5);
        (*sums).a6 = accumulate(w, k + 48u, b, upper, (*sums).a6);
        (*sums).a7 = accumulate(w, k + 56u, b, upper, (*sums).a7);
    }
}

fn put(first: u32, t: u32, slot: u32, sums: Rows) {
    let token = first + t;
    if token < params.tokens {
        var squares = 0.0;
        if NORMED {
            squares = x_scales[t * BLOCKS] + x_scales[t * BLOCKS + 1u];
        }
        let factor = row_factor(squares);
        store(token, slot, sums.low * factor);
        if ROWS > 32u {
            store(token, slot + SPACING * OUTPUTS, sums.high * factor);
        }
    }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let j = i % 8u;
    let k = i / 8u;
    // Neighbours in the grid take the same rows of the weight, which stay in cache.
    let first = group.x * TOKENS;
    var sums = Sums();
    var squares = vec2<f32>(); // of the blocks that the invocation stages, of one token or two
    for (var step = 0u; step < (params.cols + 32u) / 64u; step++) {
        stage_weights(group.y * ROWS, step, i);
        if i < BLOCKS * TOKENS {
            squares.x = stage_token(first, i, step, squares.x);
        }
        if GROUPS > 4u {
            squares.y = stage_token(first, 64u + i, step, squares.y);
        }
        workgroupBarrier();
        for (var b = 0u; b < BLOCKS; b++) {
            add_block(&sums, j, k, b, false);
            if ROWS > 32u {
                add_block(&sums, j, k, b, true);
            }
        }
        workgroupBarrier();
    }
    if NORMED {
        if i < BLOCKS * TOKENS {
            x_scales[i] = squares.x;
        }
        if GROUPS > 4u {
            x_scales[64u + i] = squares.y;
        }
        workgroupBarrier();
    }
    let slot = group.y * (ROWS / 4u * OUTPUTS) + j;
    put(first, k, slot, sums.a0);
    if GROUPS > 1u {
        put(first, 8u + k, slot, sums.a1);
    }
    if GROUPS > 2u {
        put(first, 16u + k, slot, sums.a2);
    }
    if GROUPS > 3u {
        put(first, 24u + k, slot, sums.a3);
    }
    if GROUPS > 4u {
        put(first, 32u + k, slot, sums.a4);
        put(first, 40u + k, slot, sums.a5);
        put(first, 48u + k, slot, sums.a6);
        put(first, 56u + k, slot, sums.a7);
    }
}
