// Register-tiled multiply-adds: measures the f32 operations per second of an adapter, the ceiling of every
// compute-bound kernel.
//   acc[i,j] = acc[i,j] * b[j] + a[i], `rounds` times from 0;   out = sum over i, j of acc[i,j]
// An invocation holds a tile of 4 x 4 vectors, from its own a[i] and the b[j] that all share: 64 independent
// chains of multiply-adds, enough to hide their latency, and two operands in registers feed many, as in a matmul.
// Each step needs the one before, so no compiler can shorten a chain; |b| < 1 keeps it finite. The loop body has
// four rounds: 256 instructions of the chains to 3 of the loop.

override WG: u32 = 256;

struct Params {
    rounds: u32, // a multiple of 4
    invocations: u32, // N
}

struct Tile {
    a: mat4x4<f32>,
    b: mat4x4<f32>,
    c: mat4x4<f32>,
    d: mat4x4<f32>,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<mat4x4<f32>>; // [N, 16]: a of each invocation
@group(0) @binding(2) var<storage, read> y: array<vec4<f32>>; // [4]: b
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>; // [N, 4]

fn step4(acc: mat4x4<f32>, a: vec4<f32>, b: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(
        fma(acc[0], b.xxxx, a),
        fma(acc[1], b.yyyy, a),
        fma(acc[2], b.zzzz, a),
        fma(acc[3], b.wwww, a),
    );
}

fn step16(t: Tile, a: mat4x4<f32>, b: vec4<f32>) -> Tile {
    return Tile(step4(t.a, a[0], b), step4(t.b, a[1], b), step4(t.c, a[2], b), step4(t.d, a[3], b));
}

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let own = min(id.x, params.invocations - 1u); // past the end: repeats the last one, stores nothing
    let a = x[own];
    let b = y[0];
    var t = Tile();
    for (var round = 0u; round < params.rounds; round += 4u) {
        t = step16(step16(step16(step16(t, a, b), a, b), a, b), a, b);
    }
    if own == id.x {
        let s = t.a + t.b + t.c + t.d;
        out[own] = s[0] + s[1] + s[2] + s[3];
    }
}
