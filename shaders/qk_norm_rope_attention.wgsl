// Everything between the qkv projection and the output projection, for a few rows, in one dispatch.
//   query = rope(norm(qkv[t,h,:]) * q_weight)                          h < H
//   k_cache[h,position_of(t),:] = rope(norm(qkv[t,H+h,:]) * k_weight);   v_cache[h,position_of(t),:] = qkv[t,H+Hkv+h,:]
//   out[t,h,:] = sum_s softmax_s(query . k[h/G,s,:] / sqrt(Dh)) * v[h/G,s,:],   s <= position_of(t), G = H / Hkv
// One workgroup per query head of each row. The workgroups of a dispatch are not ordered, so none can read from
// the cache what another appends. Each therefore computes the keys and values of all rows that its row sees
// (`seen`, at most 8) along with its query, and one workgroup per group appends the row's own. No cached row is
// both written and read here. New keys and values go through workgroup memory in the cache's format: if they
// were rounded and widened again in registers, a driver might skip both (Mesa does).
// LANES invocations prepare a head as in qk_norm.wgsl and rope.wgsl; then lib/attend.wgsl. In a chunk, cached
// keys come first, then this step's, each in its own loop: this order gives the same bits as if all had been
// cached, and loads of cached keys need no branch. SPLITS: see attention_decode.wgsl.
// Saves a launch and the round trip of q over qk_norm_rope.wgsl, three launches over primitive kernels.
// Uses all 8 storage buffers of WebGPU's default limits.

override WG: u32 = 256;
override LANES: u32 = 8; // Dh / 8
override COLS: u32 = 16; // Dh / 4
override STRIDE: u32 = 16; // Kv4s of a cached row
override SPLITS: u32 = 1; // workgroups that share the keys of a row and head

const FEW_TOKENS: u32 = 8; // as in engine/kernels/product/rows.rs

