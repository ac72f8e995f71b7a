// Epilogue of a product: SwiGLU.
//   out[t, n] = silu(y[t, n]) * y[t, F + n],   silu(g) = g / (1 + exp(-g))
// The weight has F gate rows, then F up rows. A slot is the gates of two outputs, SPACING apart, and their ups, so
// gate times up needs no exchange and the [T, 2F] intermediate is never stored. exp(-g) is kept finite.

const OUTPUTS = 2u; // of a slot

// The weight rows at four indices in the order of slots: a slot has indices SPACING apart. Of 4 SPACING indices the first
// half are gates, the others the ups of the same outputs. Past the end: the last rows.
fn weight_rows(indices: vec4<u32>) -> vec4<u32> {
    let outputs = indices / (4u * SPACING) * (2u * SPACING) + indices % (2u * SPACING);
    return min(outputs, vec4<u32>(params.outputs - 1u)) + indices / (2u * SPACING) % 2u * params.outputs;
}

// Stores the outputs of a slot for a token, except those past the end.
fn store(token: u32, first: u32, sums: vec4<f32>) {
    let gates = sums.xy;
    let products = gates / (1.0 + exp(min(-gates, vec2<f32>(88.0)))) * sums.zw;
    let at = token * params.width + first;
    let outputs = params.outputs;
    if first < outputs {
        out[at] = products.x;
    }
    if first + SPACING < outputs {
        out[at + SPACING] = products.y;
    }
}
