// Matrices of 8 x 8 for lib/block_8.wgsl: wgpu's cooperative matrices, f16 factors and f32 sums, as Metal has them.
// The T of coopLoadT and coopStoreT is naga's word for row-major (in MSL, a simdgroup_load that does not transpose):
// the element of row r and column c is at `r * stride + c`. Without it matrices are column-major, at `c * stride + r`.
// coop_16.wgsl defines the same names.

enable wgpu_cooperative_matrix;

// All invocations write and read both. MSL loads matrices from scalars.
var<workgroup> x_tile: array<f16, TOKENS * PITCH>; // [TOKENS, PITCH]
var<workgroup> w_tile: array<f16, ROWS * PITCH>; // [ROWS, PITCH]

alias MatrixX = coop_mat8x8<f16, A>; // tokens x columns
alias MatrixW = coop_mat8x8<f16, B>; // columns x rows of the weight
alias MatrixSum = coop_mat8x8<f32, C>; // tokens x rows of the weight

fn put_x(at: u32, v: vec4<f16>) {
    x_tile[at] = v.x;
    x_tile[at + 1u] = v.y;
    x_tile[at + 2u] = v.z;
    x_tile[at + 3u] = v.w;
}

fn put_w(at: u32, v: vec4<f16>) {
    w_tile[at] = v.x;
    w_tile[at + 1u] = v.y;
    w_tile[at + 2u] = v.z;
    w_tile[at + 3u] = v.w;
}

// x_tile is [tokens, PITCH]: row-major.
fn load_x(at: u32) -> MatrixX {
    return coopLoadT<coop_mat8x8<f16, A>>(&x_tile[at], PITCH);
}

// w_tile is [rows, PITCH] and the matrix its transpose: column-major.
fn load_w(at: u32) -> MatrixW {
    return coopLoad<coop_mat8x8<f16, B>>(&w_tile[at], PITCH);
}

fn multiply_add(x: MatrixX, w: MatrixW, sum: MatrixSum) -> MatrixSum {
    return coopMultiplyAdd(x, w, sum);
}

// sums is [tokens, SUMS_PITCH]: row-major.
fn store_sums(sum: MatrixSum, at: u32) {
    coopStoreT(sum, &sums[at], SUMS_PITCH);
}

// The subgroup of an invocation.
fn team_of(i: u32, subgroup: u32, subgroups: u32) -> Team {
    return Team(subgroup, subgroups);
}
