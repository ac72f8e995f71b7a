//! Every benched case of every kernel on the default adapter: checked once, then timed as
//! `samara kernel bench` does it (`samara::instruments::workbench`).
//!
//! One iteration is one dispatch, timed by the device's clock if it has one. Throughput counts the bytes of
//! `cost()`. If the output of a case differs from its reference, the bench stops without timing it.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use samara::gpu::Gpu;
use samara::instruments::check::Prepared;
use samara::instruments::workbench::{Rotation, Timer};
use samara::kernels::LIST;

/// Returns the time of that many dispatches.
fn time(gpu: &Gpu, timer: &Timer, iterations: u64) -> Duration {
    let samples = iterations.div_ceil(timer.dispatches() as u64);
    let ns: f64 = (0..samples).map(|_| timer.sample(gpu).expect("the device runs")).sum();
    Duration::from_secs_f64(ns / samples as f64 * iterations as f64 * 1e-9)
}

fn kernels(c: &mut Criterion) {
    let Ok(gpu) = Gpu::open(None, None) else {
        eprintln!("skipped: no GPU adapter");
        return;
    };
    if gpu.summary().software {
        eprintln!("warning: `{}` is a software adapter: these are times of the CPU", gpu.summary().name);
    }
    for entry in LIST.iter() {
        let mut group = c.benchmark_group(entry.name);
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(200))
            .measurement_time(Duration::from_secs(1));
        let benched = entry.cases().into_iter().filter(|case| case.bench && case.kernel.runs_on(gpu.tier()));
        for case in benched {
            group.throughput(Throughput::Bytes(case.cost().bytes()));
            let mut timer = None;
            group.bench_function(&case.label, |b| {
                // Not earlier, because a filter may skip most cases.
                let timer = timer.get_or_insert_with(|| {
                    let prepared = Prepared::new(&case);
                    let rotation = Rotation::new(&gpu, &prepared).expect("a case fits the device");
                    let timer = rotation.timer(&gpu).expect("a kernel builds");
                    timer.unwrap_or_else(|why| panic!("{} [{}] is wrong: {why}", entry.name, case.label))
                });
                b.iter_custom(|iterations| time(&gpu, timer, iterations));
            });
        }
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
