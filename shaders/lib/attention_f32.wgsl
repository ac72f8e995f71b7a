// The tile loop of attention.wgsl in f32; attention_coop.wgsl has the one on matrix units.
// A workgroup takes ROWS rows and tiles of KEYS keys. Invocation (c, b) scores keys c and c + COLS for the 4 rows of
// block b, then owns vector c of their output. K is staged in slices of SLICE vectors, decoded once, in rows padded
// against bank conflicts; a load of q serves 2 dot products, one of k serves 4. V is not staged: its loads are
// coalesced anyway. ROWS, KEYS and COLS are balanced so that an invocation holds 8 scores at any Dh, in at most 16 KiB.
// With fewer ROWS a load of keys serves fewer, but more workgroups fit in memory; a longer SLICE saves 2 barriers.
// The running maximum keeps every exponent <= 0. Maxima are read from workgroup memory, one barrier for all 4 rows;
// subgroup reductions would serve one row at a time.
// Measured only on lavapipe (software, 2 cores): 8.8 ms for T 128, H 20, Hkv 5, Dh 64, an f16 cache.

override WG: u32 = 64; // invocations: 32 or 64
override SLICE: u32 = 8; // vectors of a key staged at a time: 8, or 16 at Dh 64
override ROWS: u32 = 16; // 4 * WG / COLS
override KEYS: u32 = 32; // 2 * COLS

var<workgroup> queries: array<vec4<f32>, COLS * ROWS>; // [COLS, ROWS], scaled; written once
var<workgroup> keys: array<vec4<f32>, KEYS * (SLICE + 1u)>; // [KEYS, SLICE + 1]; all write, all read
var<workgroup> tops: array<vec4<f32>, WG>; // [ROWS / 4, COLS]; each invocation writes its own, its block reads
var<workgroup> weights: array<vec4<f32>, ROWS / 4u * KEYS>; // [ROWS / 4, KEYS] of 4 rows; written and read as tops

// Scores of 4 rows where they see the key, else LOWEST.
fn masked(scores: vec4<f32>, key: u32, last_keys: vec4<u32>) -> vec4<f32> {
    return select(vec4<f32>(LOWEST), scores, vec4<u32>(key) <= last_keys);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let kv_head = group.y;
    let members = params.query_heads / params.kv_heads;
    let rows = params.tokens * members;
    let first_row = (params.last_tile - group.x) * ROWS;
    let first_position = min(position[0], params.capacity - params.tokens);
    let cache = kv_head * params.capacity * STRIDE;
    let c = index % COLS;
    let block = index / COLS;

    for (var i = index; i < COLS * ROWS; i += WG) {
        let row = min(first_row + i / COLS, rows - 1u); // past the end: repeats the last
        let start = head_start(kv_head, row, params.stride);
        queries[i % COLS * ROWS + i / COLS] = q[start + i % COLS] * params.scale;
    }
    let my_rows = min(vec4<u32>(first_row + 4u * block) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(rows - 1u));
    let last_keys = first_position + my_rows / members;
    let key_count = first_position + min(first_row + ROWS - 1u, rows - 1u) / members + 1u;

    var top = vec4<f32>(LOWEST);
    var total = vec4<f32>(0.0);
    var out0 = vec4<f32>(0.0);
    var out1 = vec4<f32>(0.0);
    var out2 = vec4<f32>(0.0);
    var out3 = vec4<f32>(0.0);
    for (var first_key = 0u; first_key < key_count; first_key += KEYS) {
        var low = vec4<f32>(0.0);
        var high = vec4<f32>(0.0);
        for (var slice = 0u; slice < params.slices; slice++) {
            workgroupBarrier(); // all have read the slice before
            for (var i = index; i < KEYS * SLICE; i += WG) {
                let key = min(first_key + i / SLICE, key_count - 1u);
                keys[i / SLICE * (SLICE + 1u) + i % SLICE] =
                    k_load(cache + key * STRIDE, slice * SLICE + i % SLICE);
            }
            workgroupBarrier();
            for (var d = 0u; d < SLICE; d++) {
                let k_low = keys[c * (SLICE + 1u) + d];
                let k_high = keys[(c + COLS) * (SLICE + 1u) + d];
                let at = (slice * SLICE + d) * ROWS + 4u * block;
                let q0 = queries[at];
                let q1 = queries[at + 1u];
                let q2 = queries[at + 2u];
                let q3 = queries[at + 3u];
                low += vec4<f32>(dot(q0, k_low), dot(q1, k_low), dot(q2, k_low), dot(q3, k_low));
                high += vec4<f32>(dot(q0, k_high), dot(q1, k_high), dot(q2, k_high), dot(q3, k_high));
            }
        }
        low = masked(low, first_key + c, last_keys);
        high = masked(high, first_key + c + COLS, last_keys);
        tops[index] = max(low, high);
        workgroupBarrier();
        var new_top = top;
        for (var i = 0u; i < COLS; i++) {
            new_top = max(new_top, tops[block * COLS + i]);
        }
        // Every row sees key 0, in the first tile. So new_top is a real score, and masked weights are 0.
        weights[block * KEYS + c] = exp2(low - new_top);
        weights[block * KEYS + c + COLS] = exp2(high - new_top);
        let decay = exp2(top - new_top);
        top = new_top;
        workgroupBarrier();
        total *= decay;
        out0 *= decay.x;
        out1 *= decay.y;
        out2 *= decay.z;
        out3 *= decay.w;
        let count = min(KEYS, key_count - first_key);
        for (var i = 0u; i < count; i++) {
            let weight = weights[block * KEYS + i];
            let value = v_load(cache + (first_key + i) * STRIDE, c);
            total += weight;
            out0 += weight.x * value;
            out1 += weight.y * value;
            out2 += weight.z * value;
            out3 += weight.w * value;
        }
    }
    store(kv_head, first_row + 4u * block, c, out0 / total.x);
    store(kv_head, first_row + 4u * block + 1u, c, out1 / total.y);
    store(kv_head, first_row + 4u * block + 2u, c, out2 / total.z);
    store(kv_head, first_row + 4u * block + 3u, c, out3 / total.w);
}
