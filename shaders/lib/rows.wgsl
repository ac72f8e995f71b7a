// The products of a tile of TOKENS rows of x with quads of rows of the weight. The including kernel declares
// WG, APART and TOKENS (1, 2, 4 or 8), binds x, and names the rows of a quad; how x is read is in
// lib/activation_*.wgsl, how a chunk of COLUMNS columns is multiplied in lib/products_*.wgsl. A weight is
// loaded, a piece of 16 bytes or more at once, and dequantized once for the tile.
// APART 0: the workgroup shares one quad, invocation i takes the pieces i, i + WG, ... of its rows, and
// neighbours load neighbouring bytes: for GPUs. APART 1: each invocation has a quad of its own and all walk
// along the columns together, so x is loaded once for a subgroup and nothing is added up: for processors,
// where a load of a vector by each of 8 invocations is 32 scalar loads.
// f32 accumulation. What is computed for a token, and in which order, is the same whatever TOKENS is and
// whatever the other tokens hold: decoding a few tokens at once must not change one.

// Tried on llvmpipe, in turns, [1152, 1280] and [1280, 5120]: chains of fma in place of dot, within 4 % either
// way; a block's scale applied to its dot product in place of its weights, 0 to 2 % faster in q8_0 and 4 % in
// q4_0, which is not worth a second way to read a format; gains read where they are used, in place of first and
// once for the tile, a quarter slower. 8 or 16 rows for one load of x, APART 0: 10 % less to none in q8_0.
// APART 1 without the spread of x: as APART 0 in matvec. With it, against APART 0 with WG 8: q8_0 0.73 of the
// time, q4_0 0.56. Two chunks in the body of the loop: 1.25 to 1.9 times as slow as one, so the two parts of a
// q4_0 piece take turns.

override LANES: u32 = WG - APART * (WG - 1u); // invocations that share a quad: WG or 1
override QUADS: u32 = WG / LANES; // of a workgroup

// Sums of one invocation: for each token the products with a quad; and, for norms, the squares of tokens
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

// 16 values: gains of columns, or what a subgroup loaded.
struct Values16 {
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

// A piece of each row of a quad, as it is stored.
struct Pieces {
    r0: Piece,
    r1: Piece,
    r2: Piece,
    r3: Piece,
}

// A chunk of each row of a quad.
struct Weights {
    r0: WeightChunk,
    r1: WeightChunk,
    r2: WeightChunk,
    r3: WeightChunk,
}

// The tile of a workgroup: neighbours in the grid take the same rows of the weight, which stay in cache.
struct Tile {
    quad: u32, // of this invocation
    token: u32, // the first
}

fn tile_of(at: Invocation, tokens: u32) -> Tile {
    let group = at.group.y * at.groups.x + at.group.x;
    let tiles = (tokens + TOKENS - 1u) / TOKENS;
    return Tile(group / tiles * QUADS + at.index / LANES, group % tiles * TOKENS);
}

fn products(w: Weights, v: ActivationChunk) -> vec4<f32> {
    return vec4<f32>(product(w.r0, v), product(w.r1, v), product(w.r2, v), product(w.r3, v));
}

fn pieces(rows: vec4<u32>, at: u32, cols: u32) -> Pieces {
    return Pieces(piece(rows.x, at, cols), piece(rows.y, at, cols), piece(rows.z, at, cols), piece(rows.w, at, cols));
}

fn weight_chunks(p: Pieces, part: u32) -> Weights {
    return Weights(
        weight_chunk(p.r0, part),
        weight_chunk(p.r1, part),
        weight_chunk(p.r2, part),
        weight_chunk(p.r3, part),
    );
}

// The tokens of a tile are the rows first, first + 1, ... of x; those past the last one repeat it.
struct Tokens {
    first: u32,
    last: u32,
    stride: u32, // of a row of x, in vectors
}

// Adds the products of one chunk.
fn add_chunk(sums: ptr<function, Sums>, w: Weights, chunk: u32, tokens: Tokens, at: Invocation) {
    let stride = tokens.stride;
    let gains = gain_chunk(chunk, at);
    let v0 = activation_chunk(tokens.first * stride, chunk, gains, at);
    (*sums).t0 += products(w, v0);
    (*sums).squares0.x += v0.squares;
    if TOKENS > 1u {
        let v1 = activation_chunk(min(tokens.first + 1u, tokens.last) * stride, chunk, gains, at);
        (*sums).t1 += products(w, v1);
        (*sums).squares0.y += v1.squares;
    }
    if TOKENS > 2u {
        let v2 = activation_chunk(min(tokens.first + 2u, tokens.last) * stride, chunk, gains, at);
        (*sums).t2 += products(w, v2);
        (*sums).squares0.z += v2.squares;
        let v3 = activation_chunk(min(tokens.first + 3u, tokens.last) * stride, chunk, gains, at);
        (*sums).t3 += products(w, v3);
        (*sums).squares0.w += v3.squares;
    }
    if TOKENS > 4u {
        let v4 = activation_chunk(min(tokens.first + 4u, tokens.last) * stride, chunk, gains, at);
        (*sums).t4 += products(w, v4);
        (*sums).squares1.x += v4.squares;
        let v5 = activation_chunk(min(tokens.first + 5u, tokens.last) * stride, chunk, gains, at);
        (*sums).t5 += products(w, v5);
        (*sums).squares1.y += v5.squares;
        let v6 = activation_chunk(min(tokens.first + 6u, tokens.last) * stride, chunk, gains, at);
        (*sums).t6 += products(w, v6);
        (*sums).squares1.z += v6.squares;
        let v7 = activation_chunk(min(tokens.first + 7u, tokens.last) * stride, chunk, gains, at);
        (*sums).t7 += products(w, v7);
        (*sums).squares1.w += v7.squares;
    }
}

// The share of an invocation; the sum of all that share its quad is the product. The parts of a piece take
// turns in one loop, see above.
fn row_products(tile: Tile, first: u32, last: u32, at: Invocation, cols: u32) -> Sums {
    let tokens = Tokens(first, last, cols / 4u);
    let rows = rows_of(tile.quad);
    var sums = Sums();
    var held = Pieces();
    var part = 0u;
    for (var i = at.index % LANES; i < cols / (COLUMNS * PARTS); i += select(0u, LANES, part == 0u)) {
        if part == 0u {
            held = pieces(rows, i, cols);
        }
        add_chunk(&sums, weight_chunks(held, part), i * PARTS + part, tokens, at);
        part = (part + 1u) % PARTS;
    }
    return sums;
}

// Adds up the sums of the workgroup. Every invocation must call; `total` then finds what the invocations of a
// quad have for token t.
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
