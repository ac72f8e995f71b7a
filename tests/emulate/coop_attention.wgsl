// lib/coop_attention.wgsl without matrix units, for adapters that have none, as emulate/coop.wgsl does it for products:
// a factor is where its matrix begins, and the sums lie spread over the LANES consecutive invocations of a subgroup.
// The query is copied: its matrices outlive their workgroup memory. tests/kernels/coop.rs gives LANES its value.

const LANES = 64u; // 64 or more: a quarter of the elements of a matrix
const SHARE = 256u / LANES; // elements of a matrix that an invocation has: LANES apart

var<private> lane_of_team: u32;
var<private> copied: array<vec4<f16>, 512>; // [16, COLS] of the query
var<workgroup> shared_values: array<f32, INVOCATIONS>; // of row_max and row_add

struct MatrixRows {
    at: u32,
    is_query: bool,
}

struct MatrixKeys {
    at: u32,
    is_transposed: bool,
}

struct MatrixSum {
    share: vec4<f32>, // as many as there are
}

fn load_query(at: u32) -> MatrixRows {
    for (var n = 0u; n < 64u; n++) {
        copied[n / 4u * COLS + at + n % 4u] = weights[n / 4u * PITCH + at + n % 4u];
    }
    return MatrixRows(at, true);
}

fn load_weights(at: u32) -> MatrixRows {
    return MatrixRows(at, false);
}

fn load_keys(at: u32) -> MatrixKeys {
    return MatrixKeys(at, true);
}

fn load_values(at: u32) -> MatrixKeys {
    return MatrixKeys(at, false);
}

fn multiply_add(rows: MatrixRows, keys: MatrixKeys, sum: MatrixSum) -> MatrixSum {
    var now = sum;
    // 16, which a compiler cannot know: unrolled, the loop takes long to compile.
    let side = min(params.tokens * 16u, 16u);
    for (var k = 0u; k < side; k++) {
        for (var n = 0u; n < SHARE; n++) {
            let row = (lane_of_team + n * LANES) / 16u;
            let col = (lane_of_team + n * LANES) % 16u;
            let stored = weights[rows.at + row * WEIGHTS_PITCH + k / 4u];
            let left = select(stored, copied[row * COLS + (rows.at + k / 4u) % COLS], rows.is_query);
            let by_key = cached[keys.at + col * PITCH + k / 4u];
            let by_value = cached[keys.at + k * PITCH + col / 4u];
            let right = select(by_value[col % 4u], by_key[k % 4u], keys.is_transposed);
            now.share[n] += f32(left[k % 4u]) * f32(right);
        }
    }
    return now;
}

fn store_sums(sum: MatrixSum, at: u32, pitch: u32) {
    for (var n = 0u; n < SHARE; n++) {
        let element = lane_of_team + n * LANES;
        sums[at + element / 16u * pitch + element % 16u / 4u][element % 4u] = sum.share[n];
    }
}

fn store_scores(sum: MatrixSum, at: u32) {
    store_sums(sum, at, SCORES_PITCH);
}

fn store_mix(sum: MatrixSum, at: u32) {
    store_sums(sum, at, MIX_PITCH);
}

fn row_max(value: f32, i: u32) -> f32 {
    shared_values[i] = value;
    workgroupBarrier();
    var top = value;
    for (var n = 0u; n < SHARERS; n++) {
        top = max(top, shared_values[i / SHARERS * SHARERS + n]);
    }
    workgroupBarrier();
    return top;
}

fn row_add(value: f32, i: u32) -> f32 {
    shared_values[i] = value;
    workgroupBarrier();
    var sum = 0.0;
    for (var n = 0u; n < SHARERS; n++) {
        sum += shared_values[i / SHARERS * SHARERS + n];
    }
    return sum;
}

fn team_of(i: u32, subgroup: u32, subgroups: u32) -> Team {
    lane_of_team = i % LANES;
    return Team(i / LANES, INVOCATIONS / LANES);
}
