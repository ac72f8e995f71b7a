// How lib/rows.wgsl multiplies a chunk of a row of the weight with one of x: 16 columns in f32.
// products_int8.wgsl defines the same names.

const COLUMNS = 16u;

alias WeightChunk = Weight16;
alias GainChunk = Values16;
alias ActivationChunk = Activation16;

fn weight_chunk(piece: Piece, part: u32) -> WeightChunk {
    return part16(piece, part);
}

fn gain_chunk(chunk: u32, at: Invocation) -> GainChunk {
    return gains16(chunk, at);
}

fn activation_chunk(row: u32, chunk: u32, gains: GainChunk, at: Invocation) -> ActivationChunk {
    return activation16(row, chunk, gains, at);
}

fn product(w: WeightChunk, v: ActivationChunk) -> f32 {
    return dot(w.a, v.a) + dot(w.b, v.b) + dot(w.c, v.c) + dot(w.d, v.d);
}
