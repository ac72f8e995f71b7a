// A block of 32 tokens x 32 rows for product/tile_coop.wgsl, as 2 x 2 matrices of 16 x 16. Per 16 columns, two
// matrices of x and two of the weight are loaded for four independent products. block_8.wgsl defines the same names.

// The sums of 16 tokens.
struct Band {
    a: MatrixSum,
    b: MatrixSum,
}

struct Block {
    low: Band,
    high: Band,
}

fn band_add(band: Band, x: MatrixX, a: MatrixW, b: MatrixW) -> Band {
    return Band(multiply_add(x, a, band.a), multiply_add(x, b, band.b));
}

// Adds the products over STEP staged columns of the tokens from x_at and the rows from w_at on.
fn block_add(block: Block, x_at: u32, w_at: u32) -> Block {
    var sum = block;
    for (var k = 0u; k < STEP; k += 16u) {
        let a = load_w(w_at + k);
        let b = load_w(w_at + 16u * PITCH + k);
        sum.low = band_add(sum.low, load_x(x_at + k), a, b);
        sum.high = band_add(sum.high, load_x(x_at + 16u * PITCH + k), a, b);
    }
    return sum;
}

// Stores 16 tokens of a block, the low or the high ones.
fn block_store(block: Block, band: u32, at: u32) {
    if band == 0u {
        store_sums(block.low.a, at);
        store_sums(block.low.b, at + 16u);
    } else {
        store_sums(block.high.a, at);
        store_sums(block.high.b, at + 16u);
    }
}
