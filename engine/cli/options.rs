//! Groups of flags that several subcommands share.

use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::ProgressBar;
use samara::gpu::{Gpu, GpuOptions, asked_tier, pipeline_folder};
use samara::kernels::{Shaders, Tier};
use samara::model::{Checkpoint, demo};
use samara::quant::Format;
use samara::session::{MAX_TOKENS_PER_SUBMIT, Progress};
use samara::tokenizer::Tokenizer;
use samara::{Backend, Error, Fusion, KvFormat, LoadOptions, Model};

use super::files;
use super::messages::{bar, warn_of_software};

/// Which model runs, where and how: the flags of every subcommand that loads one.
#[derive(Args)]
pub struct ModelArgs {
    /// `demo` (built in), a directory in Hugging Face layout, or `synthetic:SIZE[:SEED]`
    ///
    /// `synthetic:SIZE` makes deterministic weights of a published size (270M, 450M, 1.1B or 3B) in memory, so that a
    /// full-size model runs without a download; its text is noise.
    #[arg(short, long, default_value = "demo")]
    pub model: String,
    /// Adapter: its number in `samara devices`, or a part of its name [default: the first, hardware before software]
    #[arg(long, value_name = "N|NAME")]
    pub adapter: Option<String>,
    /// Weight format on the GPU: f32, f16, bf16, q8_0 or q4_0 [default: as the checkpoint stores the weights]
    ///
    /// With q4_0 the embedding, which is also the head, is q8_0. With f16, a tensor that would overflow keeps its stored
    /// format (with a warning); for the other formats it is an error that names the tensor. Norms, residual stream,
    /// softmax and accumulation are always f32. Weights larger than the adapter's largest binding are split.
    #[arg(long)]
    pub format: Option<Format>,
    #[command(flatten)]
    pub run: RunArgs,
    /// Print results only: no progress, no statistics
    #[arg(short, long)]
    pub quiet: bool,
}

/// How any model runs.
#[derive(Args, Clone)]
pub struct RunArgs {
    /// Graphics API: vulkan, metal or dx12
    #[arg(long)]
    pub backend: Option<Backend>,
    /// Number format of the KV cache: f16, f32 or q8_0
    #[arg(long, default_value_t)]
    pub kv: KvFormat,
    /// Workgroups that share the keys of a head from 768 cached keys on, 1 to 16 [default: 4, in software 1]
    #[arg(long, value_name = "N")]
    pub splits: Option<usize>,
    /// Most prompt tokens in one step, 1 to 4096 [default: 512 on matrix units, 64 in software, else by model size]
    #[arg(long, value_name = "N")]
    pub prefill_chunk: Option<usize>,
    #[command(flatten)]
    pub shaders: ShaderArgs,
    #[command(flatten)]
    pub tier: TierArgs,
}

/// Files that replace built-in shaders: a flag of the program, which every struct that needs it repeats; clap passes
/// its value down wherever it was given.
#[derive(Args, Clone)]
pub struct ShaderArgs {
    /// Run the .wgsl files below DIR instead of the built-in ones of the same relative path
    #[arg(long, value_name = "DIR", global = true)]
    pub shaders: Option<PathBuf>,
}

/// Which variants of the kernels run: a flag of the program, like the one above.
#[derive(Args, Clone, Copy)]
pub struct TierArgs {
    /// Kernel variants: plain, f16, subgroup, coop or int8 [default: coop on NVIDIA, else the best without rounding]
    ///
    /// plain keeps to WebGPU's default limits, f16 adds 16-bit arithmetic, subgroup the operations of subgroups. The other
    /// two also change results a little: coop computes prompts on matrix units, from factors rounded to f16; int8
    /// multiplies q8_0 and q4_0 weights as integers, with activations rounded to 8 bits (not on Metal). SAMARA_TIER in the
    /// environment is the same; the flag wins.
    #[arg(long, value_name = "NAME", global = true)]
    pub tier: Option<Tier>,
}

impl TierArgs {
    /// Returns the tier that the flag or the environment names.
    pub fn requested(self) -> samara::Result<Option<Tier>> {
        self.tier.map_or_else(asked_tier, |tier| Ok(Some(tier)))
    }

    /// Opens an adapter at the tier.
    pub fn open(self, adapter: Option<&str>, backend: Option<Backend>) -> samara::Result<Gpu> {
        let (adapter, tier) = (adapter.map(str::to_owned), self.requested()?);
        Gpu::open_with(&GpuOptions { adapter, backend, tier, ..GpuOptions::default() })
    }
}

impl ShaderArgs {
    /// Reads the files; without the flag there are none.
    pub fn read(&self) -> samara::Result<Shaders> {
        match self.shaders.as_deref() {
            None => Ok(Shaders::default()),
            Some(folder) if folder.is_dir() => Shaders::read(folder),
            Some(folder) => Err(Error::Input(format!("--shaders `{}` is not a directory", folder.display()))),
        }
    }
}

impl ModelArgs {
    /// Loads the model, with a progress bar on a terminal.
    pub fn load(&self, rules: &RuleArgs) -> samara::Result<Model> {
        self.load_with(LoadOptions { fusion: rules.fusion()?, ..self.options() })
    }

