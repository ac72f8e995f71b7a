// The tile loop of attention.wgsl on matrix units, for tier coop and caches of f16 or q8_0: f16 factors, f32 sums.
// A workgroup takes 16 rows and tiles of SPAN keys. Its subgroups divide the blocks of 16 keys of S = Q K^T, then those
// of 16 values of the mix P V, where PARTS subgroups share the keys of a block. So any subgroup size is correct, and 8
// subgroups have a block each. SHARERS invocations own a row: they weigh its scores and keep its output in registers.
// WGSL cannot access the elements of a matrix. So scores and mixes pass through workgroup memory, once each, and a tile
// has its own mix, added to the output after the decay of the running maximum. Two passes over the keys, the first for
// the maxima alone, would keep one sum in matrices, but pass the scores twice and load K twice.
// A tile takes 4 barriers: K is staged; S stored; P stored, and V staged over K; the mix stored over S. V is loaded two
// phases before it is staged, the next K one. At Dh 64 and 256 invocations that is 4 tiles of 128 keys and 17 barriers
// for 512 keys, each 32 KiB of an f16 cache, 8 KiB of scores, 4 KiB of weights and twice 4 KiB of mix.
// Needs up to 32 KiB of workgroup memory, which every Vulkan device with matrices of 16 x 16 has.
// f16 has 11 bits and ends at 65504. A row of q whose largest value is outside [LEAST, MOST] is staged times a power of
// two, which is divided out of its scores. Weights are scaled so that the largest is 2^15; the smallest that f16 holds
// without loss is then 2^-29 of it. A row is divided by the sum of its rounded weights.
// On an H200, T 512, H 12 to 20, Dh 64, an f16 cache: 26 us, against 79 with lib/attention_f32.wgsl; 16 dispatches of
// the 270M.

enable f16;

override INVOCATIONS: u32 = 256; // of a workgroup: 128 or 256
override PARTS: u32 = 2; // INVOCATIONS / (8 * COLS), at least 1: subgroups of 32 per block of the mix

override SPAN: u32 = 8u * INVOCATIONS / COLS; // keys of a tile: each invocation stages 8 vectors of K, and of V
override SHARERS: u32 = INVOCATIONS / 16u; // invocations of a row: 8 or 16
override PITCH: u32 = COLS + 2u; // vectors from one staged row to the next, padded to skew the banks, as the others are
override WEIGHTS_PITCH: u32 = SPAN / 4u + 2u;
override SCORES_PITCH: u32 = SPAN / 4u + 2u;
override MIX_PITCH: u32 = COLS + 1u;

const MOST = 65504.0; // the largest f16
const LEAST = 0x1p-10; // lower bound of a row's largest value: half a step below f16's normal range is 2^-15 of it
const LARGEST = 15.0; // log2 of the largest weight

// Each takes a multiple of 16 bytes, and matrix rows begin at one: see product/tile_coop.wgsl. All invocations write
// and read all of them.
var<workgroup> cached: array<vec4<f16>, SPAN * PITCH>; // [SPAN, PITCH] of K, then of V
var<workgroup> weights: array<vec4<f16>, 16u * max(WEIGHTS_PITCH, PITCH)>; // Q once, [16, PITCH]; then P
var<workgroup> sums: array<vec4<f32>, 16u * max(SCORES_PITCH, PARTS * MIX_PITCH)>; // S; then [PARTS, 16, MIX_PITCH]

// The index of a subgroup, and how many there are.
struct Team {
    number: u32,
    count: u32,
}

// 16 rows of 64 values.
struct Query {
    a: MatrixRows,
    b: MatrixRows,
    c: MatrixRows,
    d: MatrixRows,
}

fn query_at(at: u32) -> Query {
    return Query(load_query(at), load_query(at + 4u), load_query(at + 8u), load_query(at + 12u));
}

// Adds the products with 64 values of the 16 keys from `at` on.
fn add_scores(query: Query, at: u32, scores: MatrixSum) -> MatrixSum {
    var sum = multiply_add(query.a, load_keys(at), scores);
    sum = multiply_add(query.b, load_keys(at + 4u), sum);
    sum = multiply_add(query.c, load_keys(at + 8u), sum);
    return multiply_add(query.d, load_keys(at + 12u), sum);
}

fn largest(values: vec4<f32>) -> f32 {
    return max(max(values.x, values.y), max(values.z, values.w));
}

// The power of two that brings a row's largest value `top` to 2^13; 1 if the row fits f16.
fn factor_of(top: f32) -> f32 {
    if top == 0.0 || (top >= LEAST && top <= MOST) {
        return 1.0;
    }
    let exponent = i32(bitcast<u32>(top) >> 23u) - 127;
    return ldexp(1.0, clamp(13 - exponent, -115, 115));
}

// Where vector n of an invocation's share of a tile is staged.
fn staged(i: u32, n: u32) -> u32 {
    return (i + n * INVOCATIONS) / COLS * PITCH + (i + n * INVOCATIONS) % COLS;
}

// The key of that vector; past the end the last key, whose weight there is 0.
fn key_of(first_key: u32, key_count: u32, i: u32, n: u32) -> u32 {
    return min(first_key + (i + n * INVOCATIONS) / COLS, key_count - 1u);
}

