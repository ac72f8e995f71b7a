//! Kernels in other shading languages, translated by naga without a GPU: what `wgpu` passes to each driver,
//! without run-time checks, as samara configures it.
//!
//! It also returns the bindings and resources of a shader, and shows a mistake on its line of its file.

use std::fmt;
use std::str::FromStr;

use codespan_reporting::diagnostic::{Diagnostic, Label};
use codespan_reporting::{files::SimpleFiles, term};
use naga::back::{hlsl, msl, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, ShaderStage, Span, StorageAccess};

use crate::error::{Error, Result};
use crate::kernels::{Source, Tier};

/// A language that a kernel can be shown in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The joined WGSL itself.
    Wgsl,
    /// Vulkan's SPIR-V.
    Spirv,
    /// The Metal Shading Language.
    Msl,
    /// Direct3D's HLSL, shader model 6.2.
    Hlsl,
}

impl Target {
    const ALL: [Self; 4] = [Self::Wgsl, Self::Spirv, Self::Msl, Self::Hlsl];
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Wgsl => "wgsl",
            Self::Spirv => "spirv",
            Self::Msl => "msl",
            Self::Hlsl => "hlsl",
        })
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|target| target.to_string() == name);
        found.ok_or_else(|| Error::Input(format!("target `{name}` is none of wgsl, spirv, msl, hlsl")))
    }
}

/// A binding that a shader declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Binding {
    /// Its `@group`.
    pub group: u32,
    /// Its `@binding`.
    pub binding: u32,
    /// Whether it is `read_write`.
    pub writes: bool,
}

/// The resources that one workgroup of a shader takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Invocations of a workgroup.
    pub invocations: u32,
    /// Bytes of workgroup memory.
    pub workgroup_bytes: u32,
    /// Storage buffers bound.
    pub storage_buffers: usize,
}

/// A valid shader module with one entry point, `main`.
#[derive(Debug)]
pub struct Module {
    module: naga::Module,
    info: ModuleInfo,
}

impl Module {
    /// Parses and validates a source for a tier.
    ///
    /// # Errors
    /// [`Error::Input`] that shows the mistake on its line of its file.
    pub fn new(source: &Source, tier: Tier) -> Result<Self> {
        let module = naga::front::wgsl::parse_str(&source.text).map_err(|error| {
            let labels = error.labels().map(|(span, text)| (span, text.to_owned())).collect();
            shown(source, error.message(), labels, error.notes().map(str::to_owned).collect())
        })?;
        let mut validator = Validator::new(ValidationFlags::all(), capabilities(tier));
        let info = validator.validate(&module).map_err(|error| {
            let labels = error.spans().cloned().collect();
            let mut causes = Vec::new();
            let mut cause: &dyn std::error::Error = error.as_inner();
            while let Some(next) = cause.source() {
                causes.push(next.to_string());
                cause = next;
            }
            shown(source, &error.as_inner().to_string(), labels, causes)
        })?;
        Ok(Self { module, info })
    }

    /// Gives every `override` its value: the one given, or its default.
    ///
    /// # Errors
    /// When one has neither, or a value does not fit.
    pub fn specialise(&self, overrides: &[(&str, f64)]) -> Result<Self> {
        let constants = overrides.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
        let entry = Some((ShaderStage::Compute, "main"));
        let (module, info) =
            naga::back::pipeline_constants::process_overrides(&self.module, &self.info, entry, &constants)
                .map_err(|e| Error::Input(format!("overrides {overrides:?} do not fit the shader: {e}")))?;
        Ok(Self { module: module.into_owned(), info: info.into_owned() })
    }

    /// Returns the words of a SPIR-V 1.3 module, as for a Vulkan 1.1 device.
    ///
    /// # Errors
    /// When naga cannot write it.
    pub fn spirv(&self) -> Result<Vec<u32>> {
        self.spirv_of((1, 3))
    }

    /// Returns the words of a SPIR-V module of a version: 1.0, 1.3, 1.5 and 1.6 are for devices of Vulkan 1.0,
    /// 1.1, 1.2 and 1.3.
    ///
    /// # Errors
    /// When naga cannot write it.
    pub fn spirv_of(&self, version: (u8, u8)) -> Result<Vec<u32>> {
        let options = spv::Options {
            lang_version: version,
            bounds_check_policies: UNCHECKED,
            zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
            force_loop_bounding: false,
            emit_int_div_checks: false,
            ..Default::default()
        };
        spv::write_vec(&self.module, &self.info, &options, None).map_err(|e| refused(Target::Spirv, e))
    }

    /// Returns the text of Metal Shading Language 2.4.
    ///
    /// # Errors
    /// When naga cannot write it.
    pub fn msl(&self) -> Result<String> {
        let options = msl::Options {
            lang_version: (2, 4),
            bounds_check_policies: UNCHECKED,
            zero_initialize_workgroup_memory: false,
            force_loop_bounding: false,
            emit_int_div_checks: false,
            ..Default::default()
        };
        let pipeline = msl::PipelineOptions { entry_point: main(), ..Default::default() };
        let written = msl::write_string(&self.module, &self.info, &options, &pipeline);
        Ok(written.map_err(|e| refused(Target::Msl, e))?.0)
    }

