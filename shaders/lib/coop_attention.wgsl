// Matrices of 16 x 16 for lib/attention_coop.wgsl, and the operations of a subgroup across its invocations.
// coop_16.wgsl explains the T of a load or a store. Tiles are arrays of vectors, so strides count vectors.
// Tests replace this file, which alone names the matrices of attention, by tests/emulate/coop_attention.wgsl.

enable wgpu_cooperative_matrix;

alias MatrixRows = coop_mat16x16<f16, A>; // query rows x values of a head, or x keys
alias MatrixKeys = coop_mat16x16<f16, B>; // values of a head x keys, or keys x values of a head
alias MatrixSum = coop_mat16x16<f32, C>; // query rows x keys, or x values of a head

// weights as [16, PITCH]: row-major.
fn load_query(at: u32) -> MatrixRows {
    return coopLoadT<coop_mat16x16<f16, A>>(&weights[at], PITCH);
}

// weights as [16, WEIGHTS_PITCH]: row-major.
fn load_weights(at: u32) -> MatrixRows {
    return coopLoadT<coop_mat16x16<f16, A>>(&weights[at], WEIGHTS_PITCH);
}

// cached is [keys, PITCH] and the matrix its transpose: column-major.
fn load_keys(at: u32) -> MatrixKeys {
    return coopLoad<coop_mat16x16<f16, B>>(&cached[at], PITCH);
}

// cached is [keys, PITCH]: row-major.
fn load_values(at: u32) -> MatrixKeys {
    return coopLoadT<coop_mat16x16<f16, B>>(&cached[at], PITCH);
}

fn multiply_add(rows: MatrixRows, keys: MatrixKeys, sum: MatrixSum) -> MatrixSum {
    return coopMultiplyAdd(rows, keys, sum);
}

// sums as [16, SCORES_PITCH]: row-major.
fn store_scores(sum: MatrixSum, at: u32) {
    coopStoreT(sum, &sums[at], SCORES_PITCH);
}

// sums as [16, MIX_PITCH]: row-major.
fn store_mix(sum: MatrixSum, at: u32) {
    coopStoreT(sum, &sums[at], MIX_PITCH);
}

// The largest value over the invocations of a row: SHARERS neighbours, 8 or 16, in a subgroup of 32 or more.
fn row_max(value: f32, i: u32) -> f32 {
    var top = value;
    for (var step = 1u; step < SHARERS; step *= 2u) {
        top = max(top, subgroupShuffleXor(top, step));
    }
    return top;
}

// The sum over the invocations of a row.
fn row_add(value: f32, i: u32) -> f32 {
    var sum = value;
    for (var step = 1u; step < SHARERS; step *= 2u) {
        sum += subgroupShuffleXor(sum, step);
    }
    return sum;
}

// The subgroup of an invocation.
fn team_of(i: u32, subgroup: u32, subgroups: u32) -> Team {
    return Team(subgroup, subgroups);
}