// Four scores of a row as exponents of two, LOWEST where the row does not see the key.
fn scores_at(at: u32, key: u32, last_key: u32, scale: f32) -> vec4<f32> {
    let keys = vec4<u32>(key) + vec4<u32>(0u, 1u, 2u, 3u);
    return select(vec4<f32>(LOWEST), sums[at] * scale, keys <= vec4<u32>(last_key));
}

// naga reports the loop over a subgroup's blocks as divergent. It diverges only between subgroups.
@diagnostic(off, derivative_uniformity)
@compute @workgroup_size(INVOCATIONS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) i: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    let team = team_of(i, subgroup, subgroups);
    let kv_head = group.y;
    let members = params.query_heads / params.kv_heads;
    let rows = params.tokens * members;
    let first_row = (params.last_tile - group.x) * 16u;
    let first_position = min(position[0], params.capacity - params.tokens);
    let cache = kv_head * params.capacity * STRIDE;
    let key_count = first_position + min(first_row + 15u, rows - 1u) / members + 1u;
    let mine = i / SHARERS;
    let lane = i % SHARERS;
    let row = min(first_row + mine, rows - 1u); // past the end: repeats the last
    let last_key = first_position + row / members;

    var held: array<vec4<f16>, 8>;
    for (var n = 0u; n < 8u; n++) {
        held[n] = k_half(cache + key_of(0u, key_count, i, n) * STRIDE, i % COLS);
    }
    let start = head_start(kv_head, row, params.stride);
    var size = 0.0;
    for (var c = lane; c < COLS; c += SHARERS) {
        size = max(size, largest(abs(q[start + c])));
    }
    let factor = factor_of(row_max(size, i));
    let scale = params.scale / factor;
    for (var c = lane; c < COLS; c += SHARERS) {
        weights[mine * PITCH + c] = vec4<f16>(q[start + c] * factor);
    }
    workgroupBarrier();
    let query = query_at(0u);
    let query_high = query_at(COLS - 16u); // at Dh 64 a second copy, unused

    var top = LOWEST;
    var total = 0.0;
    var outputs: array<vec4<f32>, 4>;
    for (var first_key = 0u; first_key < key_count; first_key += SPAN) {
        let blocks = min((key_count - first_key + 15u) / 16u, SPAN / 16u);
        for (var n = 0u; n < 8u; n++) {
            cached[staged(i, n)] = held[n];
        }
        for (var n = 0u; n < 8u; n++) {
            held[n] = v_half(cache + key_of(first_key, key_count, i, n) * STRIDE, i % COLS);
        }
        workgroupBarrier();
        for (var block = team.number; block < blocks; block += team.count) {
            var scores = add_scores(query, block * 16u * PITCH, MatrixSum());
            if COLS > 16u {
                scores = add_scores(query_high, block * 16u * PITCH + 16u, scores);
            }
            store_scores(scores, block * 4u);
        }
        workgroupBarrier();
        // Blocks past the last one hold stale values, but no row sees their keys.
        var new_top = top;
        for (var c = lane; c < SPAN / 4u; c += SHARERS) {
            let scores = scores_at(mine * SCORES_PITCH + c, first_key + 4u * c, last_key, scale);
            new_top = max(new_top, largest(scores));
        }
        new_top = row_max(new_top, i);
        let decay = exp2(top - new_top);
        total *= decay;
        top = new_top;
        for (var c = lane; c < SPAN / 4u; c += SHARERS) {
            let scores = scores_at(mine * SCORES_PITCH + c, first_key + 4u * c, last_key, scale);
            let rounded = vec4<f16>(exp2((scores - top) + LARGEST));
            weights[mine * WEIGHTS_PITCH + c] = rounded;
            total += dot(vec4<f32>(rounded), vec4<f32>(1.0));
        }
        for (var n = 0u; n < 8u; n++) {
            cached[staged(i, n)] = held[n];
        }
        for (var n = 0u; n < 8u; n++) {
            held[n] = k_half(cache + key_of(first_key + SPAN, key_count, i, n) * STRIDE, i % COLS);
        }
        workgroupBarrier();
        for (var n = team.number; n < PARTS * (COLS / 4u); n += team.count) {
            let part = n / (COLS / 4u);
            let c = n % (COLS / 4u) * 4u;
            var mix = MatrixSum();
            for (var block = part; block < blocks; block += PARTS) {
                mix = multiply_add(load_weights(block * 4u), load_values(block * 16u * PITCH + c), mix);
            }
            store_mix(mix, part * 16u * MIX_PITCH + c);
        }
        workgroupBarrier();
        for (var n = 0u; n < COLS / SHARERS; n++) {
            var output = outputs[n] * decay;
            for (var part = 0u; part < PARTS; part++) {
                output += sums[(part * 16u + mine) * MIX_PITCH + lane + n * SHARERS];
            }
            outputs[n] = output;
        }
    }
    let sum = row_add(total, i);
    for (var n = 0u; n < COLS / SHARERS; n++) {
        store(kv_head, first_row + mine, lane + n * SHARERS, outputs[n] / sum);
    }
}
