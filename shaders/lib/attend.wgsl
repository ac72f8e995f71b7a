// Attention of one query head over keys begin..end by a workgroup, with online softmax in chunks of WG keys.
// Every invocation must call; each of the first COLS gets one vector of the result. The kernel defines `View`,
// which locates its data; `score_parts`, which writes 4 partial scores per key of a chunk to `parts`; and
// `add_values`, which adds an invocation's share of the chunk's values, weighted by `weights`.
// For scores, 4 neighbouring invocations share a key and interleave its vectors: a load touches whole 32-byte
// sectors, and no head is staged. Then each invocation owns the score of one key. For V, COLS neighbours load a
// row together; each sums one vector of the output over its share of the keys, and shares are added once, at the
// end. A chunk costs 2 barriers and one maximum (reduce_max of the tier).
// f32 throughout; the running maximum keeps every exponent <= 0.
// SPLITS workgroups may share the keys of a row and head; attention_merge.wgsl then merges their parts.

const SPLIT_KEYS: u32 = 768; // as in engine/kernels/cache.rs
const LOWEST: f32 = -3e38; // below every score; a difference of two never overflows to NaN

// The largest score, the sum of all weights relative to it, and the weighted sum of values; LOWEST and zeros
// without keys.
struct Weighted {
    top: f32,
    total: f32,
    sum: vec4<f32>,
}

// [WG keys, 4] partial scores, read by the key's owner; then [4, WG / COLS, COLS] outputs, by the first COLS.
var<workgroup> parts: array<f32, 4u * WG>;
var<workgroup> weights: array<f32, WG>; // of the chunk's keys, written by their owners, read by all; then totals

fn attend(view: View, begin: u32, end: u32, at: Invocation) -> Weighted {
    var mix = Weighted(LOWEST, 0.0, vec4<f32>(0.0));
    for (var first = begin; first < end; first += WG) {
        let count = min(WG, end - first);
        score_parts(view, first, count, at.index);
        workgroupBarrier();
        var score = LOWEST;
        if at.index < count {
            let part = 4u * at.index;
            score = (parts[part] + parts[part + 1u] + parts[part + 2u] + parts[part + 3u]) * params.scale;
        }
        let top = max(mix.top, reduce_max(score, at));
        let decay = exp2(mix.top - top);
        weights[at.index] = exp2(score - top);
        workgroupBarrier();
        mix = add_values(view, first, count, Weighted(top, mix.total * decay, mix.sum * decay), at.index);
    }
    workgroupBarrier(); // all have read `weights`
    parts[at.index] = mix.sum.x;
    parts[at.index + WG] = mix.sum.y;
    parts[at.index + 2u * WG] = mix.sum.z;
    parts[at.index + 3u * WG] = mix.sum.w;
    weights[at.index] = mix.total;
    workgroupBarrier();
    if at.index < COLS {
        for (var i = at.index + COLS; i < WG; i += COLS) {
            mix.sum += vec4<f32>(parts[i], parts[i + WG], parts[i + 2u * WG], parts[i + 3u * WG]);
            mix.total += weights[i];
        }
    }
    return mix;
}

// Begin and end of a workgroup's keys: runs of equal length, except that the last ones may be shorter or empty.
// Fewer than SPLIT_KEYS keys stay in one run, so that SPLITS does not change their bits.
fn share_of(keys: u32, split: u32) -> vec2<u32> {
    let length = select((keys + SPLITS - 1u) / SPLITS, keys, keys < SPLIT_KEYS);
    return min(vec2<u32>(split, split + 1u) * length, vec2<u32>(keys));
}

// Stores the output of a row and head, or a workgroup's part of it: sums, then (top, total, 0, 0).
fn store(row: u32, split: u32, mix: Weighted, index: u32) {
    if SPLITS == 1u {
        if index < COLS {
            out[row * COLS + index] = mix.sum / mix.total;
        }
        return;
    }
    let to = (row * SPLITS + split) * (COLS + 1u);
    if index < COLS {
        out[to + index] = mix.sum;
    }
    if index == 0u {
        out[to + COLS] = vec4<f32>(mix.top, mix.total, 0.0, 0.0);
    }
}
