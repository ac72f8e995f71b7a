//! Any bytes are the weights of a small model, every row of which reads, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use samara::model::Checkpoint;

const TINY: &str = include_str!("../seeds/tiny.json");

fuzz_target!(|bytes: &[u8]| {
    let Ok(model) = Checkpoint::from_bytes(TINY, bytes.to_vec()) else { return };
    for (index, weight) in model.weights().iter().enumerate() {
        let mut values = vec![0.0; weight.rows * weight.cols];
        let read = model.read_rows(index, 0..weight.rows, &mut values);
        assert_eq!(read.is_ok(), values.iter().all(|value| value.is_finite()), "{}", weight.name);
        // A scan for f16 reads less, never more: weights stored as f16 need none.
        assert!(model.fits_f16(index).is_ok() || read.is_err(), "{}", weight.name);
        model.release(index, 0..weight.rows);
    }
});
