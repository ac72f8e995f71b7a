// How lib/rows.wgsl reads x: as it is. activation_normed.wgsl defines the same names.

const EXTRA = 0u; // vectors to reduce besides the products

fn gains16(chunk: u32) -> Gain16 {
    return Gain16(); // unused
}

// Values 16 * chunk .. 16 * chunk + 16 of the row of x that begins at vector `row`.
fn activation16(row: u32, chunk: u32, gains: Gain16) -> Activation16 {
    let i = row + chunk * 4u;
    return Activation16(x[i], x[i + 1u], x[i + 2u], x[i + 3u], 0.0);
}

// The products of token t with four rows, once reduced.
fn finish(t: u32, at: Invocation) -> vec4<f32> {
    return total(t, at);
}
