// The products of a tile of TOKENS rows of x with four rows of the weight, for the invocations of a
// workgroup together. The including kernel declares WG and TOKENS (1, 2, 4 or 8) and binds x; how x is read
// is in lib/activation_*.wgsl, how a chunk of COLUMNS columns is multiplied in lib/products_*.wgsl.
// Invocation i takes the chunks i, i + WG, ...: neighbours load neighbouring bytes of a row, x is loaded once
// for the four rows, and a weight is loaded and dequantized once for the tile. f32 accumulation. What is
// computed for a token, and in which order, is the same whatever TOKENS is and whatever the other tokens
// hold: decoding a few tokens at once must not change one.

// Tried on llvmpipe, in turns, [1152, 1280] and [1280, 5120]: chains of fma in place of dot, within 4 % either
// way; a block's scale applied to its dot product in place of its weights, 0 to 2 % faster in q8_0 and 4 % in
// q4_0, which is not worth a second way to read a format;
// gains read where they are used, in place of first and once for the tile, a quarter slower in q8_0 and q4_0.

// Sums of one invocation: for each token the products with four rows; and, for norms, the squares of tokens
// 0 to 3 and 4 to 7. Members of tokens that a tile does not have are never touched.
struct Sums {
    t0: vec4<f32>,
    t1: vec4<f32>,
    t2: vec4<f32>,
    t3: vec4<f32>,
    t4: vec4<f32>,
    t5: vec4<f32>,
    t6: vec4<f32>,
    t7: vec4<f32>,
    squares0: vec4<f32>,
    squares1: vec4<f32>,
}

// The gains of 16 columns.
struct Gain16 {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
}

// 16 values of x, and the sum of their squares.
struct Activation16 {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
    squares: f32,
}

// A chunk of each of four rows of the weight.
struct Weights {
    r0: WeightChunk,
    r1: WeightChunk,
    r2: WeightChunk,
    r3: WeightChunk,
}

// The tile of a workgroup: neighbours in the grid take the same rows of the weight, which stay in cache.
struct Tile {
    unit: u32, // of rows
    token: u32, // the first
}

fn tile_of(at: Invocation, tokens: u32) -> Tile {
    let group = at.group.y * at.groups.x + at.group.x;
    let tiles = (tokens + TOKENS - 1u) / TOKENS;
    return Tile(group / tiles, group % tiles * TOKENS);
}

fn products(w: Weights, v: ActivationChunk) -> vec4<f32> {
    return vec4<f32>(product(w.r0, v), product(w.r1, v), product(w.r2, v), product(w.r3, v));
}

// The share of invocation i; the workgroup's sum is the product. The tile's tokens are the rows first,
// first + 1, ... of x; those past the last one repeat it.
fn row_products(rows: vec4<u32>, first: u32, last: u32, i: u32, cols: u32) -> Sums {
    let stride = cols / 4u;
    var sums = Sums();
    for (var chunk = i; chunk < cols / COLUMNS; chunk += WG) {
        let w = Weights(
            weight_chunk(rows.x, chunk, cols),
            weight_chunk(rows.y, chunk, cols),
            weight_chunk(rows.z, chunk, cols),
            weight_chunk(rows.w, chunk, cols),
        );
        let gains = gain_chunk(chunk);
        let v0 = activation_chunk(first * stride, chunk, gains);
        sums.t0 += products(w, v0);
        sums.squares0.x += v0.squares;
        if TOKENS > 1u {
            let v1 = activation_chunk(min(first + 1u, last) * stride, chunk, gains);
            sums.t1 += products(w, v1);
            sums.squares0.y += v1.squares;
        }
        if TOKENS > 2u {
            let v2 = activation_chunk(min(first + 2u, last) * stride, chunk, gains);
            sums.t2 += products(w, v2);
            sums.squares0.z += v2.squares;
            let v3 = activation_chunk(min(first + 3u, last) * stride, chunk, gains);
            sums.t3 += products(w, v3);
            sums.squares0.w += v3.squares;
        }
        if TOKENS > 4u {
            let v4 = activation_chunk(min(first + 4u, last) * stride, chunk, gains);
            sums.t4 += products(w, v4);
            sums.squares1.x += v4.squares;
            let v5 = activation_chunk(min(first + 5u, last) * stride, chunk, gains);
            sums.t5 += products(w, v5);
            sums.squares1.y += v5.squares;
            let v6 = activation_chunk(min(first + 6u, last) * stride, chunk, gains);
            sums.t6 += products(w, v6);
            sums.squares1.z += v6.squares;
            let v7 = activation_chunk(min(first + 7u, last) * stride, chunk, gains);
            sums.t7 += products(w, v7);
            sums.squares1.w += v7.squares;
        }
    }
    return sums;
}

// Adds up the sums of the workgroup. Every invocation must call; invocation t then finds with `total` what
// belongs to token t.
fn reduce(sums: Sums, at: Invocation) {
    share(0u, sums.t0, at);
    if TOKENS > 1u {
        share(1u, sums.t1, at);
    }
    if TOKENS > 2u {
        share(2u, sums.t2, at);
        share(3u, sums.t3, at);
    }
    if TOKENS > 4u {
        share(4u, sums.t4, at);
        share(5u, sums.t5, at);
        share(6u, sums.t6, at);
        share(7u, sums.t7, at);
    }
    if EXTRA > 0u {
        share(TOKENS, sums.squares0, at);
        share(TOKENS + 1u, sums.squares1, at);
    }
    settle(at);
}
