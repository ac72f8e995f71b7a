// Epilogue of a product: the residual connection.
//   out[t, column + n] = residual[t, column + n] + y[t, n]
// The product alone is never stored, and a launch is saved. A slot is that of store.wgsl.

@group(0) @binding(3) var<storage, read> residual: array<f32>; // [R, N]

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
            let at = row + n;
            out[at] = residual[at] + sums[m];
        }
    }
}
