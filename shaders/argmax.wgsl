// Greedy sampling: the index of the largest logit of a row, the lowest index on ties. lib/token.wgsl says which rows
// choose, and where the index goes.
// One workgroup per row that chooses; invocation i takes the vectors i, i + WG, ... of four logits, eight of
// them in flight (four rounds for 32000 logits), then a tree over the workgroup.
// Every lane of the vectors keeps a best of its own, so that no compare waits for the lane before.
// Numerics: logits are bound as bits and compared as integers, which is exact, gives NaN no chance to win
// (key 0; all NaN gives NONE) and does not depend on how a driver treats NaN in f32 compares.
// One workgroup reads 125 KiB once per token; more of them would need a second dispatch to merge. The
// tree is not split by tier: it runs once per token.

override WG: u32 = 256;

struct Params {
    row: u32, // the first row that chooses
    advance: u32, // tokens of the step, for the last row
    capacity: u32, // the last index of `out`
    vocabulary: u32, // V
}

// The best of the first, second, third and fourth logits of the vectors looked at.
struct Best {
    keys: vec4<u32>,
    vectors: vec4<u32>,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<Bits>; // [R, V], bits of f32: lib/bits_*.wgsl
@group(0) @binding(2) var<storage, read_write> ids: array<u32>; // [T]
@group(0) @binding(3) var<storage, read_write> position: array<u32>; // [1], of a batch [R, 2]
@group(0) @binding(4) var<storage, read_write> out: array<u32>; // [S + 1], the history; for every row the choices, [R]

var<workgroup> bests: array<vec2<u32>, WG>; // (key, index); each invocation its own, then the tree

// Moves the best of each lane to vector `i`, which is beyond those before it, where that holds a larger key.
fn look(best: Best, bits: vec4<u32>, i: u32) -> Best {
    let own = keys(bits);
    let wins = own > best.keys;
    return Best(select(best.keys, own, wins), select(best.vectors, vec4<u32>(i), wins));
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let row = params.row + group.x;
    let last = (params.vocabulary - 1u) / 4u;
    var best = Best(vec4<u32>(0u), vec4<u32>(0u));
    for (var i = index; i <= last; i += 8u * WG) {
        // Past the end the last vector is looked at again, which changes nothing.
        let i1 = min(i + WG, last);
        let i2 = min(i + 2u * WG, last);
        let i3 = min(i + 3u * WG, last);
        let i4 = min(i + 4u * WG, last);
        let i5 = min(i + 5u * WG, last);
        let i6 = min(i + 6u * WG, last);
        let i7 = min(i + 7u * WG, last);
        let b0 = bits4(row, i, params.vocabulary);
        let b1 = bits4(row, i1, params.vocabulary);
        let b2 = bits4(row, i2, params.vocabulary);
        let b3 = bits4(row, i3, params.vocabulary);
        let b4 = bits4(row, i4, params.vocabulary);
        let b5 = bits4(row, i5, params.vocabulary);
        let b6 = bits4(row, i6, params.vocabulary);
        let b7 = bits4(row, i7, params.vocabulary);
        best = look(best, b0, i);
        best = look(best, b1, i1);
        best = look(best, b2, i2);
        best = look(best, b3, i3);
        best = look(best, b4, i4);
        best = look(best, b5, i5);
        best = look(best, b6, i6);
        best = look(best, b7, i7);
    }
    let at = best.vectors * 4u + vec4<u32>(0u, 1u, 2u, 3u);
    let front = better(vec2<u32>(best.keys.x, at.x), vec2<u32>(best.keys.y, at.y));
    let back = better(vec2<u32>(best.keys.z, at.z), vec2<u32>(best.keys.w, at.w));
    bests[index] = better(front, back);
    for (var stride = WG / 2u; stride > 0u; stride /= 2u) {
        workgroupBarrier();
        if index < stride {
            bests[index] = better(bests[index], bests[index + stride]);
        }
    }
    if index == 0u {
        publish(row, select(bests[0].y, NONE, bests[0].x == 0u));
    }
}
