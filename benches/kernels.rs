//! Every benched case of every kernel on the default adapter: checked once, then timed.
//!
//! One iteration is one dispatch of a batch that is submitted whole and waited for once, so the time of
//! a launch is part of it. Throughput counts the bytes of `cost()`. A case whose output is off its
//! reference is not timed: the bench stops.

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use samara::gpu::{Bindings, BufferRange, Executor, Gpu, pack_values, unpack_values};
use samara::kernels::{Case, LIST};
use samara::tensor::TensorId;

/// Dispatches of one submission.
const BATCH: u64 = 16;

struct Buffers(Vec<Vec<BufferRange>>);

impl Bindings for Buffers {
    fn ranges(&self, tensor: TensorId) -> &[BufferRange] {
        &self.0[tensor.0 as usize]
    }
}

impl Buffers {
    fn new(gpu: &Gpu, case: &Case) -> samara::Result<Self> {
        let memory = case.memory();
        let upload = |name: &str, plane: &[u8]| {
            let range = gpu.storage(name, plane.len() as u64)?;
            gpu.write(&range, 0, plane);
            Ok(range)
        };
        let tensors = case.tensors.iter().map(|(id, desc)| {
            let planes = pack_values(desc, memory.read(id));
            planes.iter().map(|plane| upload(&desc.name, plane)).collect()
        });
        Ok(Self(tensors.collect::<samara::Result<_>>()?))
    }

    /// Compares every output with the reference of one call.
    fn check(&self, gpu: &Gpu, case: &Case) -> samara::Result<()> {
        let mut expected = case.memory();
        case.kernel.reference(&mut expected);
        for id in case.outputs() {
            let found = unpack_values(case.tensors[id].dtype, &gpu.read(&self.ranges(id)[0])?);
            let error: f64 = found.iter().zip(expected.read(id)).map(|(y, r)| (y - r) * (y - r)).sum();
            let power: f64 = expected.read(id).iter().map(|r| r * r).sum();
            assert!(error <= case.tolerance * power, "{} [{}] is wrong", case.kernel.name(), case.label);
        }
        Ok(())
    }
}

fn time(gpu: &Gpu, executor: &Executor, iterations: u64) -> Duration {
    let submissions = iterations.div_ceil(BATCH);
    let start = Instant::now();
    for _ in 0..submissions {
        executor.run(gpu);
    }
    gpu.wait().expect("the device runs");
    start.elapsed().mul_f64(iterations as f64 / (submissions * BATCH) as f64)
}

fn kernels(c: &mut Criterion) {
    let Ok(gpu) = Gpu::open(None, None) else {
        eprintln!("skipped: no GPU adapter");
        return;
    };
    if gpu.summary().software {
        eprintln!("warning: `{}` is a software adapter: these are times of the CPU", gpu.summary().name);
    }
    for entry in LIST {
        let mut group = c.benchmark_group(entry.name);
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(200))
            .measurement_time(Duration::from_secs(1));
        for case in (entry.cases)().iter().filter(|case| case.bench) {
            let buffers = Buffers::new(&gpu, case).expect("a case fits the device");
            let kernel = || ("bench", &*case.kernel);
            let once = Executor::new(&gpu, [kernel()].into_iter(), &buffers).expect("a kernel builds");
            once.run(&gpu);
            buffers.check(&gpu, case).expect("the device runs");
            let batch = Executor::new(&gpu, (0..BATCH).map(|_| kernel()), &buffers).expect("a kernel builds");
            group.throughput(Throughput::Bytes(case.cost().bytes()));
            group.bench_function(&case.label, |b| b.iter_custom(|iterations| time(&gpu, &batch, iterations)));
        }
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
