//! Uploads the rows of a checkpoint into planes on the device.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use crate::error::{Error, Result};
use crate::gpu::{BufferRange, Gpu};
use crate::model::Checkpoint;
use crate::model::layout::{Layout, WeightLayout};
use crate::quant::Format;
use crate::session::options::Progress;

/// Values that one task reads and packs, and most packed tasks that wait to be written. With one task per CPU core in
/// progress this bounds the host's memory.
const TASK_VALUES: usize = 1 << 18;
const WAITING: usize = 8;
/// Bytes written before a flush lets the device take them: bounds the staging memory.
const STAGED_BYTES: u64 = 16 << 20;

/// Planes of each part of each weight, by weight name and part number.
pub(super) type Weights = HashMap<(String, usize), Vec<BufferRange>>;

/// Rows of a weight that are read and packed together.
struct Task {
    /// Index of the weight in the checkpoint.
    index: usize,
    rows: Range<usize>,
    /// Destination: the part among all parts, and the row in it.
    part: usize,
    row: usize,
}

/// The number of a task, and its rows packed into one vector per plane.
type Packed = (usize, Result<Vec<Vec<u32>>>);

/// Reads and packs weights on every CPU core, and writes the result to the device.
pub(super) struct Uploader<'a> {
    gpu: &'a Gpu,
    checkpoint: &'a Checkpoint,
    layout: &'a Layout,
    progress: Option<&'a Progress>,
    /// Planes of each part of each weight.
    parts: Vec<Vec<BufferRange>>,
    tasks: Vec<Task>,
    done: u64,
    staged: u64,
}

impl<'a> Uploader<'a> {
    pub(super) fn new(
        gpu: &'a Gpu,
        checkpoint: &'a Checkpoint,
        layout: &'a Layout,
        progress: Option<&'a Progress>,
    ) -> Self {
        Self { gpu, checkpoint, layout, progress, parts: vec![], tasks: vec![], done: 0, staged: 0 }
    }

    pub(super) fn run(mut self) -> Result<Weights> {
        let mut names = Vec::new();
        for (index, info) in self.checkpoint.weights().iter().enumerate() {
            for (part, rows) in self.layout[&info.name].parts.iter().enumerate() {
                self.plan(index, rows.clone())?;
                names.push((info.name.clone(), part));
            }
        }
        self.upload()?;
        self.flush()?;
        Ok(names.into_iter().zip(self.parts).collect())
    }

    /// Allocates the planes of one row range of a weight and cuts it into tasks.
    fn plan(&mut self, index: usize, rows: Range<usize>) -> Result<()> {
        let name = &self.checkpoint.weights()[index].name;
        let layout = &self.layout[name];
        let storage = |words: usize| self.gpu.storage(name, (words * rows.len() * 4) as u64);
        let planes = layout.format.row_words(layout.cols).into_iter().map(storage);
        let (planes, part) = (planes.collect::<Result<Vec<_>>>()?, self.parts.len());
        let step = (TASK_VALUES / layout.cols).max(1);
        let task =
            |start| Task { index, rows: start..rows.end.min(start + step), part, row: start - rows.start };
        self.tasks.extend(rows.clone().step_by(step).map(task));
        self.parts.push(planes);
        Ok(())
    }

    /// Packs on other threads, writes on this one, and returns the error of the first task that failed.
    fn upload(&mut self) -> Result<()> {
        let (tasks, next) = (std::mem::take(&mut self.tasks), AtomicUsize::new(0));
        let (checkpoint, layout) = (self.checkpoint, self.layout);
        let (sender, packed) = sync_channel::<Packed>(WAITING);
        thread::scope(|scope| {
            for _ in 0..rayon::current_num_threads() {
                let (sender, next, tasks) = (sender.clone(), &next, &tasks);
                let take = || next.fetch_add(1, Ordering::Relaxed);
                scope.spawn(move || {
                    while let Some((number, task)) = Some(take()).and_then(|n| Some((n, tasks.get(n)?))) {
                        let packed = pack(checkpoint, layout, task);
                        let failed = packed.is_err();
                        if sender.send((number, packed)).is_err() || failed {
                            // Earlier tasks are in progress; no later one may begin.
                            next.fetch_max(tasks.len(), Ordering::Relaxed);
                        }
                    }
                });
            }
            drop(sender);
            self.write_all(&tasks, packed)
        })
    }

    fn write_all(&mut self, tasks: &[Task], packed: Receiver<Packed>) -> Result<()> {
        let mut failed: Option<(usize, Error)> = None;
        for (number, packed) in packed {
            match packed {
                Ok(planes) if failed.is_none() => self.write(&tasks[number], &planes)?,
                Ok(_) => {}
                Err(error) if failed.as_ref().is_none_or(|(first, _)| number < *first) => {
                    failed = Some((number, error));
                }
                Err(_) => {}
            }
        }
        failed.map_or(Ok(()), |(_, error)| Err(error))
    }

    fn write(&mut self, task: &Task, planes: &[Vec<u32>]) -> Result<()> {
        for (plane, words) in self.parts[task.part].iter().zip(planes) {
            let offset = (words.len() / task.rows.len() * task.row * 4) as u64;
            self.gpu.write(plane, offset, bytemuck::cast_slice(words));
            self.done += words.len() as u64 * 4;
            self.staged += words.len() as u64 * 4;
        }
        if self.staged > STAGED_BYTES {
            self.flush()?;
        }
        if let Some(progress) = self.progress {
            progress(self.done, self.layout.bytes());
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.staged = 0;
        self.gpu.flush()
    }
}

/// Reads the rows of a task and packs them into the planes of their format.
fn pack(checkpoint: &Checkpoint, layout: &Layout, task: &Task) -> Result<Vec<Vec<u32>>> {
    let name = &checkpoint.weights()[task.index].name;
    let WeightLayout { format, cols, .. } = layout[name];
    let mut values = vec![0.0; task.rows.len() * cols];
    checkpoint.read_rows(task.index, task.rows.clone(), &mut values)?;
    check_range(name, format, &values)?;
    let planes = format.pack(&values, cols);
    checkpoint.release(task.index, task.rows.clone());
    Ok(planes)
}

/// Rejects values that a format cannot represent.
fn check_range(name: &str, format: Format, values: &[f32]) -> Result<()> {
    let (top, largest) = (values.iter().fold(0.0f32, |top, value| top.max(value.abs())), format.largest());
    if top <= largest {
        return Ok(());
    }
    Err(Error::Model(format!(
        "tensor `{name}`: a value of magnitude {top} is past {largest}, the largest in {format}"
    )))
}
