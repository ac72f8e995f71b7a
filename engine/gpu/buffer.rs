//! Buffers and the bytes in them.

use std::sync::Arc;

use half::{bf16, f16};

use crate::error::{Error, Result};
use crate::gpu::counters::Counters;
use crate::gpu::device::{Gpu, Submission};
use crate::gpu::usage::Share;
use crate::quant::{Format, q8_0_rows};
use crate::tensor::{DType, TensorDesc};

/// A part of a buffer that holds one tensor, or one plane of a weight.
#[derive(Clone, Debug)]
pub struct BufferRange {
    pub(super) buffer: wgpu::Buffer,
    _share: Arc<Share>,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

impl BufferRange {
    /// Returns its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns `bytes` of it from `offset` on.
    ///
    /// # Panics
    /// When they are outside.
    pub fn slice(&self, offset: u64, bytes: u64) -> Self {
        assert!(
            offset + bytes <= self.bytes,
            "a slice of {bytes} bytes at {offset} leaves {} bytes",
            self.bytes
        );
        Self { offset: self.offset + offset, bytes, ..self.clone() }
    }

    pub(super) fn binding(&self) -> wgpu::BindingResource<'_> {
        wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: &self.buffer,
            offset: self.offset,
            size: std::num::NonZeroU64::new(self.bytes),
        })
    }
}

impl Gpu {
    /// Creates a separate storage buffer for one tensor or plane. New memory is zero.
    ///
    /// # Errors
    /// When it is larger than a buffer or binding may be, or the device is out of memory.
    pub fn storage(&self, label: &str, bytes: u64) -> Result<BufferRange> {
        let summary = self.summary();
        let limit = summary.max_buffer_bytes.min(summary.max_binding_bytes);
        if bytes > limit {
            return Err(Error::Unsupported(format!(
                "`{label}` takes {bytes} bytes; adapter `{}` binds at most {limit}",
                summary.name
            )));
        }
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let range = self.buffer(label, bytes.next_multiple_of(4), usage);
        if pollster::block_on(scope.pop()).is_some() {
            return Err(Error::Gpu(format!(
                "adapter `{}` is out of memory: `{label}` takes {bytes} bytes more",
                summary.name
            )));
        }
        Ok(range)
    }

    /// Creates a buffer and counts its bytes.
    pub(super) fn buffer(&self, label: &str, bytes: u64, usage: wgpu::BufferUsages) -> BufferRange {
        let descriptor =
            wgpu::BufferDescriptor { label: Some(label), size: bytes, usage, mapped_at_creation: false };
        let buffer = self.device.create_buffer(&descriptor);
        BufferRange { buffer, _share: Share::new(&self.usage, bytes), offset: 0, bytes }
    }

    /// Writes words into a range, `offset` bytes from its start.
    pub fn write(&self, range: &BufferRange, offset: u64, bytes: &[u8]) {
        debug_assert!(offset + bytes.len() as u64 <= range.bytes);
        self.queue.write_buffer(&range.buffer, range.offset + offset, bytes);
    }

    /// Copies ranges, each to one of the same size in another buffer, and does not wait.
    pub fn copy(&self, ranges: impl Iterator<Item = (BufferRange, BufferRange)>) {
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for (from, to) in ranges {
            debug_assert_eq!(from.bytes, to.bytes);
            encoder.copy_buffer_to_buffer(&from.buffer, from.offset, &to.buffer, to.offset, from.bytes);
        }
        self.submit(encoder, Counters::submission(0, 0));
    }

    /// Reads a range back; waits for everything submitted before.
    ///
    /// # Errors
    /// When the device was lost or is out of memory.
    pub fn read(&self, range: &BufferRange) -> Result<Vec<u8>> {
        Readback::new(self, range.bytes).read(self, range, <[u8]>::to_vec)
    }
}

/// A buffer that the host can read, kept for many read-backs.
#[derive(Debug)]
pub(crate) struct Readback {
    whole: BufferRange,
}

