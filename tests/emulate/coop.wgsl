// lib/coop_16.wgsl and lib/coop_8.wgsl without matrix units, for adapters that have none: a factor is where its matrix
// begins, and the sums lie spread over the invocations of a subgroup, as matrix units spread them. The same elements
// of x_tile, w_tile and sums are read and written. Subgroups are LANES consecutive invocations, whatever the
// adapter's are. tests/kernels/coop.rs gives both constants their values.

const SIDE = 16u; // of a matrix: 8 or 16
const LANES = 64u; // at least a quarter of the elements of a matrix
const SHARE = SIDE * SIDE / LANES; // elements of a matrix that an invocation has: LANES apart

var<private> lane: u32;

var<workgroup> x_tile: array<f16, TOKENS * PITCH>; // [TOKENS, PITCH]
var<workgroup> w_tile: array<f16, ROWS * PITCH>; // [ROWS, PITCH]

struct MatrixX {
    at: u32,
}

struct MatrixW {
    at: u32,
}

struct MatrixSum {
    share: vec4<f32>, // as many as there are
}

fn put_x(at: u32, v: vec4<f16>) {
    for (var n = 0u; n < 4u; n++) {
        x_tile[at + n] = v[n];
    }
}

fn put_w(at: u32, v: vec4<f16>) {
    for (var n = 0u; n < 4u; n++) {
        w_tile[at + n] = v[n];
    }
}

fn load_x(at: u32) -> MatrixX {
    return MatrixX(at);
}

fn load_w(at: u32) -> MatrixW {
    return MatrixW(at);
}

fn multiply_add(x: MatrixX, w: MatrixW, sum: MatrixSum) -> MatrixSum {
    var now = sum;
    // SIDE, which a compiler cannot know: unrolled, the loop takes long to compile.
    let side = min(params.cols, SIDE);
    for (var k = 0u; k < side; k++) {
        for (var n = 0u; n < SHARE; n++) {
            let row = (lane + n * LANES) / SIDE;
            let col = (lane + n * LANES) % SIDE;
            now.share[n] += f32(x_tile[x.at + row * PITCH + k]) * f32(w_tile[w.at + col * PITCH + k]);
        }
    }
    return now;
}

fn store_sums(sum: MatrixSum, at: u32) {
    for (var n = 0u; n < SHARE; n++) {
        let element = lane + n * LANES;
        sums[at + element / SIDE * SUMS_PITCH + element % SIDE] = sum.share[n];
    }
}

fn team_of(i: u32, subgroup: u32, subgroups: u32) -> Team {
    lane = i % LANES;
    return Team(i / LANES, WG / LANES);
}
