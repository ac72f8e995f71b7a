// How rows.wgsl multiplies a chunk of a weight row by one of x: a block of 32 columns as 8-bit integers, four
// products per instruction (dot4I8Packed). Their sum is exact; then both scales are applied in f32.
// The invocation that multiplies a block of x rounds it itself, in registers, as ggml does for q8_0:
//   scale = max |v| / 127,   q = round(v / scale)
// No other invocation of the workgroup needs that block, so it is never stored and costs no launch. The format's
// fragment defines the words of a block (`Piece`, `piece`) and the order of values in them (`packed`).
// rows_f32.wgsl defines the same names.
// llvmpipe, which emulates dot4I8Packed, is slower than in f32 (best of three interleaved runs each): [1152, 1280]
// 2.3 times in q8_0 and q4_0, gate and up of [768, 1280] 2.1 and 2.3, [1280, 5120] 2.4 and 2.6, the head 2.2; a
// token of the 270M 2.3 and 2.1. On an H200, 270M, q4_0: 1493 tokens/s against 1457 in f32, both bound by
// latency. The tier is opt-in.

const COLUMNS = 32u;
const PARTS = 1u; // a piece is a block

alias WeightChunk = Piece;

fn weight_chunk(piece: Piece, part: u32) -> WeightChunk {
    return piece;
}

// A block without a larger magnitude is zero, because 127 / max would overflow. No model has values so small.
const LEAST = 1e-30;

struct GainChunk {
    low: Values16,
    high: Values16,
}

// 32 integers, their scale, and the sum of the squares of the values before gains and rounding.
struct ActivationChunk {
    a: vec4<u32>,
    b: vec4<u32>,
    scale: f32,
    squares: f32,
}

// All bits of an f32 but its sign.
const MAGNITUDE = vec4<u32>(0x7fffffffu);

// Magnitudes as bits, which order like their values. NaN is the largest, so it reaches the output.
fn largest16(v: Values16) -> vec4<u32> {
    let a = bitcast<vec4<u32>>(v.a) & MAGNITUDE;
    let b = bitcast<vec4<u32>>(v.b) & MAGNITUDE;
    let c = bitcast<vec4<u32>>(v.c) & MAGNITUDE;
    let d = bitcast<vec4<u32>>(v.d) & MAGNITUDE;
    return max(max(a, b), max(c, d));
}

fn rounded(v: vec4<f32>, inverse: f32) -> vec4<i32> {
    return vec4<i32>(round(v * inverse));
}

fn words16(v: Values16, inverse: f32) -> vec4<u32> {
    let low = packed(rounded(v.a, inverse), rounded(v.b, inverse));
    let high = packed(rounded(v.c, inverse), rounded(v.d, inverse));
    return vec4<u32>(low, high);
}

fn gain_chunk(chunk: u32, at: Invocation) -> GainChunk {
    let half = 2u * chunk;
    return GainChunk(gains16(half, at), gains16(half + 1u, at));
}

// Values 32 * chunk .. 32 * chunk + 32 of the row of x that begins at vector `row`.
fn activation_chunk(row: u32, chunk: u32, gains: GainChunk, at: Invocation) -> ActivationChunk {
    let half = 2u * chunk;
    let low = activation16(row, half, gains.low, at);
    let high = activation16(row, half + 1u, gains.high, at);
    let four = max(largest16(low.values), largest16(high.values));
    let two = max(four.xy, four.zw);
    let largest = bitcast<f32>(max(two.x, two.y));
    let inverse = select(0.0, 127.0 / largest, largest > LEAST);
    let squares = low.squares + high.squares;
    return ActivationChunk(words16(low.values, inverse), words16(high.values, inverse), largest / 127.0, squares);
}

fn dot4(p: vec4<u32>, q: vec4<u32>) -> i32 {
    return dot4I8Packed(p.x, q.x) + dot4I8Packed(p.y, q.y) + dot4I8Packed(p.z, q.z) + dot4I8Packed(p.w, q.w);
}

fn product(w: WeightChunk, v: ActivationChunk) -> f32 {
    return f32(dot4(w.a, v.a) + dot4(w.b, v.b)) * (w.scale * v.scale);
}
