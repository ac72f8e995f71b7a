// Sampling of a row of logits: repeat penalty, temperature, top-k, top-p and min-p, each applied to what the one
// before left, then a weighted draw in the order of the ids; at temperature 0 the largest penalised logit.
// lib/token.wgsl defines which rows choose and where the token goes; lib/penalty.wgsl has the penalty.
// One workgroup per row. Pass 1 applies the penalty, finds the maximum and writes keys to `scratch`, integers
// that order like the logits; invocation i handles vectors i, i + WG, ... of four. Top-k and top-p do not sort:
// see lib/cut.wgsl. For the draw each invocation sums a run of ids, and one of them walks its run.
// Passes: 1, two each for top-k and top-p (more only if over 256 logits are nearly equal), and 1 to draw. The
// keys save the later ones the penalty; weights are recomputed, because one exp costs less than a load.
// Numerics: weights exp((l - max) / T) are multiples of 2^-31, so that sums are exact in any order; those below
// 2^-32 are never drawn. Upper and lower halves are summed apart, which holds for V <= 65536. Ties go to the
// lower id. A logit that is not finite gives NONE. No infinity is computed or compared here.

override WG: u32 = 256;

struct Params {
    row: u32, // the first row that chooses
    advance: u32, // tokens of the step, for the last row
    capacity: u32, // the last index of `out`
    vocabulary: u32, // V
    slots: u32, // of a batch
}

