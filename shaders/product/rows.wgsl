// The product loop for a few tokens, row by row: every sum is that of a plain dot product.
// A workgroup takes a tile of TOKENS rows of x and slots of four weight rows. The epilogue defines which rows a slot
// has (store.wgsl, add.wgsl, swiglu.wgsl), the prologue what is applied to x (plain.wgsl, rms_norm.wgsl), rows_*.wgsl
// how a chunk of COLUMNS columns is multiplied. Weights are loaded 16 bytes or more at once, dequantized once per tile.
// APART 0, for GPUs: the workgroup shares one slot, invocation i takes pieces i, i + WG, ... of its rows, and
// neighbours load neighbouring bytes. APART 1, for CPUs: each invocation has its own slot and all walk along the
// columns together, so a subgroup loads x once and needs no reduction. (On a CPU, a vector load by each of 8
// invocations is 32 scalar loads.)
// f32 accumulation. A token's sums and their order depend neither on TOKENS nor on the other tokens: speculation and
// batches rely on it. Rows and tokens past the end repeat the last one and are not stored.

// Tried on llvmpipe, interleaved, [1152, 1280] and [1280, 5120]:
// - chains of fma in place of dot: within 4 % either way;
// - a block's scale applied to its dot product, not its weights: 0 to 2 % faster in q8_0 and 4 % in q4_0, not worth a
//   second way to read a format;
// - gains read where they are used, not first and once per tile: a quarter slower;
// - 8 or 16 rows per load of x, APART 0: 0 to 10 % less time in q8_0;
// - APART 1 without the spread of x: as APART 0 in matvec; with it, 0.73 (q8_0) and 0.56 (q4_0) of APART 0 at WG 8;
// - two chunks in the loop body: 1.25 to 1.9 times as slow as one, so the two parts of a q4_0 piece alternate.

override WG: u32 = 32;
override APART: u32 = 0;
override TOKENS: u32 = 1; // of a tile: 1, 2, 4 or 8

override LANES: u32 = WG - APART * (WG - 1u); // invocations that share a slot: WG or 1
override SLOTS: u32 = WG / LANES; // of a workgroup

const SPACING = 1u; // of the outputs of a slot
const EXTRA = 2u * u32(NORMED); // vectors to reduce besides the products: the squares of eight tokens

// The sums of one invocation for a token: the products with the rows of a slot, and for norms the squares.
struct TokenSums {
    products: vec4<f32>,
    squares: f32,
}

// Members of tokens that a tile does not have are never touched.
struct Sums {
    t0: TokenSums,
    t1: TokenSums,
    t2: TokenSums,
    t3: TokenSums,
    t4: TokenSums,
    t5: TokenSums,
    t6: TokenSums,
    t7: TokenSums,
}

// 16 values: gains of columns, or those a subgroup loaded.
struct Values16 {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
}

// 16 values of x times their gains, and the sum of squares without gains.
struct Activation16 {
    values: Values16,
    squares: f32,
}

// A piece of each row of a slot, as it is stored.
struct Pieces {
    r0: Piece,
    r1: Piece,
    r2: Piece,
    r3: Piece,
}

// A chunk of each row of a slot.
struct Weights {
    r0: WeightChunk,
    r1: WeightChunk,
    r2: WeightChunk,
    r3: WeightChunk,
}

// Gains of the columns of a chunk.
fn gains16(chunk: u32, at: Invocation) -> Values16 {
    let i = chunk * 4u;
    return Values16(gains4(i + quarter(at)), gains4(i + 1u), gains4(i + 2u), gains4(i + 3u));
}

// Values 16 * chunk .. 16 * chunk + 16 of the row of x that begins at vector `row`. If all invocations share a chunk
// (LANES 1), each loads a quarter of it for its subgroup.
fn activation16(row: u32, chunk: u32, gains: Values16, at: Invocation) -> Activation16 {
    let i = row + chunk * 4u;
    let a = x[i + quarter(at)];
    if LANES == 1u {
        let v = spread(scaled(a, gains.a));
        var squares = 0.0;
        if NORMED {
            let s = spread(vec4<f32>(dot(a, a)));
            squares = s.a.x + s.b.x + s.c.x + s.d.x;
        }
        return Activation16(v, squares);
    }
    let b = x[i + 1u];
    let c = x[i + 2u];
    let d = x[i + 3u];
    let v = Values16(scaled(a, gains.a), scaled(b, gains.b), scaled(c, gains.c), scaled(d, gains.d));
    return Activation16(v, squares16(a, b, c, d));
}

