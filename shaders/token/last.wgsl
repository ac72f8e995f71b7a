// Where the token goes that follows from the last row: to ids[0], so that the next step's embed finds it, and
// to the history; then the position advances, so that the next step can already be recorded.

@group(0) @binding(2) var<storage, read_write> ids: array<u32>; // [T], only the first is written
@group(0) @binding(3) var<storage, read_write> position: array<u32>; // [1]
@group(0) @binding(4) var<storage, read_write> history: array<u32>; // [S + 1]

fn publish(row: u32, id: u32) {
    let next = position[0] + params.advance;
    ids[0] = id;
    history[min(next, params.capacity)] = id;
    position[0] = next;
}
