//! The device: the only module that names `wgpu`. It runs plans and must not know any layer by name.

mod adapter;
mod buffer;
mod clock;
mod compiled;
mod counters;
mod device;
mod executor;
mod faults;
mod kept;
mod pipeline;
mod timing;
mod tuning;
mod usage;

pub use adapter::{AdapterSummary, Backend, adapters};
pub use buffer::{BufferRange, pack_values};
pub(crate) use buffer::{Readback, unpack_values};
pub use clock::Clock;
pub use counters::Counters;
pub use device::{Gpu, GpuOptions, Submission, asked_tier};
pub use executor::{Bindings, Executor};
pub use kept::pipeline_folder;
pub use timing::Span;
pub use tuning::{Tuned, Tuning};
pub use wgpu;
