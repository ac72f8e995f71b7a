// Epilogue of a product: stored as it is.
//   out[t, column + n] = y[t, n]
// A slot is four rows of the weight, SPACING apart, and as many outputs. add.wgsl and swiglu.wgsl define the same names.

const OUTPUTS = 4u; // of a slot

// The weight rows at four places: a slot has those at places SPACING apart. Past the end they are the last one.
fn weight_rows(places: vec4<u32>) -> vec4<u32> {
    return min(places, vec4<u32>(params.outputs - 1u));
}

// Takes the sums of a token with the rows of a slot; outputs past the end are left out.
fn store(token: u32, first: u32, sums: vec4<f32>) {
    let row = token * params.width + params.column;
    for (var m = 0u; m < 4u; m++) {
        let n = first + m * SPACING;
        if n < params.outputs {
            out[row + n] = sums[m];
        }
    }
}
