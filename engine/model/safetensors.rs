//! One safetensors file: its header, checked, and its bytes, mapped into memory or owned.
//!
//! The `safetensors` crate checks that the tensors follow each other without gap or overlap and that
//! offsets agree with shape and element type. What surrounds the header is checked here.

use std::borrow::Cow;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::error::{Error, Result};
use crate::tensor::DType;

/// Longest header that is parsed; the format's own limit.
const MAX_HEADER: u64 = 100_000_000;

enum Bytes {
    Mapped(Mmap),
    Owned(Cow<'static, [u8]>),
}

/// An open file and the offsets of its tensors.
pub(super) struct TensorFile {
    path: PathBuf,
    bytes: Bytes,
    metadata: Metadata,
    data_start: usize,
}

impl TensorFile {
    /// Maps a file and reads its header.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
        // SAFETY: the map is private to this value, read only, and never handed out as anything but
        // bytes. A process that truncates the file meanwhile would crash this one, as with any map.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map", path, e))?;
        Self::new(path, Bytes::Mapped(map))
    }

    /// Reads the header of a file that is in memory; `path` is for messages.
    pub(super) fn from_bytes(path: &Path, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self> {
        Self::new(path, Bytes::Owned(bytes.into()))
    }

    fn new(path: &Path, bytes: Bytes) -> Result<Self> {
        let (metadata, data_start) = read_header(bytes.as_slice()).map_err(|what| {
            Error::Model(format!("`{}` is not a valid safetensors file: {what}", path.display()))
        })?;
        Ok(Self { path: path.to_owned(), bytes, metadata, data_start })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns every tensor with its name in the file, in no particular order.
    pub(super) fn tensors(&self) -> impl Iterator<Item = (String, &TensorInfo)> {
        self.metadata.tensors().into_iter()
    }

    /// Returns bytes of the data part, which [`TensorInfo::data_offsets`] count from its start.
    pub(super) fn data(&self, range: Range<usize>) -> &[u8] {
        &self.bytes.as_slice()[self.data_start..][range]
    }

    /// Lets the system reclaim the memory of these bytes; reading them again reads the file again.
    pub(super) fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Bytes::Mapped(map) = &self.bytes {
            let start = self.data_start + range.start;
            // SAFETY: the map is shared with the file and never written, so a dropped page comes back
            // with the same bytes. A failure only costs memory.
            let _ =
                unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, range.len()) };
        }
    }
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// Returns the header and the offset of the data, or what is wrong with the file.
fn read_header(bytes: &[u8]) -> std::result::Result<(Metadata, usize), String> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(format!("it has {} bytes, fewer than the 8 of a header length", bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER.min(rest.len() as u64) {
        let left = rest.len();
        return Err(format!("its header length is {length}, but {left} bytes follow (limit {MAX_HEADER})"));
    }
    let (header, data) = rest.split_at(length as usize);
    let metadata: Metadata = serde_json::from_slice(header).map_err(|e| format!("its header: {e}"))?;
    if metadata.data_len() != data.len() {
        let (wanted, found) = (metadata.data_len(), data.len());
        return Err(format!("its header describes {wanted} bytes of data, but {found} follow"));
    }
    Ok((metadata, 8 + header.len()))
}

/// Returns the element type of a weight; `None` for types that no weight has.
pub(super) fn float_type(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::Bf16),
        _ => None,
    }
}

/// Returns the bytes of one value.
pub(super) fn width(dtype: DType) -> usize {
    if dtype == DType::F32 { 4 } else { 2 }
}

/// Converts little-endian floats, at any alignment, to f32; every value is kept exactly.
pub(super) fn widen(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    fn each<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
        for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
            *out = value(*bytes);
        }
    }
    match dtype {
        DType::F32 => each(bytes, out, f32::from_le_bytes),
        DType::F16 => each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        DType::Bf16 => each(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        other => unreachable!("{other} is no type of a stored weight"),
    }
}

/// Converts values to little-endian floats, rounding to nearest even.
pub(super) fn narrow(dtype: DType, values: &[f32], out: &mut [u8]) {
    fn each<const N: usize>(values: &[f32], out: &mut [u8], bytes: impl Fn(f32) -> [u8; N]) {
        for (out, value) in out.as_chunks_mut::<N>().0.iter_mut().zip(values) {
            *out = bytes(*value);
        }
    }
    match dtype {
        DType::F32 => each(values, out, f32::to_le_bytes),
        DType::F16 => each(values, out, |v| f16::from_f32(v).to_le_bytes()),
        DType::Bf16 => each(values, out, |v| bf16::from_f32(v).to_le_bytes()),
        other => unreachable!("{other} is no type of a stored weight"),
    }
}
