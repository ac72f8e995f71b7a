// Logits as integers, which compare exactly, whatever a driver does with NaN and zeros in f32 compares.

// Integers that order like the floats: 0 for NaN, equal for both zeros.
fn keys(bits: vec4<u32>) -> vec4<u32> {
    let magnitude = bits & vec4<u32>(0x7fffffffu);
    let ordered = select(0x80000000u + magnitude, 0x80000000u - magnitude, bits != magnitude);
    return select(ordered, vec4<u32>(0u), magnitude > vec4<u32>(0x7f800000u));
}

// The float of a key.
fn value(key: u32) -> f32 {
    return bitcast<f32>(select(key - 0x80000000u, (0x80000000u - key) | 0x80000000u, key < 0x80000000u));
}

// The larger key; of equal keys the lower index.
fn better(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return select(a, b, b.x > a.x || (b.x == a.x && b.y < a.y));
}
