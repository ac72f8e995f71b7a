// Grouped-query attention of a few rows over the KV cache, with online softmax (lib/attend.wgsl).
//   out[t,h,:] = sum_s softmax_s(q[t,h,:] . k[h/G,s,:] / sqrt(Dh)) * v[h/G,s,:],   s <= position_of(t), G = H / Hkv
// A row is a token of one sequence or of a batch (`position_of`, `slot`). Each query head of each row has its own
// workgroup, so a row's bits do not depend on other rows. Cached keys past the row's position are not read.
// One workgroup per query head rather than per group: H workgroups fill a device better than Hkv, and after a
// group's first read of K and V the others hit the cache. H is still few, so SPLITS workgroups may share the keys
// of a head. That pays where a head keeps an SM busy for longer than the launch of attention_merge.wgsl takes. By
// arithmetic, not yet measured: in a launch of 3 us one SM streams 150 kB (some 50 kB/us, twice its share of an
// H100). A split into n saves (n - 1) / n of a head's K and V, 256 B a key at Dh 64 in f16. So n = 4 pays from
// about 800 keys on (400 at Dh 128), n = 8 from 700, and neither where T * H fills the device.
// Measured only on lavapipe (software, 2 cores), H 20, Hkv 5, Dh 64, an f16 cache: 3.8 ms for 2048 keys.

override WG: u32 = 256;
override COLS: u32 = 16; // Dh / 4
override STRIDE: u32 = 16; // Kv4s of a cached row
override SPLITS: u32 = 1; // workgroups that share the keys of a row and head

struct Params {
    tokens: u32, // T
    query_heads: u32, // H
    kv_heads: u32, // Hkv
    slots: u32,
    capacity: u32, // S
    stride: u32, // vectors from one row of q to the next
    scale: f32, // log2(e) / sqrt(Dh): the softmax is in powers of two
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>; // [T, stride], H heads first
@group(0) @binding(2) var<storage, read> k_cache: array<Kv4>; // [slots, Hkv, S, STRIDE]
@group(0) @binding(3) var<storage, read> v_cache: array<Kv4>; // [slots, Hkv, S, STRIDE]
@group(0) @binding(4) var<storage, read> position: array<u32>; // [1], of a batch [T, 2]
@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>; // [T, H, Dh / 4], or [T, H, SPLITS, Dh / 4 + 1]

var<workgroup> scratch: array<f32, WG>; // for reduce_max

// Where the query and the keys of a head begin.
struct View {
    query: u32,
    cache: u32,
}

fn score_parts(view: View, first: u32, count: u32, index: u32) {
    for (var i = index; i < 4u * count; i += WG) {
        let key = view.cache + (first + i / 4u) * STRIDE;
        var part = 0.0;
        for (var d = i % 4u; d < COLS; d += 4u) {
            part += dot(q[view.query + d], k_load(key, d));
        }
        parts[i] = part;
    }
}

fn add_values(view: View, first: u32, count: u32, before: Weighted, index: u32) -> Weighted {
    var mix = before;
    let value = view.cache + first * STRIDE;
    for (var i = index / COLS; i < count; i += WG / COLS) {
        mix.total += weights[i];
        mix.sum += weights[i] * v_load(value + i * STRIDE, index % COLS);
    }
    return mix;
}

// Called by `main` of lib/reduce_*.wgsl.
fn run(group: vec3<u32>, at: Invocation) {
    let head = group.x;
    let t = group.y;
    let kv_head = head / (params.query_heads / params.kv_heads);
    let cache = (slot(t) * params.kv_heads + kv_head) * params.capacity * STRIDE;
    let share = share_of(position_of(t) + 1u, group.z);
    let mix = attend(View(t * params.stride + head * COLS, cache), share.x, share.y, at);
    store(t * params.query_heads + head, group.z, mix, at.index);
}
