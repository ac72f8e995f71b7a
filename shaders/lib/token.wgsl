// Where a row of logits stands in its sequence, and where the token goes that it chooses: for argmax.wgsl and
// sample.wgsl, which bind ids, position and out, and have advance and capacity among their params.

const NONE = 0xffffffffu; // no token has this id

const LAST = 0u; // the last row of a step: the sequence goes on by itself
const DRAFTED = 1u; // every row of a step of drafted tokens: row r chooses what follows token r
const BATCH = 2u; // every row of a batch, each at the (position, slot) of its own sequence

override MODE: u32 = LAST;

// The index that the token has in its sequence.
fn next_of(row: u32) -> u32 {
    if MODE == BATCH {
        return position[2u * row] + 1u;
    }
    if MODE == DRAFTED {
        return position[0] + row + 1u;
    }
    return position[0] + params.advance;
}

// The token of the last row goes to ids[0], where the next step's embed finds it, and to the history; the position
// advances, so that the next step can already be recorded. Those of every row go to the elements of out.
fn publish(row: u32, id: u32) {
    if MODE == LAST {
        let next = next_of(row);
        ids[0] = id;
        out[min(next, params.capacity)] = id;
        position[0] = next;
    } else {
        out[row] = id;
    }
}
