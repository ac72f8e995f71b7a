// Where the tokens go that follow from every row: each to the id of its row.

@group(0) @binding(2) var<storage, read_write> ids: array<u32>; // [T], the first R are written

fn publish(row: u32, id: u32) {
    ids[row] = id;
}
