// How rows.wgsl multiplies a chunk of a weight row by one of x: 16 columns in f32. rows_int8.wgsl defines the same
// names.

const COLUMNS = 16u;

alias GainChunk = Values16;
alias ActivationChunk = Activation16;

fn gain_chunk(chunk: u32, at: Invocation) -> GainChunk {
    return gains16(chunk, at);
}

fn activation_chunk(row: u32, chunk: u32, gains: GainChunk, at: Invocation) -> ActivationChunk {
    return activation16(row, chunk, gains, at);
}

fn product(w: WeightChunk, v: ActivationChunk) -> f32 {
    let x = v.values;
    return dot(w.a, x.a) + dot(w.b, x.b) + dot(w.c, x.c) + dot(w.d, x.d);
}
