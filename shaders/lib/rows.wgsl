// The products of one activation with four rows of the weight, for the invocations of a workgroup together.
// The including kernel declares WG and binds x. Invocation i takes the chunks i, i + WG, ... of 16 columns:
// it loads x once for the four rows, and neighbours load neighbouring bytes of a row. f32 accumulation.

fn dot16(w: Weight16, a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>) -> f32 {
    return dot(w.a, a) + dot(w.b, b) + dot(w.c, c) + dot(w.d, d);
}

// The share of invocation i; the workgroup's sum is the product.
fn row_products(rows: vec4<u32>, i: u32, cols: u32) -> vec4<f32> {
    var sums = vec4<f32>(0.0);
    for (var chunk = i; chunk < cols / 16u; chunk += WG) {
        let a = x[chunk * 4u];
        let b = x[chunk * 4u + 1u];
        let c = x[chunk * 4u + 2u];
        let d = x[chunk * 4u + 3u];
        sums += vec4<f32>(
            dot16(weight16(rows.x, chunk, cols), a, b, c, d),
            dot16(weight16(rows.y, chunk, cols), a, b, c, d),
            dot16(weight16(rows.z, chunk, cols), a, b, c, d),
            dot16(weight16(rows.w, chunk, cols), a, b, c, d),
        );
    }
    return sums;
}
