// The product loop for many tokens, tile by tile, on matrix units, for tier coop: f16 factors, f32 sums.
// Prologue, epilogue and slots are those of tile_f32.wgsl.
// A workgroup stages STEP columns of both factors as f16; a weight is dequantized once per tile. Each subgroup takes
// one block of 32 tokens x 32 rows. lib/block_*.wgsl builds a block from matrices of 16 x 16 or 8 x 8, whose built-ins
// are in lib/coop_*.wgsl only. With fewer subgroups than blocks, the columns are walked again for the rest; with more,
// the extra subgroups only help to stage. So any subgroup size is correct. A tile of 64 x 64 suits 4 subgroups: 128
// invocations with subgroups of 32, 256 with 64.
// A block loads 4 matrices of 16 x 16 for 4 products. x_tile is row-major, tokens x columns. w_tile is row-major, rows
// x columns: as the right factor, columns x rows, it is column-major.
// f16 has 11 bits and ends at 65504. Weights in q8_0, q4_0 and f16 fit and are clamped to it; weights in f32 and bf16
// use tile_f32.wgsl. Activations have no bound: staging finds the largest of each token. If a token's is outside
// [LEAST, MOST], the tile is computed again with each such token times a power of two that is divided out of its sums.
// So nothing overflows or vanishes, and the usual case costs nothing. Tokens and rows past the end repeat the last one.
// A step's data is loaded into registers during the step before, and stored in vectors. On an H200, prompts of 512
// tokens of the 270M in q4_0: 104 thousand tokens/s, against 78 when loaded and stored a value at a time; 96 with 64
// columns per step. Two buffers, which save a barrier, 256 invocations and tiles of 128 rows were no faster. Products
// of [2 x 3072, 1280] reach 93 TFLOP/s, of [1280, 3072] 48: there are 160 to 320 workgroups for 132 multiprocessors.

enable f16;

override GROUPS: u32 = 8; // groups of 8 tokens in a tile: 4 or 8
override ROWS: u32 = 64; // of the weight in a tile: 32 or 64
override WG: u32 = 128; // invocations: 128 or 256

override TOKENS: u32 = 8u * GROUPS;
override BLOCKS: u32 = TOKENS / 32u * (ROWS / 32u); // 1, 2 or 4

const SPACING = 8u; // of the outputs of a slot
const STEP = 32u; // columns that are staged at once
const PITCH = 40u; // from one staged row to the next: a multiple of 16 bytes, for matrix loads, that skews the banks
const SUMS_PITCH = 36u; // the same of a row of 32 sums
const BAND = 576u; // 16 rows of sums: half a block
const MOST = 65504.0; // the largest f16
const LEAST = 0x1p-10; // lower bound of a token's largest value: half a step below f16's normal range is 2^-15 of it

// Matrix loads need an alignment of 16 bytes, and a driver may lay out variables in any order, without gaps. So each
// takes a multiple of 16 bytes, those of lib/coop_*.wgsl too. (With 8 bytes of flags NVIDIA's lost 4 of 32 columns.)
// Half of two blocks, written by their subgroups, read by all; before that, what each invocation found in x.
var<workgroup> sums: array<f32, min(BLOCKS, 2u) * BAND>; // [2, 16, SUMS_PITCH]
var<workgroup> factors: array<f32, TOKENS>; // of x while it is staged; each written by one invocation, read by all
var<workgroup> results: array<f32, TOKENS>; // of the sums; likewise
var<workgroup> outside: array<atomic<u32>, 4>; // [0]: whether some token is beyond f16
var<workgroup> again: vec4<u32>; // the same, once all tokens are checked

// The index of a subgroup, and how many there are.
struct Team {
    number: u32,
    count: u32,
}

// An invocation's share of a step, as loaded: up to four vectors of x, of tokens i / 8, i / 8 + WG / 8, ..., their
// gains, and half of a weight row.
struct Share {
    x0: vec4<f32>,
    x1: vec4<f32>,
    x2: vec4<f32>,
    x3: vec4<f32>,
    gain: vec4<f32>,
    piece: Piece,
}

// The largest value and the sum of squares in an invocation's share of each token that it stages.
struct Found {
    tops: vec4<f32>,
    squares: vec4<f32>,
}

fn load_share(first: u32, index: u32, step: u32, i: u32) -> Share {
    var share = Share();
    let vector = step * 8u + i % 8u;
    let cols = params.cols;
    let vectors = cols / 4u;
    let row = params.first_row + first + i / 8u;
    let last = params.last_row;
    share.gain = gains4(vector);
    share.x0 = x[min(row, last) * vectors + vector];
    if TOKENS * 8u > WG {
        share.x1 = x[min(row + WG / 8u, last) * vectors + vector];
    }
    if TOKENS * 8u > 2u * WG {
        share.x2 = x[min(row + WG / 4u, last) * vectors + vector];
        share.x3 = x[min(row + WG / 8u * 3u, last) * vectors + vector];
    }
    if i < ROWS * 2u {
        share.piece = piece(weight_rows(vec4<u32>(index)).x, (step * 2u + i % 2u) / PARTS, cols);
    }
    return share;
}

// Stages four values of the token t of the tile; returns the largest and the sum of squares so far.
fn put_token(t: u32, i: u32, v: vec4<f32>, gain: vec4<f32>, found: vec2<f32>) -> vec2<f32> {
    let value = scaled(v, gain);
    let size = abs(value);
    put_x(t * PITCH + i % 8u * 4u, vec4<f16>(value * factors[t]));
    let top = max(max(size.x, size.y), max(size.z, size.w));
    return vec2<f32>(max(found.x, top), add_squares(v, found.y));
}

