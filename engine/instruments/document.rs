//! What instruments write and read back: one JSON object for each run.
//!
//! Every row names the environment in which it was measured, so that rows of several files can be
//! combined. `benches/schema/` holds a JSON schema of each kind.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::gpu::{AdapterSummary, Gpu};
use crate::instruments::samples::Samples;
use crate::session::Model;

/// Version of the documents' layout.
pub const VERSION: u32 = 1;

/// The environment of a measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// Version of samara.
    pub samara: String,
    /// Commit of the program, `-dirty` if it was changed since; `unknown` outside a repository.
    pub commit: String,
    /// The adapter's name.
    pub adapter: String,
    /// The graphics API.
    pub backend: String,
    /// Driver name and version.
    pub driver: String,
    /// `discrete GPU`, `integrated GPU`, `virtual GPU`, `software` or `other`.
    pub device: String,
    /// Whether the adapter is a program on the CPU, whose speed says nothing about a GPU.
    pub software: bool,
    /// The kernel variants in use.
    pub tier: String,
    /// The clock of single dispatches: `timestamps`, `pass-timestamps` or `wall`.
    pub clock: String,
    /// Kernels and shapes that ran with tuned values.
    pub tuned: usize,
    /// Shader files that replaced built-in ones.
    pub replaced_shaders: Vec<String>,
    /// Operating system and CPU architecture.
    pub system: String,
}

impl Environment {
    /// Returns the environment of a device; `commit` is the program's.
    pub fn of(gpu: &Gpu, commit: &str) -> Self {
        let AdapterSummary { name, backend, driver, kind, software, .. } = gpu.summary().clone();
        Self {
            samara: env!("CARGO_PKG_VERSION").to_owned(),
            commit: commit.to_owned(),
            adapter: name,
            backend,
            driver,
            device: kind,
            software,
            tier: gpu.tier().to_string(),
            clock: gpu.clock().to_string(),
            tuned: gpu.tuning().len(),
            replaced_shaders: gpu.shaders().paths().map(str::to_owned).collect(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }
}

/// The ceilings of an adapter, measured on it by samara's own kernels.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ceilings {
    /// Bytes read and written per second by a stream copy, in GB/s.
    pub copy_gb_s: f64,
    /// f32 multiply-adds from registers, in GFLOP/s; a multiply-add counts two.
    pub fma_gflop_s: f64,
    /// f16 products summed in f32 on matrix units, in GFLOP/s, if the adapter has them.
    pub matrix_gflop_s: Option<f64>,
}

impl Ceilings {
    /// Returns the lower bound of the nanoseconds for some bytes and operations, and whether memory is what
    /// limits them.
    pub fn bound(&self, bytes: u64, flops: u64) -> (f64, bool) {
        let (moving, computing) = (bytes as f64 / self.copy_gb_s, flops as f64 / self.fma_gflop_s);
        (moving.max(computing), moving >= computing)
    }
}

/// What runs: a model in a format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Subject {
    /// As `-m` names it.
    pub model: String,
    /// Parameters; the head is the embedding and counts once.
    pub parameters: u64,
    /// Format of the weight matrices.
    pub format: String,
    /// Format of the KV cache.
    pub kv: String,
    /// Fusion rules that are off.
    pub rules_off: Vec<String>,
}

impl Subject {
    /// Returns the description of a model; `spec` is how it was named.
    pub fn of(model: &Model, spec: &str) -> Self {
        Self {
            model: spec.to_owned(),
            parameters: model.parameters(),
            format: model.format().to_string(),
            kv: model.kv().to_string(),
            rules_off: model.fusion().off(),
        }
    }
}

/// One run of `samara bench`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bench {
    /// [`VERSION`].
    pub version: u32,
    /// One for each model, format, adapter and test.
    pub rows: Vec<BenchRow>,
}

/// One test of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchRow {
    /// Where it ran.
    pub environment: Environment,
    /// What ran.
    pub subject: Subject,
    /// The adapter's ceilings.
    pub ceilings: Ceilings,
    /// `pp512`, `tg128` or `pp512+tg128`, with ` x 4` for a batch of four sequences and ` @ d1536` if tokens
    /// were cached before.
    pub test: String,
    /// Sequences of the batch; 1 is a single session.
    pub batch: usize,
    /// Prompt tokens.
    pub prompt: usize,
    /// Generated tokens.
    pub generated: usize,
    /// Tokens cached before the test.
    pub depth: usize,
    /// Tokens per second.
    pub tok_s: Samples,
    /// Milliseconds from the start of the test until the first new token's id was on the host.
    pub first_token_ms: Samples,
    /// Dispatches per token.
    pub dispatches_per_token: f64,
    /// Submissions per token.
    pub submits_per_token: f64,
    /// Host microseconds of CPU time per token to record and submit, without waiting.
    pub host_us_per_token: Samples,
    /// Bytes that the kernels have to read, per token: weights, live cache, activations.
    pub bytes_read_per_token: f64,
    /// Bytes that the kernels have to move per second at the median, in GB/s.
    pub moved_gb_s: f64,
    /// That share of the copy ceiling.
    pub bandwidth_share: f64,
    /// Most bytes of buffers at once, loading included.
    pub peak_bytes: u64,
}

/// One run of `samara profile`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// [`VERSION`].
    pub version: u32,
    /// Where it ran.
    pub environment: Environment,
    /// What ran.
    pub subject: Subject,
    /// The adapter's ceilings.
    pub ceilings: Ceilings,
    /// The prefill step, then the decode step.
    pub steps: Vec<StepProfile>,
}

