// Unsigned integers of 64 bits as (upper, lower) words.

fn wide_add(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let lower = a.y + b.y;
    return vec2<u32>(a.x + b.x + select(0u, 1u, lower < a.y), lower);
}

fn wide_sub(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return vec2<u32>(a.x - b.x - select(0u, 1u, a.y < b.y), a.y - b.y);
}

fn wide_less(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.x < b.x || (a.x == b.x && a.y < b.y);
}

// The product of two words.
fn wide_product(a: u32, b: u32) -> vec2<u32> {
    let middle = (a >> 16u) * (b & 0xffffu);
    let cross = (a & 0xffffu) * (b >> 16u);
    let outer = vec2<u32>((a >> 16u) * (b >> 16u), (a & 0xffffu) * (b & 0xffffu));
    let sum = wide_add(outer, vec2<u32>(middle >> 16u, middle << 16u));
    return wide_add(sum, vec2<u32>(cross >> 16u, cross << 16u));
}

// a * b / 2^32 for an `a` below 2^63 / b, rounded down, or up if `up`.
fn wide_share(a: vec2<u32>, b: u32, up: bool) -> vec2<u32> {
    let lower = wide_product(a.y, b);
    let sum = wide_add(wide_product(a.x, b), vec2<u32>(0u, lower.x));
    return wide_add(sum, vec2<u32>(0u, select(0u, 1u, up && lower.y != 0u)));
}
