// Grouped-query attention of one token over the KV cache, with online softmax.
//   out[h,:] = sum_s softmax_s(q[h,:] . k[h/G,s,:] / sqrt(Dh)) * v[h/G,s,:],   s <= position, G = H / Hkv
// One workgroup per query head walks over chunks of WG keys. For K, 4 neighbouring invocations share a
// key and interleave its vectors, so that a load touches whole 32-byte sectors and no head is staged;
// then each invocation owns the score of one key. For V, Dh / 4 neighbouring invocations load a row
// together; each keeps one vector of the output for its share of the keys, and shares meet once, at
// the end. A chunk costs 2 barriers and one maximum (reduce_max of the tier).
// f32 throughout; the running maximum keeps every exponent <= 0; cached keys past position are not read.
// One workgroup per query head rather than per group: H of them fill a device better than Hkv, and the
// group's second to last readings of K and V hit the cache. Splitting a head's keys over workgroups
// would take another dispatch to merge, which OpenELM's 2048 keys (8 chunks) do not repay.
// Measured with lavapipe only (software, 2 cores), H 20, Hkv 5, Dh 64, an f16 cache: 1.3 ms for 512 keys,
// 4.7 ms for 2048; attention.wgsl, 12 of its 16 rows empty, takes 1.5 to 3 times as long.

const LOWEST: f32 = -3e38; // below every score; a difference of two never overflows to NaN

override WG: u32 = 256;
override COLS: u32 = 16; // Dh / 4

struct Params {
    members: u32, // G
    capacity: u32, // S
    scale: f32, // log2(e) / sqrt(Dh): the softmax is in powers of two
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>; // [1, stride], H heads first
@group(0) @binding(2) var<storage, read> k_cache: array<Kv4>; // [Hkv, S, Dh / 4]
@group(0) @binding(3) var<storage, read> v_cache: array<Kv4>; // [Hkv, S, Dh / 4]
@group(0) @binding(4) var<storage, read> position: array<u32>; // [1]
@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>; // [1, H, Dh / 4]

var<workgroup> scratch: array<f32, WG>; // of reduce_max
var<workgroup> parts: array<f32, 4u * WG>; // [WG keys, 4] partial scores; read by the key's owner
var<workgroup> weights: array<f32, WG>; // of the chunk's keys, by their owners, for all; then totals
var<workgroup> shares: array<vec4<f32>, WG>; // [WG / COLS, COLS] outputs; read by the first COLS

// Called by `main` of lib/reduce_*.wgsl.
fn run(at: Invocation) {
    let head = at.group.x;
    let cache = head / params.members * params.capacity * COLS;
    let key_count = min(position[0], params.capacity - 1u) + 1u;
    let c = at.index % COLS;
    let share = at.index / COLS;

    var top = LOWEST;
    var total = 0.0;
    var sum = vec4<f32>(0.0);
    for (var first = 0u; first < key_count; first += WG) {
        let count = min(WG, key_count - first);
        for (var i = at.index; i < 4u * count; i += WG) {
            let key = cache + (first + i / 4u) * COLS;
            var part = 0.0;
            for (var d = i % 4u; d < COLS; d += 4u) {
                part += dot(q[head * COLS + d], kv_load(k_cache[key + d]));
            }
            parts[i] = part;
        }
        workgroupBarrier();
        var score = LOWEST;
        if at.index < count {
            let part = 4u * at.index;
            score = (parts[part] + parts[part + 1u] + parts[part + 2u] + parts[part + 3u]) * params.scale;
        }
        let new_top = max(top, reduce_max(score, at));
        let decay = exp2(top - new_top);
        top = new_top;
        weights[at.index] = exp2(score - top);
        workgroupBarrier();
        total *= decay;
        sum *= decay;
        for (var i = share; i < count; i += WG / COLS) {
            total += weights[i];
            sum += weights[i] * kv_load(v_cache[cache + (first + i) * COLS + c]);
        }
    }

    workgroupBarrier(); // weights are used up
    shares[at.index] = sum;
    weights[at.index] = total;
    workgroupBarrier();
    if at.index < COLS {
        for (var i = at.index + COLS; i < WG; i += COLS) {
            sum += shares[i];
            total += weights[i];
        }
        out[head * COLS + at.index] = sum / total;
    }
}
