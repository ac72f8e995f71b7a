// The product of a tile of tokens with a tile of rows of the weight, in f32, by a workgroup of 64 invocations.
// The including kernel binds x, has `cols` and `tokens` among its params, and defines
//   weight_row(tile, place)            the row of the weight at a place of a tile
//   x_row(token)                       the row of x of a token
//   store(token, tile, place, sums)    takes the products of a token with the rows at four places, 8 apart;
// tokens and places past the end read what the last one does, and `store` leaves them out. Whether x goes
// through a norm is in lib/tile_plain.wgsl and tile_normed.wgsl.
// Invocation i = j + 8 k holds the tokens k + 8 a, a < GROUPS, times the rows j + 8 b, b < ROWS / 8, in
// registers: neighbours store together. STEP columns are staged at once, so a weight is dequantized once for
// the tile, between two barriers. For four columns GROUPS + ROWS / 8 vector loads from workgroup memory feed
// GROUPS * ROWS / 2 multiply-adds of an invocation: 10.7 for a load with 8 groups and 32 rows, 16 with 64.
// A tile of GROUPS = 8, ROWS = 64, STEP = 32 takes all of the 16 KiB, one of 4, 32, 32 a half. Row r keeps its
// vectors in places c ^ r % 8, so that 8 rows' vectors c lie in 8 different banks and no padding is needed.
// No GPU has measured it yet. On llvmpipe [1920, 1280] q8_0 for 32 tokens takes as long as with padded rows, within
// the spread; 64 tokens of [256 -> 8192] q8_0 took 54 ms of processor time with 4 groups and 40 ms with 8, 32 rows.
// A sum is added up column by column whatever the tunables are: a token's bits do not depend on them, nor on
// other tokens.

override GROUPS: u32 = 4; // groups of 8 tokens in a tile: 1, 2, 3, 4 or 8
override ROWS: u32 = 32; // of the weight in a tile: 32 or 64
override STEP: u32 = 32; // columns that are staged at once: 32 or 64

override VECTORS: u32 = STEP / 4u; // of a staged row
override CHUNKS: u32 = STEP / 16u; // of a staged row

// Both are written by all and read by all; x_tile, at the end, holds each invocation's squares.
var<workgroup> x_tile: array<vec4<f32>, 8u * GROUPS * VECTORS>;
var<workgroup> w_tile: array<vec4<f32>, ROWS * VECTORS>;

// Four columns of the same rows.
struct Weights {
    low: mat4x4<f32>,
    high: mat4x4<f32>,
}

// acc + w v, column by column: 16 multiply-adds, where four dot products would take 4 adds more.
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

fn stage_weights(tile: u32, step: u32, i: u32) {
    for (var n = i; n < ROWS * CHUNKS; n += 64u) {
        let place = n / CHUNKS;
        let chunk = n % CHUNKS;
        let w = weight16(weight_row(tile, place), step * CHUNKS + chunk, params.cols);
        let row = place * VECTORS;
        let c = 4u * chunk;
        let skew = place % 8u;
        w_tile[row + (c ^ skew)] = w.a;
        w_tile[row + ((c + 1u) ^ skew)] = w.b;
        w_tile[row + ((c + 2u) ^ skew)] = w.c;
        w_tile[row + ((c + 3u) ^ skew)] = w.d;
    }
}

// Stages what invocation i takes of the token of its group a: vectors j, j + 8, ... of each row, so that they are the
// same whatever STEP is. Returns the sum of squares so far.
fn stage_token(first: u32, a: u32, step: u32, i: u32, squares: f32) -> f32 {
    let k = i / 8u;
    let row = x_row(first + 8u * a + k) * (params.cols / 4u);
    var sum = squares;
    for (var c = i % 8u; c < VECTORS; c += 8u) {
        let v = x[row + step * VECTORS + c];
        x_tile[(8u * a + k) * VECTORS + (c ^ k)] = v * gains(step * VECTORS + c);
        sum = add_squares(v, sum);
    }
    return sum;
}

fn put(token: u32, tile: u32, j: u32, sums: Rows, scale: f32) {
    store(token, tile, j, sums.low * scale);
    if ROWS > 32u {
        store(token, tile, 32u + j, sums.high * scale);
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
    let tile = group.y;
    var sums = Sums();
    var low = vec4<f32>(); // squares of groups 0 to 3
    var high = vec4<f32>(); // and 4 to 7
    for (var step = 0u; step < params.cols / STEP; step++) {
        stage_weights(tile, step, i);
        low.x = stage_token(first, 0u, step, i, low.x);
        if GROUPS > 1u {
            low.y = stage_token(first, 1u, step, i, low.y);
        }
        if GROUPS > 2u {
            low.z = stage_token(first, 2u, step, i, low.z);
        }
        if GROUPS > 3u {
            low.w = stage_token(first, 3u, step, i, low.w);
        }
        if GROUPS > 4u {
            high.x = stage_token(first, 4u, step, i, high.x);
            high.y = stage_token(first, 5u, step, i, high.y);
            high.z = stage_token(first, 6u, step, i, high.z);
            high.w = stage_token(first, 7u, step, i, high.w);
        }
        workgroupBarrier();
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
    // The eight invocations of a token add up its squares, in one order.
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
    low = row_scales(low);
    high = row_scales(high);
    put(first + k, tile, j, sums.a0, low.x);
    if GROUPS > 1u {
        put(first + 8u + k, tile, j, sums.a1, low.y);
    }
    if GROUPS > 2u {
        put(first + 16u + k, tile, j, sums.a2, low.z);
    }
    if GROUPS > 3u {
        put(first + 24u + k, tile, j, sums.a3, low.w);
    }
    if GROUPS > 4u {
        put(first + 32u + k, tile, j, sums.a4, high.x);
        put(first + 40u + k, tile, j, sums.a5, high.y);
        put(first + 48u + k, tile, j, sums.a6, high.z);
        put(first + 56u + k, tile, j, sums.a7, high.w);
    }
}