// The tokens of a tile are the rows first, first + 1, ... of x; those past the last one repeat it.
struct Tokens {
    first: u32,
    last: u32,
    stride: u32, // of a row of x, in vectors
}

// Adds the products of one chunk with token t of the tile.
fn add_token(sums: TokenSums, w: Weights, t: u32, tokens: Tokens, chunk: u32, gains: GainChunk, at: Invocation) -> TokenSums {
    let v = activation_chunk(min(tokens.first + t, tokens.last) * tokens.stride, chunk, gains, at);
    let products = vec4<f32>(product(w.r0, v), product(w.r1, v), product(w.r2, v), product(w.r3, v));
    return TokenSums(sums.products + products, sums.squares + v.squares);
}

// Adds the products of one chunk.
fn add_chunk(sums: ptr<function, Sums>, w: Weights, chunk: u32, tokens: Tokens, at: Invocation) {
    let gains = gain_chunk(chunk, at);
    (*sums).t0 = add_token((*sums).t0, w, 0u, tokens, chunk, gains, at);
    if TOKENS > 1u {
        (*sums).t1 = add_token((*sums).t1, w, 1u, tokens, chunk, gains, at);
    }
    if TOKENS > 2u {
        (*sums).t2 = add_token((*sums).t2, w, 2u, tokens, chunk, gains, at);
        (*sums).t3 = add_token((*sums).t3, w, 3u, tokens, chunk, gains, at);
    }
    if TOKENS > 4u {
        (*sums).t4 = add_token((*sums).t4, w, 4u, tokens, chunk, gains, at);
        (*sums).t5 = add_token((*sums).t5, w, 5u, tokens, chunk, gains, at);
        (*sums).t6 = add_token((*sums).t6, w, 6u, tokens, chunk, gains, at);
        (*sums).t7 = add_token((*sums).t7, w, 7u, tokens, chunk, gains, at);
    }
}

// Adds up the sums of the workgroup. Every invocation must call; `total` then returns a slot's sums for token t.
fn reduce(sums: Sums, at: Invocation) {
    share(0u, sums.t0.products, at);
    if TOKENS > 1u {
        share(1u, sums.t1.products, at);
    }
    if TOKENS > 2u {
        share(2u, sums.t2.products, at);
        share(3u, sums.t3.products, at);
    }
    if TOKENS > 4u {
        share(4u, sums.t4.products, at);
        share(5u, sums.t5.products, at);
        share(6u, sums.t6.products, at);
        share(7u, sums.t7.products, at);
    }
    if EXTRA > 0u {
        share(TOKENS, vec4<f32>(sums.t0.squares, sums.t1.squares, sums.t2.squares, sums.t3.squares), at);
        share(TOKENS + 1u, vec4<f32>(sums.t4.squares, sums.t5.squares, sums.t6.squares, sums.t7.squares), at);
    }
    settle(at);
}

// Called by `main` of lib/reduce4_*.wgsl.
fn run(at: Invocation) {
    let group = at.group.y * at.groups.x + at.group.x;
    let index = at.index;
    // Neighbours in the grid take the same rows of the weight, which stay in cache.
    let tiles = (params.tokens + TOKENS - 1u) / TOKENS;
    let slot = group / tiles * SLOTS + index / LANES;
    let token = group % tiles * TOKENS;
    let lane = index % LANES;

    let cols = params.cols;
    let tokens = Tokens(params.first_row + token, params.last_row, cols / 4u);
    let rows = weight_rows(slot * 4u + vec4<u32>(0u, 1u, 2u, 3u));
    var sums = Sums();
    var held = Pieces();
    var part = 0u;
    // The parts of a piece alternate in one loop (see "Tried" above).
    for (var i = lane; i < cols / (COLUMNS * PARTS); i += select(0u, LANES, part == 0u)) {
        if part == 0u {
            held = Pieces(
                piece(rows.x, i, cols),
                piece(rows.y, i, cols),
                piece(rows.z, i, cols),
                piece(rows.w, i, cols),
            );
        }
        let p = held;
        let w = Weights(
            weight_chunk(p.r0, part),
            weight_chunk(p.r1, part),
            weight_chunk(p.r2, part),
            weight_chunk(p.r3, part),
        );
        add_chunk(&sums, w, i * PARTS + part, tokens, at);
        part = (part + 1u) % PARTS;
    }
    reduce(sums, at);

    let count = min(TOKENS, params.tokens - token);
    for (var t = lane; t < count; t += LANES) {
        var result = total(t, at);
        if NORMED {
            result *= row_factor(total(TOKENS + t / 4u, at)[t % 4u]);
        }
        store(token + t, slot * OUTPUTS, result);
    }
}
