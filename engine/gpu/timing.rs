//! How long dispatches take: by GPU timestamps if the adapter has them, else by the wall clock.
//!
//! A timestamp is written when everything before it is done, so the time of a dispatch is that from its
//! predecessor's end to its own end: launch, barrier and work, which is what it costs a step. Queries are
//! resolved once, after everything that is timed.

use std::time::Instant;

use crate::error::{Error, Result};
use crate::gpu::buffer::Readback;
use crate::gpu::clock::Clock;
use crate::gpu::counters::Counters;
use crate::gpu::device::Gpu;
use crate::gpu::executor::Executor;

/// Queries of one set, WebGPU's limit.
const SET: usize = wgpu::QUERY_SET_MAX_QUERIES as usize;
/// The wall clock times at least this long, in seconds: a submission takes some ten thousandths of it.
const WALL_SECONDS: f64 = 0.02;
/// Most repetitions of a dispatch for the wall clock.
const MAX_REPEATS: usize = 4096;

/// When a step ran, in nanoseconds from the start of the first.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Span {
    /// When everything before it was done.
    pub start: f64,
    /// When it was done.
    pub end: f64,
}

impl Span {
    /// Returns how long the step took, in nanoseconds.
    pub fn nanoseconds(self) -> f64 {
        self.end - self.start
    }
}

impl Executor {
    /// Runs every step once, in order, and returns when each of them ran.
    ///
    /// With [`Clock::Wall`] each step is repeated; `reset` is called before the repetitions of each, and
    /// has to restore what a step changes (a position that it advances).
    ///
    /// # Errors
    /// When the device fails, or its timestamps run backwards.
    pub fn spans(&self, gpu: &Gpu, mut reset: impl FnMut()) -> Result<Vec<Span>> {
        reset();
        let times = match gpu.clock() {
            Clock::Timestamps => self.within_pass(gpu)?,
            Clock::PassTimestamps => self.pass_by_pass(gpu)?,
            Clock::Wall => {
                let mut time = |index| {
                    reset();
                    self.repeated(gpu, &[index])
                };
                (0..self.steps.len()).map(&mut time).collect::<Result<Vec<f64>>>()?
            }
        };
        let mut end = 0.0;
        Ok(times
            .into_iter()
            .map(|time| {
                let start = end;
                end += time;
                Span { start, end }
            })
            .collect())
    }

    /// Runs every step once, in order, and returns the nanoseconds from the first's start to the last's end.
    ///
    /// # Errors
    /// When the device fails, or its timestamps run backwards.
    pub fn elapsed(&self, gpu: &Gpu) -> Result<f64> {
        if gpu.clock() == Clock::Wall {
            return self.repeated(gpu, &(0..self.steps.len()).collect::<Vec<_>>());
        }
        let queries = Queries::new(gpu, 2);
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut pass = encoder.begin_compute_pass(&queries.pass(0));
        self.steps.iter().for_each(|step| step.record(&mut pass));
        drop(pass);
        let times = queries.read(gpu, encoder, Counters::submission(1, self.steps.len()))?;
        difference(times[0], times[1])
    }

    fn within_pass(&self, gpu: &Gpu) -> Result<Vec<f64>> {
        let queries = Queries::new(gpu, self.steps.len() + 1);
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        queries.write(&mut pass, 0);
        for (index, step) in self.steps.iter().enumerate() {
            step.record(&mut pass);
            queries.write(&mut pass, index + 1);
        }
        drop(pass);
        let times = queries.read(gpu, encoder, Counters::submission(1, self.steps.len()))?;
        times.windows(2).map(|pair| difference(pair[0], pair[1])).collect()
    }

    fn pass_by_pass(&self, gpu: &Gpu) -> Result<Vec<f64>> {
        let queries = Queries::new(gpu, 2 * self.steps.len());
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for (index, step) in self.steps.iter().enumerate() {
            step.record(&mut encoder.begin_compute_pass(&queries.pass(2 * index)));
        }
        let times = queries.read(gpu, encoder, Counters::submission(self.steps.len(), self.steps.len()))?;
        times.chunks_exact(2).map(|pair| difference(pair[0], pair[1])).collect()
    }

    /// Times some steps by the wall clock, with enough repetitions to make the cost of a submission
    /// negligible.
    fn repeated(&self, gpu: &Gpu, steps: &[usize]) -> Result<f64> {
        let time = |repeats: usize| -> Result<f64> {
            let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for _ in 0..repeats {
                steps.iter().for_each(|&index| self.steps[index].record(&mut pass));
            }
            drop(pass);
            gpu.wait()?;
            let start = Instant::now();
            gpu.submit(encoder, Counters::submission(1, repeats * steps.len()));
            gpu.wait()?;
            Ok(start.elapsed().as_secs_f64())
        };
        let mut repeats = 1;
        loop {
            let whole = time(repeats)?;
            if whole >= WALL_SECONDS || repeats >= MAX_REPEATS {
                return Ok(whole / repeats as f64 * 1e9);
            }
            repeats *= 2;
        }
    }
}

/// Nanoseconds between two timestamps.
fn difference(start: f64, end: f64) -> Result<f64> {
    if end >= start {
        return Ok(end - start);
    }
    Err(Error::Gpu(format!("the driver's timestamps run backwards, from {start} ns to {end} ns")))
}

/// Any number of timestamps, in sets of [`SET`].
struct Queries {
    sets: Vec<wgpu::QuerySet>,
    count: usize,
}

impl Queries {
    fn new(gpu: &Gpu, count: usize) -> Self {
        let set = |first: usize| {
            gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("timestamps"),
                ty: wgpu::QueryType::Timestamp,
                count: (count - first).min(SET) as u32,
            })
        };
        Self { sets: (0..count).step_by(SET).map(set).collect(), count }
    }

    fn write(&self, pass: &mut wgpu::ComputePass<'_>, index: usize) {
        pass.write_timestamp(&self.sets[index / SET], (index % SET) as u32);
    }

    /// Returns a pass that writes queries `first`, which is even, and `first + 1` at its ends.
    fn pass(&self, first: usize) -> wgpu::ComputePassDescriptor<'_> {
        let at = (first % SET) as u32;
        wgpu::ComputePassDescriptor {
            label: None,
            timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                query_set: &self.sets[first / SET],
                beginning_of_pass_write_index: Some(at),
                end_of_pass_write_index: Some(at + 1),
            }),
        }
    }

    /// Submits what was recorded and returns every timestamp in nanoseconds.
    fn read(self, gpu: &Gpu, mut encoder: wgpu::CommandEncoder, recorded: Counters) -> Result<Vec<f64>> {
        let bytes = 8 * self.count as u64;
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let resolved = gpu.buffer("timestamps", bytes, usage);
        for (index, set) in self.sets.iter().enumerate() {
            encoder.resolve_query_set(set, 0..set.count(), &resolved.buffer, (8 * index * SET) as u64);
        }
        let readback = Readback::new(gpu, bytes);
        readback.copy(&mut encoder, &[&resolved]);
        let submission = gpu.submit(encoder, recorded);
        let ticks: Vec<u64> = readback.map(gpu, &submission, bytes, bytemuck::pod_collect_to_vec)?;
        let (first, period) = (ticks[0], f64::from(gpu.queue.get_timestamp_period()));
        Ok(ticks.into_iter().map(|tick| tick.wrapping_sub(first) as i64 as f64 * period).collect())
    }
}
