// Matrices of 16 x 16 for lib/block_16.wgsl: wgpu's cooperative matrices, f16 factors and f32 sums, as Vulkan has them.
// The T of coopLoadT and coopStoreT is naga's word for row-major (RowMajorKHR in SPIR-V): the element of row r and
// column c is at `r * stride + c`. Without it matrices are column-major, at `c * stride + r`. coop_8.wgsl defines the
// same names. Tests replace this file, which alone names the matrices of products, by tests/emulate/coop.wgsl.
// Vectors are staged whole, in a quarter of the stores, so strides and offsets count vectors.

enable wgpu_cooperative_matrix;

// All invocations write and read both.
var<workgroup> x_tile: array<vec4<f16>, TOKENS * PITCH / 4u>; // [TOKENS, PITCH]
var<workgroup> w_tile: array<vec4<f16>, ROWS * PITCH / 4u>; // [ROWS, PITCH]

alias MatrixX = coop_mat16x16<f16, A>; // tokens x columns
alias MatrixW = coop_mat16x16<f16, B>; // columns x rows of the weight
alias MatrixSum = coop_mat16x16<f32, C>; // tokens x rows of the weight

fn put_x(at: u32, v: vec4<f16>) {
    x_tile[at / 4u] = v;
}

fn put_w(at: u32, v: vec4<f16>) {
    w_tile[at / 4u] = v;
}

// x_tile is [tokens, PITCH]: row-major.
fn load_x(at: u32) -> MatrixX {
    return coopLoadT<coop_mat16x16<f16, A>>(&x_tile[at / 4u], PITCH / 4u);
}

// w_tile is [rows, PITCH] and the matrix its transpose: column-major.
fn load_w(at: u32) -> MatrixW {
    return coopLoad<coop_mat16x16<f16, B>>(&w_tile[at / 4u], PITCH / 4u);
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
