// A block of 32 tokens x 32 rows for product/tile_coop.wgsl, as 4 x 4 matrices of 8 x 8. Per 8 columns, four matrices
// of x and four of the weight are loaded for sixteen independent products. block_16.wgsl defines the same names.

// The sums of 8 tokens.
struct Band {
    a: MatrixSum,
    b: MatrixSum,
    c: MatrixSum,
    d: MatrixSum,
}

struct Block {
    low: Band,
    next: Band,
    third: Band,
    high: Band,
}

// 8 columns of 32 rows of the weight.
struct Weights {
    a: MatrixW,
    b: MatrixW,
    c: MatrixW,
    d: MatrixW,
}

fn band_add(band: Band, x: MatrixX, w: Weights) -> Band {
    return Band(
        multiply_add(x, w.a, band.a),
        multiply_add(x, w.b, band.b),
        multiply_add(x, w.c, band.c),
        multiply_add(x, w.d, band.d),
    );
}

// Adds the products over STEP staged columns of the tokens from x_at and the rows from w_at on.
fn block_add(block: Block, x_at: u32, w_at: u32) -> Block {
    var sum = block;
    for (var k = 0u; k < STEP; k += 8u) {
        let w = Weights(
            load_w(w_at + k),
            load_w(w_at + 8u * PITCH + k),
            load_w(w_at + 16u * PITCH + k),
            load_w(w_at + 24u * PITCH + k),
        );
        sum.low = band_add(sum.low, load_x(x_at + k), w);
        sum.next = band_add(sum.next, load_x(x_at + 8u * PITCH + k), w);
        sum.third = band_add(sum.third, load_x(x_at + 16u * PITCH + k), w);
        sum.high = band_add(sum.high, load_x(x_at + 24u * PITCH + k), w);
    }
    return sum;
}

fn band_store(band: Band, at: u32) {
    store_sums(band.a, at);
    store_sums(band.b, at + 8u);
    store_sums(band.c, at + 16u);
    store_sums(band.d, at + 24u);
}

// Stores 16 tokens of a block, the low or the high ones.
fn block_store(block: Block, band: u32, at: u32) {
    if band == 0u {
        band_store(block.low, at);
        band_store(block.next, at + 8u * SUMS_PITCH);
    } else {
        band_store(block.third, at);
        band_store(block.high, at + 8u * SUMS_PITCH);
    }
}
