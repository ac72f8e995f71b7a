// Multiply-adds on matrix units: measures the f16 operations per second of an adapter that has them.
//   acc = a b + acc, `rounds` times from 0;   out[g] = acc   for every workgroup g
// A workgroup is one subgroup with a block of 32 x 32 sums, as 2 x 2 cooperative matrices of 16 x 16. Two tiles
// of a and two of b in registers feed four independent products, as in a matmul.
// f16 operands, f32 sums. Needs tier coop: 16x16x16 cooperative matrices and subgroups of at least 32.

enable f16;
enable wgpu_cooperative_matrix;

struct Params {
    rounds: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<f16>; // [16, 32], a matrix of 32 x 16 by columns
@group(0) @binding(2) var<storage, read> b: array<f16>; // [16, 32]
@group(0) @binding(3) var<storage, read_write> out: array<f32>; // [G, 32, 32]

@compute @workgroup_size(32)
fn main(@builtin(workgroup_id) group: vec3<u32>) {
    // coopLoadT and coopStoreT are row-major in naga; without the T matrices are column-major.
    let top = coopLoad<coop_mat16x16<f16, A>>(&a[0], 32u);
    let bottom = coopLoad<coop_mat16x16<f16, A>>(&a[16], 32u);
    let left = coopLoadT<coop_mat16x16<f16, B>>(&b[0], 32u);
    let right = coopLoadT<coop_mat16x16<f16, B>>(&b[16], 32u);
    var top_left = coop_mat16x16<f32, C>();
    var top_right = coop_mat16x16<f32, C>();
    var bottom_left = coop_mat16x16<f32, C>();
    var bottom_right = coop_mat16x16<f32, C>();
    for (var round = 0u; round < params.rounds; round++) {
        top_left = coopMultiplyAdd(top, left, top_left);
        top_right = coopMultiplyAdd(top, right, top_right);
        bottom_left = coopMultiplyAdd(bottom, left, bottom_left);
        bottom_right = coopMultiplyAdd(bottom, right, bottom_right);
    }
    let to = group.x * 1024u;
    coopStoreT(top_left, &out[to], 32u);
    coopStoreT(top_right, &out[to + 16u], 32u);
    coopStoreT(bottom_left, &out[to + 512u], 32u);
    coopStoreT(bottom_right, &out[to + 528u], 32u);
}
