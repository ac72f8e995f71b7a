// A row's position in its sequence, and where the token that it chooses goes. For argmax.wgsl and sample.wgsl,
// which bind ids, position and out, and have advance and capacity among their params.

const NONE = 0xffffffffu; // no token has this id

const LAST = 0u; // the last row of a step: the device advances the sequence
const DRAFTED = 1u; // every row of a step of draft tokens: row r chooses the successor of token r
const BATCH = 2u; // every row of a batch, each at the (position, slot) of its own sequence

override MODE: u32 = LAST;

// The index of the chosen token in its sequence.
fn next_of(row: u32) -> u32 {
    if MODE == BATCH {
        return position[2u * row] + 1u;
    }
    if MODE == DRAFTED {
        return position[0] + row + 1u;
    }
    return position[0] + params.advance;
}

// LAST writes the token to ids[0], where the next step's embed reads it, and to the history, and advances the position:
// so the next step can already be recorded. The other modes write row r's token to out[r].
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