    /// Returns the options that the flags give, with every fusion rule on and the built-in shaders.
    pub fn options(&self) -> LoadOptions {
        LoadOptions {
            format: self.format,
            adapter: self.adapter.clone(),
            backend: self.run.backend,
            kv: self.run.kv,
            splits: self.run.splits,
            prefill_chunk: self.run.prefill_chunk,
            tier: self.run.tier.tier,
            ..LoadOptions::default()
        }
    }

    /// Loads the model with these options instead of those of the flags.
    pub fn load_with(&self, options: LoadOptions) -> samara::Result<Model> {
        let model = self.load_from(&self.model, None, options)?;
        if !self.quiet {
            warn_of_software(model.adapter());
        }
        Ok(model)
    }

    /// Loads another model onto the device of the first.
    pub fn load_beside(&self, model: &Model, spec: &str, rules: &RuleArgs) -> samara::Result<Model> {
        self.load_from(spec, Some(model), LoadOptions { fusion: rules.fusion()?, ..self.options() })
    }

    fn load_from(&self, spec: &str, beside: Option<&Model>, options: LoadOptions) -> samara::Result<Model> {
        let bar = self.bar("loading", "{bytes} of {total_bytes}");
        let shown = bar.clone();
        let progress = move |done, total| {
            shown.set_length(total);
            shown.set_position(done);
        };
        let (shaders, progress) = (self.run.shaders.read()?, Some(Box::new(progress) as Progress));
        let options = LoadOptions { shaders, progress, pipelines: pipeline_folder()?, ..options };
        let model = match beside {
            Some(model) => model.load_beside(spec, options),
            None => Model::load(spec, options),
        };
        bar.finish_and_clear();
        model
    }

    pub fn bar(&self, label: &'static str, counts: &str) -> ProgressBar {
        bar(self.quiet, label, counts)
    }
}

/// How many tokens a submission holds: the flag of the subcommands that decode one sequence.
#[derive(Args)]
pub struct SubmitArgs {
    /// Tokens per submission, 1 to 32; the text is the same for every N [default: adaptive, about 40 ms of tokens]
    #[arg(long, value_name = "N")]
    tokens_per_submit: Option<usize>,
}

impl SubmitArgs {
    /// Returns the number of tokens, if one is given.
    pub fn tokens(&self) -> samara::Result<Option<usize>> {
        match self.tokens_per_submit {
            Some(tokens) if !(1..=MAX_TOKENS_PER_SUBMIT).contains(&tokens) => Err(Error::Input(format!(
                "--tokens-per-submit {tokens}: expected 1 to {MAX_TOKENS_PER_SUBMIT}"
            ))),
            tokens => Ok(tokens),
        }
    }
}

/// Which fusion rules are on: the flag of the subcommands that run one choice of them.
#[derive(Args)]
pub struct RuleArgs {
    /// Switch off a fusion rule (may be given several times): matmul-swiglu, norm-matvec, matvec-add, add-rms-norm,
    /// qk-norm-rope-attention, qk-norm-rope, `all` of these, or rms-norm
    ///
    /// `all` does not include rms-norm, which makes RMSNorm itself a chain of elementary kernels: name it explicitly.
    /// With it off, every rule that fuses a norm is off too.
    #[arg(long, value_name = "RULE")]
    pub no_fuse: Vec<String>,
}

impl RuleArgs {
    /// Returns the rules that are on.
    pub fn fusion(&self) -> samara::Result<Fusion> {
        self.no_fuse.iter().try_fold(Fusion::all(), |fusion, rule| fusion.without(rule))
    }
}

/// Where the tokenizer comes from: a flag of the subcommands that read or print text.
#[derive(Args)]
pub struct TokenizerArgs {
    /// A tokenizer.json [default: the one in the model's directory]
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
}

impl TokenizerArgs {
    /// Loads the tokenizer for the model `spec`.
    pub fn load(&self, spec: &str) -> samara::Result<Tokenizer> {
        if let Some(file) = &self.tokenizer {
            return Tokenizer::from_file(file);
        }
        if spec == "demo" {
            return Tokenizer::from_bytes(demo::TOKENIZER, "the demo model's tokenizer");
        }
        let missing = |what: &str| Error::Input(format!("{what} has no tokenizer: give --tokenizer FILE"));
        if spec.starts_with("synthetic:") {
            return Err(missing(&format!("the model `{spec}`")));
        }
        let directory = Path::new(spec);
        if !directory.is_dir() {
            // That the model is missing says more than that its tokenizer is.
            Checkpoint::source(spec)?;
        }
        let file = directory.join("tokenizer.json");
        if !file.exists() {
            return Err(missing(&format!("the model directory `{spec}`")));
        }
        Tokenizer::from_file(file)
    }
}

/// Text from an argument, a file or standard input.
#[derive(Args)]
pub struct TextArgs {
    /// The text; without it and without -f, standard input is read to its end
    #[arg(value_name = "PROMPT", conflicts_with = "file")]
    pub text: Option<String>,
    /// Read the text from FILE, unchanged, including a final line break
    #[arg(short, long)]
    pub file: Option<PathBuf>,
}

impl TextArgs {
    /// Returns the text.
    pub fn read(self) -> samara::Result<String> {
        match (self.text, self.file) {
            (Some(text), _) => Ok(text),
            (None, Some(file)) => files::read_text(&file),
            (None, None) => files::read_stdin(),
        }
    }
}
