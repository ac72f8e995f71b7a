// Log probabilities of a row's target token and of its TOP likeliest tokens.
//   scores[r,0] = l[target] - max(l) - ln(sum(exp(l - max(l)))), at most 0;   scores[r,1..] the same of ids[r,:]
// One workgroup per row. Invocation i handles vectors i, i + WG, ... of four logits and first finds its likeliest
// token. Each of TOP rounds takes the best over the workgroup, and the invocation that had it searches for its
// next one: nothing is sorted, and only one invocation reads again, from cache. Then all sum the exponentials.
// 44 bytes per row are read back in place of 125 KiB of logits.
// Numerics: logits are ordered as integers (lib/keys.wgsl), ties by the lower id. Each invocation sums four
// lanes in f32. Differences are taken of halves, so none overflows. A row with a logit that is not finite gives
// BROKEN and NONE, and so does a rank beyond the vocabulary.

override WG: u32 = 256;

const TOP = 5u; // as in engine/kernels/log_likelihood.rs
const NONE = 0xffffffffu; // no token has this id
const BROKEN = 1.0; // never a log probability
const LOWEST = -1.6e38; // lower bound of half a difference

struct Params {
    vocabulary: u32, // V
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<Bits>; // [R, V], bits of f32: lib/bits_*.wgsl
@group(0) @binding(2) var<storage, read> targets: array<u32>; // [R], clamped to the vocabulary
@group(0) @binding(3) var<storage, read_write> scores: array<f32>; // [R, 1 + TOP]
@group(0) @binding(4) var<storage, read_write> ids: array<u32>; // [R, TOP]

var<workgroup> scratch: array<f32, WG>; // for reduce_add
var<workgroup> bests: array<vec2<u32>, WG>; // (key, id), the tree of a round
var<workgroup> likeliest: array<vec2<u32>, TOP>; // (key, id); written by invocation 0, read by all
var<workgroup> broken: atomic<u32>; // whether a logit is not finite

// The likeliest of an invocation's tokens that ranks after `last`; NONE if there is none.
fn best_behind(last: vec2<u32>, row: u32, index: u32) -> vec2<u32> {
    var best = vec2<u32>(0u, NONE);
    for (var i = index; i < (params.vocabulary + 3u) / 4u; i += WG) {
        let four = keys(bits4(row, i, params.vocabulary));
        for (var lane = 0u; lane < 4u; lane++) {
            let own = vec2<u32>(four[lane], i * 4u + lane);
            let behind = own.x < last.x || (own.x == last.x && own.y > last.y);
            best = select(best, better(best, own), behind && own.x != 0u);
        }
    }
    return best;
}

// The best of all invocations. Every invocation must call.
fn best_of(own: vec2<u32>, index: u32) -> vec2<u32> {
    bests[index] = own;
    for (var stride = WG / 2u; stride > 0u; stride /= 2u) {
        workgroupBarrier();
        if index < stride {
            bests[index] = better(bests[index], bests[index + stride]);
        }
    }
    return workgroupUniformLoad(&bests[0]);
}

// This invocation's share of the sum of exp(l - top).
fn exponentials(top: f32, row: u32, index: u32) -> f32 {
    var sums = vec4<f32>(0.0);
    var odd = false;
    for (var i = index; i < (params.vocabulary + 3u) / 4u; i += WG) {
        let bits = bits4(row, i, params.vocabulary);
        let inside = vec4<u32>(i * 4u) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.vocabulary);
        let finite = (bits & vec4<u32>(0x7fffffffu)) < vec4<u32>(0x7f800000u);
        odd = odd || any(inside & !finite);
        let value = bitcast<vec4<f32>>(select(vec4<u32>(0u), bits, finite));
        // e^-120 is 0 in f32.
        let distance = 2.0 * max(0.5 * value - vec4<f32>(0.5 * top), vec4<f32>(-60.0));
        sums += select(vec4<f32>(0.0), exp(distance), inside & finite);
    }
    if odd {
        atomicStore(&broken, 1u);
    }
    return sums.x + sums.y + sums.z + sums.w;
}

fn log_probability(logit: f32, top: f32, log_sum: f32) -> f32 {
    return min(2.0 * max(0.5 * logit - 0.5 * top, LOWEST) - log_sum, 0.0);
}

// Called by `main` of lib/reduce_*.wgsl.
fn run(group: vec3<u32>, at: Invocation) {
    let row = group.x;
    var own = best_behind(vec2<u32>(NONE, 0u), row, at.index);
    for (var rank = 0u; rank < TOP; rank++) {
        let best = best_of(own, at.index);
        if at.index == 0u {
            likeliest[rank] = best;
        }
        if own.y == best.y && best.y != NONE {
            own = best_behind(best, row, at.index);
        }
    }
    if at.index == 0u {
        atomicStore(&broken, 0u);
    }
    let first = workgroupUniformLoad(&likeliest[0]);
    let top = select(value(first.x), 0.0, first.x == 0u);
    let log_sum = log(reduce_add(exponentials(top, row, at.index), at));
    if at.index > TOP {
        return;
    }
    let target_id = min(targets[row], params.vocabulary - 1u);
    var scored = vec2<u32>(keys(bits4(row, target_id / 4u, params.vocabulary))[target_id % 4u], target_id);
    if at.index > 0u {
        scored = likeliest[at.index - 1u];
    }
    let known = atomicLoad(&broken) == 0u && scored.x != 0u;
    scores[row * (1u + TOP) + at.index] = select(BROKEN, log_probability(value(scored.x), top, log_sum), known);
    if at.index > 0u {
        ids[row * TOP + at.index - 1u] = select(NONE, scored.y, known);
    }
}