impl Readback {
    /// Creates a buffer for at most `bytes`.
    pub fn new(gpu: &Gpu, bytes: u64) -> Self {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        Self { whole: gpu.buffer("readback", bytes, usage) }
    }

    /// Records the copy of ranges, one after another, to the start of the buffer.
    pub(super) fn copy(&self, encoder: &mut wgpu::CommandEncoder, ranges: &[&BufferRange]) {
        let mut at = 0;
        for range in ranges {
            encoder.copy_buffer_to_buffer(&range.buffer, range.offset, &self.whole.buffer, at, range.bytes);
            at += range.bytes;
        }
    }

    /// Copies a range, waits for it and passes its bytes to `take`.
    ///
    /// # Errors
    /// When the device was lost.
    pub fn read<R>(&self, gpu: &Gpu, range: &BufferRange, take: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        self.copy(&mut encoder, &[range]);
        let submission = gpu.submit(encoder, Counters::submission(0, 0));
        self.map(gpu, &submission, range.bytes, take)
    }

    /// Waits for the submission that copied and passes the first `bytes` of the buffer to `take`.
    ///
    /// # Errors
    /// When the device was lost.
    pub fn map<R>(
        &self,
        gpu: &Gpu,
        submission: &Submission,
        bytes: u64,
        take: impl FnOnce(&[u8]) -> R,
    ) -> Result<R> {
        let buffer = &self.whole.buffer;
        let slice = buffer.slice(..bytes);
        slice.map_async(wgpu::MapMode::Read, |_| ());
        let waited = gpu.wait_for(submission);
        // Unmapped even after an error, because the next read-back needs the buffer.
        let taken = slice.get_mapped_range().map(|view| take(&view));
        if taken.is_ok() {
            buffer.unmap();
        }
        waited?;
        taken.map_err(|e| Error::Gpu(format!("a read-back failed: {e}")))
    }
}

/// Converts the values of a tensor to its bytes on the device, one vector per plane.
pub fn pack_values(desc: &TensorDesc, values: &[f64]) -> Vec<Vec<u8>> {
    let bytes = |words: Vec<u32>| bytemuck::cast_slice(&words).to_vec();
    match (desc.dtype, Format::of(desc.dtype)) {
        (DType::U32, _) => vec![bytes(values.iter().map(|&v| v as u32).collect())],
        (DType::F32, _) => vec![bytes(values.iter().map(|&v| (v as f32).to_bits()).collect())],
        (DType::F16, _) => vec![values.iter().flat_map(|&v| f16::from_f64(v).to_le_bytes()).collect()],
        (DType::Bf16, _) => vec![values.iter().flat_map(|&v| bf16::from_f64(v).to_le_bytes()).collect()],
        (_, format) => {
            let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
            let cols = desc.shape.last();
            let planes =
                format.map_or_else(|| vec![q8_0_rows::pack(&values, cols)], |f| f.pack(&values, cols));
            planes.into_iter().map(bytes).collect()
        }
    }
}

/// Converts the bytes of a tensor that kernels write to values.
pub(crate) fn unpack_values(desc: &TensorDesc, bytes: &[u8]) -> Vec<f64> {
    let words = || bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let halves = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match desc.dtype {
        DType::U32 => words().map(f64::from).collect(),
        DType::F32 => words().map(|w| f64::from(f32::from_bits(w))).collect(),
        DType::F16 => halves().map(|h| f16::from_bits(h).to_f64()).collect(),
        DType::Bf16 => halves().map(|h| bf16::from_bits(h).to_f64()).collect(),
        DType::Q8_0Rows => {
            let values = q8_0_rows::unpack(&words().collect::<Vec<_>>(), desc.shape.last());
            values.into_iter().map(f64::from).collect()
        }
        DType::Q8_0 | DType::Q4_0 => unreachable!("no kernel writes a quantized weight"),
    }
}
