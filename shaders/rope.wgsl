// Rotary position embedding of every head, rotate-half: element j pairs with j + Dh/2.
//   out[j] = x[j] cos - x[j+Dh/2] sin;   out[j+Dh/2] = x[j+Dh/2] cos + x[j] sin
// Invocation i rotates one vector of four pairs of one head. cos and sin of position * theta^(-2j/Dh)
// come from a table made in f64: WGSL's own lose accuracy at the angles of late positions.

override WG: u32 = 64;

struct Params {
    rotations: u32, // T * heads * Dh / 8
    half: u32, // Dh / 8: vectors of half a head
    heads: u32,
    tokens: u32, // T
    context: u32, // S
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [T, heads, Dh / 4]
@group(0) @binding(2) var<storage, read> table: array<vec4<f32>>; // [S, 2, Dh / 8]: cos, sin
@group(0) @binding(3) var<storage, read> position: array<u32>; // [1]
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>; // [T, heads, Dh / 4]

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.rotations {
        return;
    }
    let j = id.x % params.half;
    let head = id.x / params.half; // of all tokens
    let first = min(position[0], params.context - params.tokens);
    let angle = (first + head / params.heads) * 2u * params.half + j;
    let c = table[angle];
    let s = table[angle + params.half];
    let at = head * 2u * params.half + j;
    let a = x[at];
    let b = x[at + params.half];
    out[at] = a * c - b * s;
    out[at + params.half] = b * c + a * s;
}
