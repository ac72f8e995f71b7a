// The product loop for many tokens, tile by tile, in f32, by a workgroup of 64 invocations.
// The prologue defines what is applied to x (plain.wgsl, rms_norm.wgsl), the epilogue which rows a slot has
// (store.wgsl, add.wgsl, swiglu.wgsl): slot j of a block of 32 weight rows has four, 8 apart where they are outputs.
// Tokens and rows past the end read what the last one does and are not stored.
// Invocation i = j + 8 k holds tokens k + 8 a, a < GROUPS, times rows j + 8 b, b < ROWS / 8, in registers: neighbours
// store together. STEP columns are staged between two barriers, so a weight is dequantized once per tile. Per four
// columns, GROUPS + ROWS / 8 vector loads from workgroup memory feed GROUPS * ROWS / 2 multiply-adds of an invocation:
// 10.7 per load with 8 groups and 32 rows, 16 with 64.
// A tile of GROUPS 8, ROWS 64 takes all of the 16 KiB, one of 4 and 32 half of it. Row r keeps its vector c at index
// c ^ r % 8, so that vectors c of 8 rows are in 8 different banks without padding.
// A step's data is loaded into registers during the step before. On an H200, prompts of 512, q4_0, that takes the 270M
// from 38.0 to 43.5 thousand tokens/s; [2 x 3072, 1280] reaches 29 of 63 TFLOP/s. On llvmpipe it costs 2 %. There
// [1920, 1280] q8_0 for 32 tokens takes as long as with padded rows, within the spread; 64 tokens of [256 -> 8192] q8_0
// took 54 ms of CPU time with 4 groups and 40 ms with 8, 32 rows.
// A sum is added up column by column for any tunables, so a token's bits depend neither on them nor on other tokens.

override GROUPS: u32 = 4; // groups of 8 tokens in a tile: 1, 2, 3, 4 or 8
override ROWS: u32 = 32; // of the weight in a tile: 32 or 64

const SPACING = 8u; // of the outputs of a slot
const STEP = 32u; // columns that are staged at once
const VECTORS = 8u; // of a staged row
const CHUNKS = 2u; // of a staged row

// All invocations write and read both; at the end x_tile holds each invocation's squares.
var<workgroup> x_tile: array<vec4<f32>, 8u * GROUPS * VECTORS>;
var<workgroup> w_tile: array<vec4<f32>, ROWS * VECTORS>;

// Four columns of the same rows.
struct Weights {
    low: mat4x4<f32>,
    high: mat4x4<f32>,
}

// acc + w v, column by column: 16 multiply-adds; four dot products would take 4 more adds.
fn accumulate4(w: mat4x4<f32>, v: vec4<f32>, acc: vec4<f32>) -> vec4<f32> {
    return fma(w[3], v.wwww, fma(w[2], v.zzzz, fma(w[1], v.yyyy, fma(w[0], v.xxxx, acc))));
}

fn accumulate(w: Weights, v: vec4<f32>, acc: Rows) -> Rows {
    if ROWS > 32u {
        return Rows(accumulate4(w.low, v, acc.low), accumulate4(w.high, v, acc.high));
    }
    return Rows(accumulate4(w.low, v, acc.low), acc.high);
}

// Vector c of four staged rows, 8 apart, as columns.
fn columns4(first: u32) -> mat4x4<f32> {
    let apart = 8u * VECTORS;
    return transpose(mat4x4<f32>(
        w_tile[first],
        w_tile[first + apart],
        w_tile[first + 2u * apart],
        w_tile[first + 3u * apart],
    ));
}

fn columns(j: u32, c: u32) -> Weights {
    let first = j * VECTORS + (c ^ j);
    if ROWS > 32u {
        return Weights(columns4(first), columns4(first + 32u * VECTORS));
    }
    return Weights(columns4(first), mat4x4<f32>());
}

// Invocation i's share of a step, as loaded: vector j of tokens k, k + 8, ..., its gains, and chunk i % 2 of weight
// rows i / 2 and 32 + i / 2.
struct Share {
    x0: vec4<f32>,
    x1: vec4<f32>,
    x2: vec4<f32>,
    x3: vec4<f32>,
    x4: vec4<f32>,
    x5: vec4<f32>,
    x6: vec4<f32>,
    x7: vec4<f32>,
    gain: vec4<f32>,
    low: Piece,
    high: Piece,
}

fn load_share(first: u32, index: u32, step: u32, i: u32) -> Share {
    var share = Share();
    let vector = step * VECTORS + i % 8u;
    let cols = params.cols;
    let stride = cols / 4u;
    let row = params.first_row + first + i / 8u;
    let last = params.last_row;
    share.gain = gains4(vector);
    share.x0 = x[min(row, last) * stride + vector];
    if GROUPS > 1u {
        share.x1 = x[min(row + 8u, last) * stride + vector];
    }
    if GROUPS > 2u {
        share.x2 = x[min(row + 16u, last) * stride + vector];
    }
    if GROUPS > 3u {
        share.x3 = x[min(row + 24u, last) * stride + vector];
    }
    if GROUPS > 4u {
        share.x4 = x[min(row + 32u, last) * stride + vector];
        share.x5 = x[min(row + 40u, last) * stride + vector];
        share.x6 = x[min(row + 48u, last) * stride + vector];
        share.x7 = x[min(row + 56u, last) * stride + vector];
    }
    let at = (step * CHUNKS + i % CHUNKS) / PARTS;
    share.low = piece(weight_rows(vec4<u32>(index)).x, at, cols);
    if ROWS > 32u {
        share.high = piece(weight_rows(vec4<u32>(index + 32u)).x, at, cols);
    }
    return share;
}

