// Greedy sampling: ids[0] = index of the largest logit of the last row, the lowest index on ties;
// then position[0] += advance, so that the next token's step can already be recorded.
// One workgroup; invocation i takes the logits i, i + WG, ..., then a tree over the workgroup.
// Numerics: logits are bound as bits and compared as integers, which is exact, gives NaN no chance to win
// (key 0; all NaN gives NONE) and does not depend on how a driver treats NaN in f32 compares.
// One workgroup reads 125 KiB once per token; more of them would need a second dispatch to merge. The
// tree is not split by tier: it runs once per token.

override WG: u32 = 256;

const NONE = 0xffffffffu; // no token has this id

struct Params {
    first: u32, // (R - 1) * V: the first logit of the last row
    vocabulary: u32, // V
    advance: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<u32>; // [R, V], bits of f32
@group(0) @binding(2) var<storage, read_write> ids: array<u32>; // [T], only the first is written
@group(0) @binding(3) var<storage, read_write> position: array<u32>; // [1]

var<workgroup> bests: array<vec2<u32>, WG>; // (key, index); each invocation its own, then the tree

// An integer that orders like the float: 0 for NaN, equal for both zeros.
fn key(bits: u32) -> u32 {
    let magnitude = bits & 0x7fffffffu;
    let ordered = select(0x80000000u + magnitude, 0x80000000u - magnitude, bits != magnitude);
    return select(ordered, 0u, magnitude > 0x7f800000u);
}

// The larger key; of equal keys the lower index.
fn better(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return select(a, b, b.x > a.x || (b.x == a.x && b.y < a.y));
}

@compute @workgroup_size(WG)
fn main(@builtin(local_invocation_index) index: u32) {
    var best = vec2<u32>(0u, NONE);
    for (var i = index; i < params.vocabulary; i += WG) {
        let own = key(logits[params.first + i]);
        if own > best.x {
            best = vec2<u32>(own, i);
        }
    }
    bests[index] = best;
    for (var stride = WG / 2u; stride > 0u; stride /= 2u) {
        workgroupBarrier();
        if index < stride {
            bests[index] = better(bests[index], bests[index + stride]);
        }
    }
    if index == 0u {
        ids[0] = bests[0].y;
        position[0] += params.advance;
    }
}