/// One step, dispatch by dispatch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepProfile {
    /// `prefill` or `decode`.
    pub name: String,
    /// Tokens of the step.
    pub tokens: usize,
    /// Tokens cached before it.
    pub position: usize,
    /// Nanoseconds from the start of recording the step, timestamps left out, until its id was on the host.
    pub wall_ns: Samples,
    /// The dispatches in order.
    pub dispatches: Vec<DispatchProfile>,
}

/// One dispatch of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DispatchProfile {
    /// Its position in the model, `layer.3/attn/qkv`.
    pub label: String,
    /// The kernel.
    pub kernel: String,
    /// Its sizes and formats.
    pub shape: String,
    /// Nanoseconds from the end of the dispatch before to its end.
    pub ns: Samples,
    /// Bytes that it has to read.
    pub read: u64,
    /// Bytes that it writes.
    pub written: u64,
    /// Floating-point operations.
    pub flops: u64,
}

/// One run of `samara ablate`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ablation {
    /// [`VERSION`].
    pub version: u32,
    /// Where it ran.
    pub environment: Environment,
    /// What ran; the rules off are those of each row.
    pub subject: Subject,
    /// Prompt tokens of the prefill.
    pub prompt: usize,
    /// Tokens generated after it.
    pub generated: usize,
    /// Every rule on, each one off, all off, and norms as chains of elementary kernels.
    pub rows: Vec<AblationRow>,
}

/// One choice of rules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AblationRow {
    /// `all on`, `without qk-norm-rope`, `all off` and so on.
    pub name: String,
    /// Decoded tokens per second.
    pub decode_tok_s: Samples,
    /// Prompt tokens per second.
    pub prefill_tok_s: Samples,
    /// Dispatches of a decode step.
    pub decode_dispatches: usize,
    /// Dispatches of the prefill.
    pub prefill_dispatches: usize,
    /// RMSNorms of a step: 4 L + 1.
    pub norms: usize,
    /// Dispatches of a decode step that compute nothing but norms.
    pub norm_dispatches: usize,
}

/// One run of `samara kernel bench`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kernels {
    /// [`VERSION`].
    pub version: u32,
    /// Where it ran.
    pub environment: Environment,
    /// The adapter's ceilings.
    pub ceilings: Ceilings,
    /// The cases.
    pub rows: Vec<KernelRow>,
}

/// One case of one kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelRow {
    /// The kernel.
    pub kernel: String,
    /// The label of the case.
    pub case: String,
    /// Sizes and formats.
    pub shape: String,
    /// Nanoseconds of one dispatch.
    pub ns: Samples,
    /// Bytes that it has to move.
    pub bytes: u64,
    /// Floating-point operations.
    pub flops: u64,
    /// GB/s at the median.
    pub gb_s: f64,
    /// GFLOP/s at the median.
    pub gflop_s: f64,
    /// `memory` or `compute`: which ceiling applies.
    pub bound: String,
    /// Share of that ceiling.
    pub share: f64,
    /// Copies of the inputs that were cycled through, so that none stayed in a cache.
    pub copies: usize,
}

/// The times of one run of `samara generate`, to its first token and after. It is not a repeated measurement,
/// so documents of several runs are not compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// `start`.
    pub kind: String,
    /// [`VERSION`].
    pub version: u32,
    /// Where it ran.
    pub environment: Environment,
    /// What ran.
    pub subject: Subject,
    /// Milliseconds to open the device.
    pub device_ms: f64,
    /// Milliseconds to read, pack and upload the weights.
    pub weights_ms: f64,
    /// Milliseconds to compile the pipelines of a prompt and of decoding, in parallel with the weights.
    pub pipelines_ms: f64,
    /// Milliseconds from opening the model until a session was ready.
    pub load_ms: f64,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Milliseconds to the logits of the prompt's last token.
    pub prefill_ms: f64,
    /// Milliseconds from the start of the program until the first token was available; null without one.
    pub first_token_ms: Option<f64>,
    /// Generated tokens.
    pub generated: usize,
    /// Tokens per second after the first one; null without another.
    pub decode_tok_s: Option<f64>,
}

impl Start {
    /// Returns the text of the document, with a line break at its end.
    pub fn to_json(&self) -> String {
        text(self)
    }
}

/// Any document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Document {
    /// Of `samara bench`.
    Bench(Bench),
    /// Of `samara profile`.
    Profile(Profile),
    /// Of `samara ablate`.
    Ablation(Ablation),
    /// Of `samara kernel bench`.
    Kernels(Kernels),
}

impl Document {
    /// Reads a document.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Input`] for a file that is no document of this version.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        let refuse =
            |why: String| Error::Input(format!("`{}` is not a result of samara: {why}", path.display()));
        let document: Self = serde_json::from_str(&text).map_err(|e| refuse(e.to_string()))?;
        match document.version() {
            VERSION => Ok(document),
            found => Err(refuse(format!("it has version {found}, expected {VERSION}"))),
        }
    }

    fn version(&self) -> u32 {
        match self {
            Self::Bench(document) => document.version,
            Self::Profile(document) => document.version,
            Self::Ablation(document) => document.version,
            Self::Kernels(document) => document.version,
        }
    }

    /// Returns the text of the document, with a line break at its end.
    pub fn to_json(&self) -> String {
        text(self)
    }
}

fn text(document: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(document).expect("names and numbers are valid JSON");
    text.push('\n');
    text
}