// Stages a chunk of the weight row at `index`.
fn put_weights(index: u32, chunk: u32, w: WeightChunk) {
    let row = index * VECTORS;
    let c = 4u * chunk;
    let skew = index % 8u;
    w_tile[row + (c ^ skew)] = w.a;
    w_tile[row + ((c + 1u) ^ skew)] = w.b;
    w_tile[row + ((c + 2u) ^ skew)] = w.c;
    w_tile[row + ((c + 3u) ^ skew)] = w.d;
}

// Stages a vector of the token of group a. Returns the sum of its squares so far.
fn put_token(a: u32, i: u32, v: vec4<f32>, gain: vec4<f32>, squares: f32) -> f32 {
    let k = i / 8u;
    x_tile[(8u * a + k) * VECTORS + ((i % 8u) ^ k)] = scaled(v, gain);
    return add_squares(v, squares);
}

// The squares of groups 0 to 3 and 4 to 7.
struct Squares {
    low: vec4<f32>,
    high: vec4<f32>,
}

fn put_share(share: Share, i: u32, before: Squares) -> Squares {
    var squares = before;
    squares.low.x = put_token(0u, i, share.x0, share.gain, squares.low.x);
    if GROUPS > 1u {
        squares.low.y = put_token(1u, i, share.x1, share.gain, squares.low.y);
    }
    if GROUPS > 2u {
        squares.low.z = put_token(2u, i, share.x2, share.gain, squares.low.z);
    }
    if GROUPS > 3u {
        squares.low.w = put_token(3u, i, share.x3, share.gain, squares.low.w);
    }
    if GROUPS > 4u {
        squares.high.x = put_token(4u, i, share.x4, share.gain, squares.high.x);
        squares.high.y = put_token(5u, i, share.x5, share.gain, squares.high.y);
        squares.high.z = put_token(6u, i, share.x6, share.gain, squares.high.z);
        squares.high.w = put_token(7u, i, share.x7, share.gain, squares.high.w);
    }
    let chunk = i % CHUNKS;
    let index = i / CHUNKS;
    let part = chunk % PARTS;
    put_weights(index, chunk, weight_chunk(share.low, part));
    if ROWS > 32u {
        put_weights(32u + index, chunk, weight_chunk(share.high, part));
    }
    return squares;
}

fn put(token: u32, slot: u32, sums: Rows, squares: f32) {
    if token < params.tokens {
        let factor = row_factor(squares);
        store(token, slot, sums.low * factor);
        if ROWS > 32u {
            store(token, slot + SPACING * OUTPUTS, sums.high * factor);
        }
    }
}

// The sum of eight vectors of x_tile.
fn squares8(first: u32) -> vec4<f32> {
    var sum = x_tile[first];
    for (var n = 1u; n < 8u; n++) {
        sum += x_tile[first + n];
    }
    return sum;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let j = i % 8u;
    let k = i / 8u;
    // Neighbours in the grid take the same rows of the weight, which stay in cache.
    let first = group.x * GROUPS * 8u;
    let index = group.y * ROWS + i / CHUNKS; // of the weight row staged here; with 64 rows, also 32 further
    var sums = Sums();
    var squares = Squares();
    let steps = params.cols / STEP;
    var share = load_share(first, index, 0u, i);
    for (var step = 0u; step < steps; step++) {
        squares = put_share(share, i, squares);
        workgroupBarrier();
        // Arrives while the staged columns are multiplied; the last step is loaded again.
        share = load_share(first, index, min(step + 1u, steps - 1u), i);
        for (var c = 0u; c < VECTORS; c++) {
            let w = columns(j, c);
            let at = k * VECTORS + (c ^ k);
            sums.a0 = accumulate(w, x_tile[at], sums.a0);
            if GROUPS > 1u {
                sums.a1 = accumulate(w, x_tile[at + 8u * VECTORS], sums.a1);
            }
            if GROUPS > 2u {
                sums.a2 = accumulate(w, x_tile[at + 16u * VECTORS], sums.a2);
            }
            if GROUPS > 3u {
                sums.a3 = accumulate(w, x_tile[at + 24u * VECTORS], sums.a3);
            }
            if GROUPS > 4u {
                sums.a4 = accumulate(w, x_tile[at + 32u * VECTORS], sums.a4);
                sums.a5 = accumulate(w, x_tile[at + 40u * VECTORS], sums.a5);
                sums.a6 = accumulate(w, x_tile[at + 48u * VECTORS], sums.a6);
                sums.a7 = accumulate(w, x_tile[at + 56u * VECTORS], sums.a7);
            }
        }
        workgroupBarrier();
    }
    var low = squares.low;
    var high = squares.high;
    // The eight invocations of a token add up its squares, all in the same order.
    if NORMED {
        x_tile[i] = low;
        if GROUPS > 4u {
            x_tile[64u + i] = high;
        }
        workgroupBarrier();
        low = squares8(8u * k);
        if GROUPS > 4u {
            high = squares8(64u + 8u * k);
        }
    }
    let token = first + k;
    let slot = group.y * (ROWS / 4u * OUTPUTS) + j;
    put(token, slot, sums.a0, low.x);
    if GROUPS > 1u {
        put(token + 8u, slot, sums.a1, low.y);
    }
    if GROUPS > 2u {
        put(token + 16u, slot, sums.a2, low.z);
    }
    if GROUPS > 3u {
        put(token + 24u, slot, sums.a3, low.w);
    }
    if GROUPS > 4u {
        put(token + 32u, slot, sums.a4, high.x);
        put(token + 40u, slot, sums.a5, high.y);
        put(token + 48u, slot, sums.a6, high.z);
        put(token + 56u, slot, sums.a7, high.w);
    }
}