// The options of a generation, packed by engine/kernels/draw.rs.
struct Options {
    inverse: f32, // 2 / T; 0 takes the likeliest
    limit: f32, // 64 * T / 2: half the distance to the maximum beyond which weights are 0
    top_k: u32, // 0 keeps all
    top_p: u32, // times 2^32; 0 keeps all
    reach: f32, // -ln(min_p), at most 64
    penalty: f32, // 1 changes nothing
    window: u32, // 0 is all tokens
    seed_lower: u32,
    seed_upper: u32,
    rest: array<u32, 7>,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<Bits>; // [R, V], bits of f32: lib/bits_*.wgsl
@group(0) @binding(2) var<storage, read> options: array<Options>; // [16], of a batch [R, 16]
@group(0) @binding(3) var<storage, read_write> last_seen: array<u32>; // [V], 1 + index in the sequence, or 0; of a batch [slots, V]
@group(0) @binding(4) var<storage, read_write> ids: array<u32>; // [T]
@group(0) @binding(5) var<storage, read_write> position: array<u32>; // [1], of a batch [R, 2]
@group(0) @binding(6) var<storage, read_write> out: array<u32>; // [S + 1], the history; of drafts and batches [R]
@group(0) @binding(7) var<storage, read_write> scratch: array<vec4<u32>>; // [R, V / 4 rounded up], keys

var<workgroup> bests: array<vec2<u32>, WG>; // (key, index) in the tree of pass 1
var<workgroup> best_of_all: vec2<u32>; // (key, index), written by invocation 0
var<workgroup> broken: atomic<u32>; // whether a logit is not finite
var<workgroup> upper: array<atomic<u32>, BINS>; // sums of the upper halves of weights
var<workgroup> lower: array<atomic<u32>, BINS>; // and of the lower halves
var<workgroup> counts: array<atomic<u32>, BINS>;
var<workgroup> groups: array<vec2<u32>, GROUPS>; // sums of bins
var<workgroup> found: Found; // written by invocation 0
var<workgroup> listed: atomic<u32>; // candidates in `list`
var<workgroup> list: array<vec3<u32>, BINS>; // (key, id, measure)
var<workgroup> cut: vec2<u32>; // (key, id) of the last candidate kept, written by the invocation that ranked it
var<workgroup> chosen: u32;

// The scale of a row's draw.
struct Scale {
    top: f32, // the maximum of its logits
    table: u32, // its options
}

// Half the distance of a logit to the maximum, over half the temperature.
fn distance_to(scale: Scale, key: u32) -> f32 {
    return min(0.5 * scale.top - 0.5 * value(key), options[scale.table].limit) * options[scale.table].inverse;
}

fn weight(distance: f32) -> u32 {
    return u32(exp(-distance) * 2147483648.0 + 0.5);
}

// The weight of a candidate in the draw.
fn drawn(last: vec2<u32>, scale: Scale, key: u32, id: u32) -> u32 {
    if !kept(last, key, id) {
        return 0u;
    }
    let distance = distance_to(scale, key);
    return select(0u, weight(distance), distance <= options[scale.table].reach);
}

fn drawn4(last: vec2<u32>, scale: Scale, four: vec4<u32>, id: u32) -> vec4<u32> {
    return vec4<u32>(
        drawn(last, scale, four.x, id),
        drawn(last, scale, four.y, id + 1u),
        drawn(last, scale, four.z, id + 2u),
        drawn(last, scale, four.w, id + 3u),
    );
}

// Draws one of the candidates down to `last` by weight.
fn pick(index: u32, base: u32, last: vec2<u32>, scale: Scale, next: u32) -> u32 {
    let vectors = (params.vocabulary + 3u) / 4u;
    let run = (vectors + WG - 1u) / WG;
    let begin = min(index * run, vectors);
    let end = min(begin + run, vectors);
    clear_bins(index);
    storageBarrier(); // keys are read by other invocations than those that wrote them
    var sums = vec2<u32>(0u);
    for (var i = begin; i < end; i++) {
        let four = drawn4(last, scale, scratch[base + i], i * 4u);
        sums += vec2<u32>(dot(four >> vec4<u32>(16u), vec4<u32>(1u)), dot(four & vec4<u32>(0xffffu), vec4<u32>(1u)));
    }
    atomicStore(&upper[index], sums.x);
    atomicStore(&lower[index], sums.y);
    let seed = vec2<u32>(options[scale.table].seed_lower, options[scale.table].seed_upper);
    let random = threefry(seed, vec2<u32>(next, 0u));
    let place = find(index, true, DRAW, random.x, scale.table);
    if index == place.bin {
        var sum = vec2<u32>(0u);
        var id = NONE;
        for (var i = begin; i < end; i++) {
            let four = drawn4(last, scale, scratch[base + i], i * 4u);
            for (var lane = 0u; lane < 4u; lane++) {
                let before = sum;
                sum = wide_add(sum, vec2<u32>(0u, four[lane]));
                if wide_less(before, place.goal) && !wide_less(sum, place.goal) {
                    id = i * 4u + lane;
                }
            }
        }
        chosen = id;
    }
    return workgroupUniformLoad(&chosen);
}

// Writes the keys of a row to scratch. Returns the best key and its index, or NONE if a logit is not finite.
fn prepare(index: u32, row: u32, base: u32, next: u32) -> vec2<u32> {
    let vectors = (params.vocabulary + 3u) / 4u;
    if index == 0u {
        atomicStore(&broken, 0u);
    }
    workgroupBarrier();
    let penalty = options[table_of(row)].penalty;
    var best = vec2<u32>(0u, NONE);
    var odd = false;
    for (var i = index; i < vectors; i += WG) {
        let bits = bits4(row, i, params.vocabulary);
        let lanes = vec4<u32>(i * 4u) + vec4<u32>(0u, 1u, 2u, 3u);
        let finite = (bits & vec4<u32>(0x7fffffffu)) < vec4<u32>(0x7f800000u);
        odd = odd || any(!finite & (lanes < vec4<u32>(params.vocabulary)));
        var four = keys(bits);
        if penalty != 1.0 {
            let recent = occurred(i * 4u, row, next) & finite;
            four = select(four, penalized_keys(bits, penalty), recent);
        }
        scratch[base + i] = four;
        best = better(best, better(
            better(vec2<u32>(four.x, lanes.x), vec2<u32>(four.y, lanes.y)),
            better(vec2<u32>(four.z, lanes.z), vec2<u32>(four.w, lanes.w)),
        ));
    }
    if odd {
        atomicStore(&broken, 1u);
    }
    bests[index] = best;
    for (var stride = WG / 2u; stride > 0u; stride /= 2u) {
        workgroupBarrier();
        if index < stride {
            bests[index] = better(bests[index], bests[index + stride]);
        }
    }
    if index == 0u {
        best_of_all = select(bests[0], vec2<u32>(0u, NONE), atomicLoad(&broken) != 0u);
    }
    return workgroupUniformLoad(&best_of_all);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let row = params.row + group.x;
    let base = group.x * ((params.vocabulary + 3u) / 4u);
    let next = next_of(row);
    let table = table_of(row);
    let best = prepare(index, row, base, next);
    var id = best.y;
    if options[table].inverse != 0.0 && id != NONE {
        let scale = Scale(value(best.x), table);
        var last = vec2<u32>(1u, NONE);
        let top_k = options[table].top_k;
        if top_k != 0u && top_k < params.vocabulary {
            last = cut_off(index, base, last, COUNT, scale);
        }
        if options[table].top_p != 0u {
            last = cut_off(index, base, last, SHARE, scale);
        }
        id = pick(index, base, last, scale, next);
    }
    if index == 0u {
        note(row, id, next);
        publish(row, id);
    }
}
