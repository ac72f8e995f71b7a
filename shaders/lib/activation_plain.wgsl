// How lib/rows.wgsl reads x: as it is. activation_normed.wgsl defines the same names.
// Where all invocations are at one chunk (LANES 1), each loads a quarter of it for its subgroup.

const EXTRA = 0u; // vectors to reduce besides the products

fn gains16(chunk: u32, at: Invocation) -> Values16 {
    return Values16(); // unused
}

// Values 16 * chunk .. 16 * chunk + 16 of the row of x that begins at vector `row`.
fn activation16(row: u32, chunk: u32, gains: Values16, at: Invocation) -> Activation16 {
    let i = row + chunk * 4u;
    if LANES == 1u {
        let v = spread(x[i + quarter(at)]);
        return Activation16(v.a, v.b, v.c, v.d, 0.0);
    }
    return Activation16(x[i], x[i + 1u], x[i + 2u], x[i + 3u], 0.0);
}

// The products of token t with four rows, once reduced.
fn finish(t: u32, at: Invocation) -> vec4<f32> {
    return total(t, at);
}