    /// Returns the text of HLSL for shader model 6.2.
    ///
    /// # Errors
    /// When naga cannot write it: it has no cooperative matrices there.
    pub fn hlsl(&self) -> Result<String> {
        let options = hlsl::Options {
            shader_model: hlsl::ShaderModel::V6_2,
            zero_initialize_workgroup_memory: false,
            restrict_indexing: false,
            force_loop_bounding: false,
            ..Default::default()
        };
        let pipeline = hlsl::PipelineOptions { entry_point: main() };
        let mut text = String::new();
        let mut writer = hlsl::Writer::new(&mut text, &options, &pipeline);
        writer.write(&self.module, &self.info, None).map_err(|e| refused(Target::Hlsl, e))?;
        Ok(text)
    }

    /// Returns every binding in order.
    pub fn bindings(&self) -> Vec<Binding> {
        let binding = |variable: &naga::GlobalVariable| {
            let at = variable.binding?;
            let writes = matches!(variable.space, AddressSpace::Storage { access } if access.contains(StorageAccess::STORE));
            Some(Binding { group: at.group, binding: at.binding, writes })
        };
        let mut found: Vec<_> = self.module.global_variables.iter().filter_map(|(_, v)| binding(v)).collect();
        found.sort_unstable();
        found
    }

    /// Returns the resources that a workgroup takes.
    ///
    /// # Errors
    /// When the module is not [specialised](Self::specialise), or has not one entry point.
    pub fn footprint(&self) -> Result<Footprint> {
        let [main] = &self.module.entry_points[..] else {
            return Err(Error::Input("a kernel has one entry point, `main`".into()));
        };
        let mut layouter = naga::proc::Layouter::default();
        layouter.update(self.module.to_ctx()).map_err(|e| Error::Input(e.to_string()))?;
        let globals = || self.module.global_variables.iter().map(|(_, variable)| variable);
        let workgroup = globals().filter(|v| v.space == AddressSpace::WorkGroup);
        Ok(Footprint {
            invocations: main.workgroup_size.iter().product(),
            workgroup_bytes: workgroup.map(|v| layouter[v.ty].size).sum(),
            storage_buffers: globals().filter(|v| matches!(v.space, AddressSpace::Storage { .. })).count(),
        })
    }
}

/// Indices are not checked.
const UNCHECKED: BoundsCheckPolicies = BoundsCheckPolicies {
    index: BoundsCheckPolicy::Unchecked,
    buffer: BoundsCheckPolicy::Unchecked,
    image_load: BoundsCheckPolicy::Unchecked,
    binding_array: BoundsCheckPolicy::Unchecked,
};

fn main() -> Option<(ShaderStage, String)> {
    Some((ShaderStage::Compute, "main".to_owned()))
}

fn refused(target: Target, error: impl fmt::Display) -> Error {
    Error::Unsupported(format!("the shader cannot be written as {target}: {error}"))
}

/// What a tier allows in a shader.
fn capabilities(tier: Tier) -> Capabilities {
    let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    capabilities.set(Capabilities::SHADER_FLOAT16, tier.f16);
    capabilities.set(Capabilities::SUBGROUP, tier.subgroup);
    capabilities.set(Capabilities::COOPERATIVE_MATRIX, tier.coop.is_some());
    capabilities
}

/// Returns an error that shows a mistake with its line and column in its file.
fn shown(source: &Source, message: &str, labels: Vec<(Span, String)>, notes: Vec<String>) -> Error {
    let mut files = SimpleFiles::new();
    for (name, text) in &source.files {
        files.add(name.as_str(), text.as_str());
    }
    let labels = labels.into_iter().filter_map(|(span, text)| {
        let (file, range) = source.locate(span.to_range()?);
        Some(Label::primary(file, range).with_message(text))
    });
    let diagnostic =
        Diagnostic::error().with_message(message).with_labels(labels.collect()).with_notes(notes);
    let text = term::emit_into_string(&term::Config::default(), &files, &diagnostic);
    Error::Input(
        text.map_or_else(
            |_| message.to_owned(),
            |text| text.trim_start_matches("error: ").trim_end().to_owned(),
        ),
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::kernels::{Entry, Shaders};

    /// The error message for `add.wgsl` with a change in its text.
    fn message(from: &str, to: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let add = Entry::named("add").unwrap();
        let fragments = add.cases()[0].kernel.source(Tier::PLAIN);
        assert!(fragments[0].text.contains(from));
        fs::write(folder.path().join("add.wgsl"), fragments[0].text.replace(from, to)).unwrap();
        let source = Shaders::read(folder.path()).unwrap().source(&fragments);
        Module::new(&source, Tier::PLAIN).unwrap_err().to_string()
    }

    #[test]
    fn a_mistake_is_shown_on_its_line_of_its_file() {
        let text = message("a[id.x] + b[id.x]", "a[id.x] + c[id.x]");
        for part in
            ["no definition in scope for identifier: `c`", "/add.wgsl:20:", "out[id.x] = a[id.x] + c[id.x];"]
        {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_mistake_that_only_validation_finds_is_shown_too() {
        let text = message("var<storage, read_write> out", "var<storage, read> out");
        assert!(text.contains("/add.wgsl:20:"), "{text}");
    }

    #[test]
    fn targets_parse_back_and_unknown_ones_are_refused() {
        for target in Target::ALL {
            assert_eq!(target.to_string().parse::<Target>().unwrap(), target);
        }
        assert!("glsl".parse::<Target>().unwrap_err().to_string().contains("`glsl`"));
    }
}