struct Params {
    tokens: u32, // T
    query_heads: u32, // H
    kv_heads: u32, // Hkv
    slots: u32,
    capacity: u32, // S
    scale: f32, // log2(e) / sqrt(Dh): the softmax is in powers of two
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> qkv: array<vec4<f32>>; // [T, H + 2 Hkv, Dh / 4]
@group(0) @binding(2) var<storage, read> q_weight: array<vec4<f32>>; // [Dh / 4]
@group(0) @binding(3) var<storage, read> k_weight: array<vec4<f32>>; // [Dh / 4]
@group(0) @binding(4) var<storage, read> table: array<vec4<f32>>; // [S, Dh / 4]: cosines, then sines
@group(0) @binding(5) var<storage, read> position: array<u32>; // [1], of a batch [T, 2]
@group(0) @binding(6) var<storage, read_write> k_cache: array<Kv4>; // [slots, Hkv, S, STRIDE]
@group(0) @binding(7) var<storage, read_write> v_cache: array<Kv4>; // [slots, Hkv, S, STRIDE]
@group(0) @binding(8) var<storage, read_write> out: array<vec4<f32>>; // [T, H, Dh / 4], or [T, H, SPLITS, Dh / 4 + 1]

var<workgroup> scratch: array<f32, WG>; // for head_sum and reduce_max
var<workgroup> query: array<vec4<f32>, COLS>; // prepared by the first LANES; read by all
var<workgroup> fresh_keys: array<Kv4, FEW_TOKENS * STRIDE>; // of the rows seen; read by all
var<workgroup> fresh_values: array<Kv4, FEW_TOKENS * STRIDE>; // the same

// What a workgroup attends to.
struct View {
    t: u32,
    head: u32,
    kv_head: u32,
    cache: u32, // where the keys of the head begin
    cached: u32, // keys before those of this step
}

// Where head number `head` of a row begins in qkv.
fn packed(row: u32, head: u32) -> u32 {
    return (row * (params.query_heads + 2u * params.kv_heads) + head) * COLS;
}

// Where the scales of vector c are in a row; any index if the format has none.
fn scales_of(c: u32) -> u32 {
    return min(COLS + c / 16u, STRIDE - 1u);
}

// Copies the values of the rows seen to `fresh_values`.
fn take_values(view: View, index: u32) {
    let end = seen(view.t) * COLS;
    for (var first = 0u; first < end; first += WG) {
        let i = min(first + index, end - 1u); // past the end: the last one again, noted at its own index
        let row = view.t + 1u + i / COLS - seen(view.t);
        let c = i % COLS;
        let head = packed(row, params.query_heads + params.kv_heads + view.kv_head);
        let value = qkv[head + c];
        kv_note(value, index);
        workgroupBarrier();
        if first + index < end {
            let fresh = i / COLS * STRIDE;
            fresh_values[fresh + c] = kv_word(value, index);
            if STRIDE > COLS && c % 16u == 0u {
                fresh_values[fresh + COLS + c / 16u] = kv_scales(index);
            }
        }
        workgroupBarrier(); // noted vectors may be overwritten
    }
}

// Appends the row's key and value to the cache.
fn append(view: View, index: u32) {
    let fresh = (seen(view.t) - 1u) * STRIDE;
    let to = view.cache + position_of(view.t) * STRIDE;
    for (var i = index; i < STRIDE; i += WG) {
        k_cache[to + i] = fresh_keys[fresh + i];
        v_cache[to + i] = fresh_values[fresh + i];
    }
}

// Norm and rotation of the query and of the keys seen: head 0 is the query, head i the (i-1)-th key.
fn prepare(view: View, index: u32) {
    let lane = index % LANES;
    let heads = seen(view.t) + 1u;
    for (var first = 0u; first < heads; first += WG / LANES) {
        let wanted = first + index / LANES;
        let i = min(wanted, heads - 1u); // past the end: repeats the last, stores nothing
        let is_query = i == 0u;
        let row = select(view.t + i - seen(view.t), view.t, is_query);
        let source = packed(row, select(params.query_heads + view.kv_head, view.head, is_query)) + lane;
        var low = qkv[source];
        var high = qkv[source + LANES];
        let squares = head_sum(dot(low, low) + dot(high, high), index);
        let scale = inverseSqrt(squares / f32(8u * LANES) + params.eps);
        low = low * select(k_weight[lane], q_weight[lane], is_query) * scale;
        high = high * select(k_weight[lane + LANES], q_weight[lane + LANES], is_query) * scale;
        let angle = position_of(row) * COLS + lane;
        let cosine = table[angle];
        let sine = table[angle + LANES];
        let turned_low = low * cosine - high * sine;
        let turned_high = high * cosine + low * sine;
        let at = index / LANES * COLS + lane; // index of the low vector in the workgroup
        kv_note(turned_low, at);
        kv_note(turned_high, at + LANES);
        workgroupBarrier();
        if wanted == i && is_query {
            query[lane] = turned_low;
            query[lane + LANES] = turned_high;
        } else if wanted == i {
            let fresh = (i - 1u) * STRIDE;
            fresh_keys[fresh + lane] = kv_word(turned_low, at);
            fresh_keys[fresh + lane + LANES] = kv_word(turned_high, at + LANES);
            if lane < STRIDE - COLS {
                fresh_keys[fresh + COLS + lane] = kv_scales(at - lane + 16u * lane);
            }
        }
        workgroupBarrier(); // scratch is free again; after the last round, all heads are ready
    }
}

fn score_parts(view: View, first: u32, count: u32, index: u32) {
    let cached = clamp(view.cached, first, first + count) - first;
    var i = index;
    for (; i < 4u * cached; i += WG) {
        let key = view.cache + (first + i / 4u) * STRIDE;
        var part = 0.0;
        for (var d = i % 4u; d < COLS; d += 4u) {
            part += dot(query[d], k_load(key, d));
        }
        parts[i] = part;
    }
    for (; i < 4u * count; i += WG) {
        let key = (first + i / 4u - view.cached) * STRIDE;
        var part = 0.0;
        for (var d = i % 4u; d < COLS; d += 4u) {
            part += dot(query[d], kv_load(fresh_keys[key + d], fresh_keys[key + scales_of(d)], d));
        }
        parts[i] = part;
    }
}

fn add_values(view: View, first: u32, count: u32, before: Weighted, index: u32) -> Weighted {
    var mix = before;
    let cached = clamp(view.cached, first, first + count) - first;
    let c = index % COLS;
    let value = view.cache + first * STRIDE;
    var i = index / COLS;
    for (; i < cached; i += WG / COLS) {
        mix.total += weights[i];
        mix.sum += weights[i] * v_load(value + i * STRIDE, c);
    }
    for (; i < count; i += WG / COLS) {
        mix.total += weights[i];
        let fresh = (first + i - view.cached) * STRIDE;
        mix.sum += weights[i] * kv_load(fresh_values[fresh + c], fresh_values[fresh + scales_of(c)], c);
    }
    return mix;
}

// Called by `main` of lib/reduce_*.wgsl.
fn run(group: vec3<u32>, at: Invocation) {
    let head = group.x;
    let t = group.y;
    let members = params.query_heads / params.kv_heads;
    let kv_head = head / members;
    let cache = (slot(t) * params.kv_heads + kv_head) * params.capacity * STRIDE;
    let keys = position_of(t) + 1u;
    let writes = head % members == 0u && group.z == 0u;
    let view = View(t, head, kv_head, cache, keys - seen(t));
    take_values(view, at.index);
    prepare(view, at.index);
    if writes {
        append(view, at.index);
    }
    let share = share_of(keys, group.z);
    let mix = attend(view, share.x, share.y, at);
    store(t * params.query_heads + head, group.z, mix, at.index);
}
