// Threefry-2x32 with 20 rounds, a counter-based generator: Salmon, Moraes, Dror and Shaw, "Parallel random
// numbers: as easy as 1, 2, 3", SC 2011. engine/kernels/threefry.rs is the same in Rust.

fn threefry_round(x: vec2<u32>, by: u32) -> vec2<u32> {
    let sum = x.x + x.y;
    return vec2<u32>(sum, ((x.y << by) | (x.y >> (32u - by))) ^ sum);
}

fn threefry_rounds(x: vec2<u32>, by: vec4<u32>) -> vec2<u32> {
    let two = threefry_round(threefry_round(x, by.x), by.y);
    return threefry_round(threefry_round(two, by.z), by.w);
}

// 64 random bits for a key and a counter.
fn threefry(key: vec2<u32>, counter: vec2<u32>) -> vec2<u32> {
    let odd = vec4<u32>(13u, 15u, 26u, 6u);
    let even = vec4<u32>(17u, 29u, 16u, 24u);
    let third = 0x1bd11bdau ^ key.x ^ key.y;
    var x = counter + key;
    x = threefry_rounds(x, odd) + vec2<u32>(key.y, third + 1u);
    x = threefry_rounds(x, even) + vec2<u32>(third, key.x + 2u);
    x = threefry_rounds(x, odd) + vec2<u32>(key.x, key.y + 3u);
    x = threefry_rounds(x, even) + vec2<u32>(key.y, third + 4u);
    return threefry_rounds(x, odd) + vec2<u32>(third, key.x + 5u);
}
