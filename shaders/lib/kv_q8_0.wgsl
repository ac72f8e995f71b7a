// Four values of a q8_0 KV cache. A row is COLS words of integers, then words of two f16 scales, one scale per 32
// values (engine/quant/q8_0_rows.rs): STRIDE words in all. A key is contiguous; neighbours load neighbouring words,
// and their scale from one address. kv_f16.wgsl, kv_f16_native.wgsl and kv_f32.wgsl define the same names, with
// rows of COLS `Kv4`s and no scales.
// To store a row, each invocation notes its vectors (`kv_note`) at indices of its own, in order from a multiple of
// COLS on. After a barrier `kv_word` returns the word of an index, `kv_scales` the scales of 16 indices.
// Rounds as ggml does, except that halves go to even; the scale is rounded to f16, maybe toward zero.

alias Kv4 = u32;

var<workgroup> magnitudes: array<f32, 2u * WG>; // the largest of each vector noted

fn kv_load(word: Kv4, scales: Kv4, c: u32) -> vec4<f32> {
    let pair = unpack2x16float(scales);
    return vec4<f32>(unpack4xI8(word)) * select(pair.x, pair.y, ((c / 8u) & 1u) == 1u);
}

fn k_load(row: u32, c: u32) -> vec4<f32> {
    return kv_load(k_cache[row + c], k_cache[row + COLS + c / 16u], c);
}

fn v_load(row: u32, c: u32) -> vec4<f32> {
    return kv_load(v_cache[row + c], v_cache[row + COLS + c / 16u], c);
}

fn kv_note(values: vec4<f32>, at: u32) {
    let sizes = abs(values);
    magnitudes[at] = max(max(sizes.x, sizes.y), max(sizes.z, sizes.w));
}

// The scale of the block that begins at index `first`.
fn scale_of(first: u32) -> f32 {
    var top = 0.0;
    for (var i = 0u; i < 8u; i++) {
        top = max(top, magnitudes[first + i]);
    }
    return top / 127.0;
}

fn kv_word(values: vec4<f32>, at: u32) -> Kv4 {
    let scale = scale_of(at - at % 8u);
    let inverse = select(0.0, 1.0 / scale, scale > 0.0);
    return pack4xI8(vec4<i32>(round(values * inverse)));
}

fn kv_scales(at: u32) -> Kv4 {
    // With one block per row the other half is unused.
    return pack2x16float(vec2<f32>(scale_of(at), select(0.0, scale_of(min(at + 8u, 2u * WG - 8u)), COLS > 8u)));
}
