// How lib/rows.wgsl reads x: through an RMSNorm. A row's scale is known only at its end, and is the same for
// all its columns: so its squares are summed beside the products, and the scale is applied to what comes
// out. The including kernel binds norm, the gain of each column, and has cols and eps among its params.
// activation_plain.wgsl defines the same names.
// Where all invocations are at one chunk (LANES 1), each loads a quarter of it for its subgroup.

const EXTRA = 2u; // vectors to reduce besides the products: the squares of eight tokens

fn gains16(chunk: u32, at: Invocation) -> Values16 {
    let i = chunk * 4u;
    if LANES == 1u {
        return Values16(norm[i + quarter(at)], vec4<f32>(), vec4<f32>(), vec4<f32>());
    }
    return Values16(norm[i], norm[i + 1u], norm[i + 2u], norm[i + 3u]);
}

// Values 16 * chunk .. 16 * chunk + 16 of the row of x that begins at vector `row`.
fn activation16(row: u32, chunk: u32, gains: Values16, at: Invocation) -> Activation16 {
    let i = row + chunk * 4u;
    if LANES == 1u {
        let mine = x[i + quarter(at)];
        let v = spread(mine * gains.a);
        let squares = spread(vec4<f32>(dot(mine, mine)));
        return Activation16(v.a, v.b, v.c, v.d, squares.a.x + squares.b.x + squares.c.x + squares.d.x);
    }
    let a = x[i];
    let b = x[i + 1u];
    let c = x[i + 2u];
    let d = x[i + 3u];
    let squares = dot(a, a) + dot(b, b) + dot(c, c) + dot(d, d);
    return Activation16(a * gains.a, b * gains.b, c * gains.c, d * gains.d, squares);
}

// The products of normed token t with four rows, once reduced.
fn finish(t: u32, at: Invocation) -> vec4<f32> {
    let mean = total(TOKENS + t / 4u, at)[t % 4u] / f32(params.cols);
    return total(t, at) * inverseSqrt(mean + params.eps);
}
