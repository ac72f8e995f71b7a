// Causal grouped-query attention over the KV cache, for decode and prefill, with online softmax.
//   out[t,h,:] = sum_s p_s v[g,s,:],  p = softmax_s(q[t,h,:] . k[g,s,:] / sqrt(Dh)),  s <= position + t,
//   g = h / (H / Hkv)
// One workgroup per query head and token. Keys come in tiles of WG: invocation i scores key i of the
// tile; then the invocations split into WG / COLS groups, each summing its share of the tile's values
// with one vector of the head per invocation, so that values are read coalesced. Running maximum and
// sum keep every exponent at or below 0. Scores, sums and output in f32. Keys past position + t are
// not read. A tile costs one reduction and one barrier for 2 * WG * Dh multiply-adds.

override WG: u32 = 64;
override COLS: u32 = 16; // Dh / 4, a divisor of WG

struct Params {
    q_row: u32, // vectors of a row of q
    group: u32, // H / Hkv
    tokens: u32, // T
    context: u32, // S
    scale: f32, // 1 / sqrt(Dh)
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>; // [T, q_row], the H heads first
@group(0) @binding(2) var<storage, read> k_cache: array<Kv4>; // [Hkv, S, Dh / 4]
@group(0) @binding(3) var<storage, read> v_cache: array<Kv4>; // [Hkv, S, Dh / 4]
@group(0) @binding(4) var<storage, read> position: array<u32>; // [1]
@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>; // [T, H, Dh / 4]

const LOWEST = -3.0e38;

var<workgroup> scratch: array<f32, WG>; // of the reductions
var<workgroup> query: array<vec4<f32>, COLS>; // the scaled head, read by all
var<workgroup> share: array<f32, WG>; // p of the tile's keys, read by all
var<workgroup> parts: array<vec4<f32>, WG>; // each invocation's output, summed over groups at the end

@compute @workgroup_size(WG)
fn main(at: Invocation, @builtin(num_workgroups) groups: vec3<u32>) {
    let head = at.group.x;
    let token = at.group.y;
    let i = at.index;
    let visible = min(position[0], params.context - params.tokens) + token + 1u;
    let keys = head / params.group * params.context;
    if i < COLS {
        query[i] = q[token * params.q_row + head * COLS + i] * params.scale;
    }
    workgroupBarrier();

    let column = i % COLS;
    var top = LOWEST;
    var sum = 0.0;
    var mix = vec4<f32>(0.0);
    for (var tile = 0u; tile < visible; tile += WG) {
        let in_reach = tile + i < visible;
        var score = LOWEST;
        if in_reach {
            let key = (keys + tile + i) * COLS;
            var products = vec4<f32>(0.0);
            for (var c = 0u; c < COLS; c++) {
                products += query[c] * kv_load(k_cache[key + c]);
            }
            score = products.x + products.y + products.z + products.w;
        }
        let next_top = max(top, reduce_max(score, at));
        let decay = exp(top - next_top);
        let p = select(0.0, exp(score - next_top), in_reach);
        share[i] = p;
        workgroupBarrier();
        sum = sum * decay + p;
        mix *= decay;
        let count = min(WG, visible - tile);
        for (var s = i / COLS; s < count; s += WG / COLS) {
            mix += share[s] * kv_load(v_cache[(keys + tile + s) * COLS + column]);
        }
        top = next_top;
    }

    let total = reduce_add(sum, at);
    parts[i] = mix;
    workgroupBarrier();
    if i < COLS {
        for (var s = i + COLS; s < WG; s += COLS) {
            mix += parts[s];
        }
        out[(token * groups.x + head) * COLS + i] = mix / total;
    }
}
