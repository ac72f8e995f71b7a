//! The instruments against what is known: clocks, ceilings, costs and counts.

mod common;

use samara::gpu::Clock;
use samara::instruments::ceilings;

#[test]
fn ceilings_are_measured_by_every_clock_that_the_adapter_has() {
    let Some(mut gpu) = common::gpu() else { return };
    for clock in [Clock::Timestamps, Clock::PassTimestamps, Clock::Wall] {
        if gpu.set_clock(clock).is_err() {
            continue;
        }
        let start = std::time::Instant::now();
        let found = ceilings::measure(&gpu).unwrap();
        eprintln!("{clock}: {found:?} in {:.1?}", start.elapsed());
        assert!(found.copy_gb_s > 0.1 && found.copy_gb_s < 1e5, "{clock}: {found:?}");
        assert!(found.fma_gflop_s > 0.1 && found.fma_gflop_s < 1e6, "{clock}: {found:?}");
        assert_eq!(found.matrix_gflop_s.is_some(), gpu.summary().matrix_units);
    }
}
