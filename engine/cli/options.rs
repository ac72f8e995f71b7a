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

/// Which model runs, and how: the flags of every subcommand that loads one.
#[derive(Args)]
pub struct ModelArgs {
    /// `demo` (built in), a directory with config.json and safetensors, or `synthetic:SIZE[:SEED]`
    #[arg(short, long, default_value = "demo")]
    pub model: String,
    /// Adapter: its number in `samara devices`, or a part of its name
    #[arg(long, value_name = "N|NAME")]
    pub adapter: Option<String>,
    /// Graphics API: vulkan, metal or dx12
    #[arg(long)]
    pub backend: Option<Backend>,
    /// Weight format on the GPU: f32, f16, bf16, q8_0 or q4_0 [default: as stored]
    #[arg(long)]
    pub format: Option<Format>,
    /// Number format of the KV cache: f16, f32 or q8_0
    #[arg(long, default_value_t)]
    pub kv: KvFormat,
    /// Workgroups that share the keys of a head from 768 keys on, 1 to 16 [default: 4, and 1 in software]
    #[arg(long, value_name = "N")]
    pub splits: Option<usize>,
    /// Most tokens of one prefill step, 1 to 4096 [default: 512 on matrix units, 64 in software, between on other GPUs]
    #[arg(long, value_name = "N")]
    pub prefill_chunk: Option<usize>,
    /// Print results only: no progress, no statistics
    #[arg(short, long)]
    pub quiet: bool,
    #[command(flatten)]
    pub shaders: ShaderArgs,
    #[command(flatten)]
    pub tier: TierArgs,
}

/// Files in place of built-in shaders: a flag of the program, which every struct that needs it repeats; clap
/// hands its value down wherever it was given.
#[derive(Args, Clone)]
pub struct ShaderArgs {
    /// Run the .wgsl files below DIR in place of the built-in ones of the same relative path
    #[arg(long, value_name = "DIR", global = true)]
    pub shaders: Option<PathBuf>,
}

/// Which variants of the kernels run: a flag of the program, as the one above.
#[derive(Args, Clone, Copy)]
pub struct TierArgs {
    /// Kernel variants: plain, f16, subgroup, coop or int8 [default: SAMARA_TIER, or what the adapter offers]
    #[arg(long, value_name = "NAME", global = true)]
    pub tier: Option<Tier>,
}

impl TierArgs {
    /// Returns the tier that was asked for, by the flag or in the environment.
    pub fn asked(self) -> samara::Result<Option<Tier>> {
        self.tier.map_or_else(asked_tier, |tier| Ok(Some(tier)))
    }

    /// Opens an adapter at the tier.
    pub fn open(self, adapter: Option<&str>, backend: Option<Backend>) -> samara::Result<Gpu> {
        let (adapter, tier) = (adapter.map(str::to_owned), self.asked()?);
        Gpu::open_with(&GpuOptions { adapter, backend, tier, ..GpuOptions::default() })
    }
}

impl ShaderArgs {
    /// Reads the files; nothing is replaced without the flag.
    pub fn read(&self) -> samara::Result<Shaders> {
        match self.shaders.as_deref() {
            None => Ok(Shaders::default()),
            Some(folder) if folder.is_dir() => Shaders::read(folder),
            Some(folder) => Err(Error::Input(format!("--shaders `{}` is no directory", folder.display()))),
        }
    }
}

impl ModelArgs {
    /// Loads the model, with a progress bar where someone sees it.
    pub fn load(&self, rules: &RuleArgs) -> samara::Result<Model> {
        self.load_with(LoadOptions { fusion: rules.fusion()?, ..self.options() })
    }

    /// Returns how the flags ask for the model to be loaded, every fusion rule on; the shaders follow when it is.
    pub fn options(&self) -> LoadOptions {
        LoadOptions {
            format: self.format,
            kv: self.kv,
            splits: self.splits,
            prefill_chunk: self.prefill_chunk,
            adapter: self.adapter.clone(),
            backend: self.backend,
            tier: self.tier.tier,
            ..LoadOptions::default()
        }
    }

    /// Loads the model with other options than the flags alone give.
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
        let (shaders, progress) = (self.shaders.read()?, Some(Box::new(progress) as Progress));
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

/// Refuses a number of tokens that no submission has.
pub fn check_tokens_per_submit(tokens: Option<usize>) -> samara::Result<()> {
    match tokens {
        Some(tokens) if !(1..=MAX_TOKENS_PER_SUBMIT).contains(&tokens) => {
            Err(Error::Input(format!("--tokens-per-submit {tokens}: expected 1 to {MAX_TOKENS_PER_SUBMIT}")))
        }
        _ => Ok(()),
    }
}

/// Which fusion rules are on: the flag of the subcommands that run one choice of them.
#[derive(Args)]
pub struct RuleArgs {
    /// Switch off a fusion rule: matmul-swiglu, norm-matvec, matvec-add, add-rms-norm, qk-norm-rope-attention,
    /// qk-norm-rope or `all` of them; or rms-norm, which makes RMSNorm itself a chain of elementary kernels. May
    /// be given several times
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
            // The model is missing, which says more than that its tokenizer is.
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
    /// Read the text from FILE, every byte of it, also a last line break
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
