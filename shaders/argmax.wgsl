// The id of the largest logit of the last row, and the step's advance of the position: what the next
// token needs, so that decoding goes on without the host.
//   ids[0] = argmax(logits[R-1,:]), the lowest id on ties;   position[0] += advance
// One workgroup: invocation i scans the ids i, i + WG, ... in order, then a tree keeps the better of two.
// NaN never wins a comparison; a row without a value above -3.4e38 gives 0. Exact: nothing is rounded.

override WG: u32 = 256;

struct Params {
    first: u32, // (R - 1) * V
    vocab: u32, // V
    advance: u32, // T
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>; // [R, V]
@group(0) @binding(2) var<storage, read_write> ids: array<u32>; // [T], the first is written
@group(0) @binding(3) var<storage, read_write> position: array<u32>; // [1]

var<workgroup> best: array<f32, WG>; // each invocation's largest logit
var<workgroup> best_id: array<u32, WG>; // and its id

@compute @workgroup_size(WG)
fn main(@builtin(local_invocation_index) i: u32) {
    var top = -3.4028234e38;
    var top_id = 0u;
    for (var id = i; id < params.vocab; id += WG) {
        let logit = logits[params.first + id];
        if logit > top {
            top = logit;
            top_id = id;
        }
    }
    best[i] = top;
    best_id[i] = top_id;
    for (var stride = WG / 2u; stride > 0u; stride /= 2u) {
        workgroupBarrier();
        if i < stride {
            let other = best[i + stride];
            let other_id = best_id[i + stride];
            if other > best[i] || (other == best[i] && other_id < best_id[i]) {
                best[i] = other;
                best_id[i] = other_id;
            }
        }
    }
    if i == 0u {
        ids[0] = best_id[0];
        position[0] += params.advance;
    }
}
