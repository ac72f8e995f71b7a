// Greedy sampling: the index of a row's largest logit, the lowest index on ties. lib/token.wgsl defines which
// rows choose a token and where it goes.
// One workgroup per choosing row. Invocation i reads vectors i, i + WG, ... of four logits, eight loads in
// flight (four rounds for 32000 logits); then a tree reduces over the workgroup.
// Each of the four lanes keeps its own best, so that no compare waits for the lane before.
// Numerics: logits are bound as bits and compared as integers. That is exact, does not depend on how a driver
// compares NaN in f32, and never lets NaN win (its key is 0; a row of NaN gives NONE).
// One workgroup reads 125 KiB per token; several would need a second dispatch to merge. The tree has no
// subgroup variant, because it runs once per token.

override WG: u32 = 256;

struct Params {
    row: u32, // the first row that chooses
    advance: u32, // tokens of the step, for the last row
    capacity: u32, // the last index of `out`
    vocabulary: u32, // V
}

// The best logit of each lane so far: its key, and the vector it was in.
struct Best {
    keys: vec4<u32>,
    vectors: vec4<u32>,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<Bits>; // [R, V], bits of f32: lib/bits_*.wgsl
@group(0) @binding(2) var<storage, read_write> ids: array<u32>; // [T]
@group(0) @binding(3) var<storage, read_write> position: array<u32>; // [1], of a batch [R, 2]
@group(0) @binding(4) var<storage, read_write> out: array<u32>; // [S + 1], the history; of drafts and batches [R]

var<workgroup> bests: array<vec2<u32>, WG>; // (key, index); each invocation writes its own, then the tree

// Updates the best of each lane where vector `i` has a larger key. Vectors come in order: ties keep the first.
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
        // Past the end the last vector is compared again, which changes nothing.
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
