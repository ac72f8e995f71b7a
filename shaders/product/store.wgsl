// Epilogue of a product: stores it unchanged.
//   out[t, column + n] = y[t, n]
// A slot is four weight rows, SPACING apart, and their outputs. add.wgsl and swiglu.wgsl define the same names.

const OUTPUTS = 4u; // of a slot

// The weight rows at four indices in the order of slots: a slot has indices SPACING apart. Past the end: the last row.
fn weight_rows(indices: vec4<u32>) -> vec4<u32> {
    return min(indices, vec4<u32>(params.outputs - 1u));
}

// Stores the sums of a token with the rows of a slot, except outputs past the end.
fn store(token: u32, first: u32, sums: vec4<f32>) {
    let row = token * params.width + params.column;
    for (var m = 0u; m < 4u; m++) {
        let n = first + m * SPACING;
        if n < params.outputs {
            out[row + n] = sums[m];
        }
    }
}