fn put_weights(at: u32, values: vec4<f32>) {
    put_w(at, vec4<f16>(clamp(values, vec4<f32>(-MOST), vec4<f32>(MOST))));
}

fn put_share(share: Share, i: u32, found: Found) -> Found {
    let t = i / 8u;
    let f0 = put_token(t, i, share.x0, share.gain, vec2<f32>(found.tops.x, found.squares.x));
    var f1 = vec2<f32>();
    var f2 = vec2<f32>();
    var f3 = vec2<f32>();
    if TOKENS * 8u > WG {
        f1 = put_token(t + WG / 8u, i, share.x1, share.gain, vec2<f32>(found.tops.y, found.squares.y));
    }
    if TOKENS * 8u > 2u * WG {
        f2 = put_token(t + WG / 4u, i, share.x2, share.gain, vec2<f32>(found.tops.z, found.squares.z));
        f3 = put_token(t + WG / 8u * 3u, i, share.x3, share.gain, vec2<f32>(found.tops.w, found.squares.w));
    }
    if i < ROWS * 2u {
        let w = weight_chunk(share.piece, i % PARTS);
        let at = i / 2u * PITCH + i % 2u * 16u;
        put_weights(at, w.a);
        put_weights(at + 4u, w.b);
        put_weights(at + 8u, w.c);
        put_weights(at + 12u, w.d);
    }
    return Found(vec4<f32>(f0.x, f1.x, f2.x, f3.x), vec4<f32>(f0.y, f1.y, f2.y, f3.y));
}

// The power of two that brings a token's largest value `top` to 2^13; 1 if the token fits f16.
fn factor_of(top: f32) -> f32 {
    if top == 0.0 || (top >= LEAST && top <= MOST) {
        return 1.0;
    }
    let exponent = i32(bitcast<u32>(top) >> 23u) - 127;
    return ldexp(1.0, clamp(13 - exponent, -115, 115));
}

// Combines what all invocations found in each token, and decides on its factors.
fn settle(found: Found, i: u32) {
    for (var a = 0u; a < TOKENS * 8u / WG; a++) {
        let at = i + a * WG;
        sums[at] = found.tops[a];
        sums[TOKENS * 8u + at] = found.squares[a];
    }
    workgroupBarrier();
    if i < TOKENS {
        var top = 0.0;
        var squares = 0.0;
        for (var n = 0u; n < 8u; n++) {
            let at = i * 8u + n;
            top = max(top, sums[at]);
            squares += sums[TOKENS * 8u + at];
        }
        let factor = factor_of(top);
        factors[i] = factor;
        results[i] = row_factor(squares) / factor;
        if factor != 1.0 {
            atomicOr(&outside[0], 1u);
        }
    }
    workgroupBarrier();
    if i == 0u {
        again = vec4<u32>(atomicLoad(&outside[0]));
    }
}

// Passes the sums of one half of the tokens of two blocks to the epilogue, if the blocks are in done .. end.
fn finish(first: u32, output: u32, half: u32, done: u32, end: u32, i: u32) {
    for (var n = i; n < min(BLOCKS, 2u) * 128u; n += WG) {
        let row = n / 8u;
        let j = n % 8u;
        let block = half / 2u * 2u + row / 16u;
        if block >= done && block < end {
            let t = block / (ROWS / 32u) * 32u + half % 2u * 16u + row % 16u;
            let token = first + t;
            let at = row * SUMS_PITCH + j;
            let four = vec4<f32>(sums[at], sums[at + 8u], sums[at + 16u], sums[at + 24u]);
            if token < params.tokens {
                store(token, output + block % (ROWS / 32u) * (SPACING * OUTPUTS) + j, four * results[t]);
            }
        }
    }
}

// naga reports the branch in which a subgroup stores its matrices as divergent. It diverges only between subgroups.
@diagnostic(off, derivative_uniformity)
@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) i: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    let first = group.x * TOKENS;
    let output = group.y * (ROWS / 4u * OUTPUTS);
    let index = group.y * ROWS + i / 2u; // of the weight row that the invocation stages a half of
    let team = team_of(i, subgroup, subgroups);
    if i < TOKENS {
        factors[i] = 1.0;
    }
    if i == 0u {
        atomicStore(&outside[0], 0u);
    }
    workgroupBarrier();
    var settled = false;
    for (var done = 0u; done < BLOCKS; ) {
        let block = done + team.number;
        // Extra subgroups repeat the last block.
        let mine = min(block, BLOCKS - 1u);
        let x_at = mine / (ROWS / 32u) * (32u * PITCH);
        let w_at = mine % (ROWS / 32u) * (32u * PITCH);
        var found = Found();
        var products = Block();
        let steps = params.cols / STEP;
        var share = load_share(first, index, 0u, i);
        for (var step = 0u; step < steps; step++) {
            found = put_share(share, i, found);
            workgroupBarrier();
            // Arrives while matrices are multiplied; the last step is loaded again.
            share = load_share(first, index, min(step + 1u, steps - 1u), i);
            products = block_add(products, x_at, w_at);
            workgroupBarrier();
        }
        if !settled {
            settled = true;
            settle(found, i);
            if workgroupUniformLoad(&again).x != 0u {
                continue;
            }
        }
        let end = min(done + team.count, BLOCKS);
        for (var half = done / 2u * 2u; half < end + end % 2u; half++) {
            if block / 2u == half / 2u && block < BLOCKS {
                block_store(products, half % 2u, block % 2u * BAND);
            }
            workgroupBarrier();
            finish(first, output, half, done, end, i);
            workgroupBarrier();
        }
        done = end;
    }
}
