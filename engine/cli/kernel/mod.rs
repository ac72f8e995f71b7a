//! `samara kernel`: the workbench, one file per subcommand, and here what they share.

mod against;
mod bench;
mod list;
mod show;
mod test;
mod tune;

use clap::{Args, Subcommand};
use samara::gpu::{Clock, Gpu, GpuOptions};
use samara::instruments::numbers;
use samara::kernels::{Case, Entry, LIST, Tier};
use samara::{Backend, Error};

use super::{Failure, ShaderArgs, TierArgs};

/// List, test, time, tune and translate kernels
#[derive(Subcommand)]
pub enum KernelCommand {
    List(list::ListArgs),
    Test(test::TestArgs),
    Bench(bench::BenchArgs),
    Show(show::ShowArgs),
    Tune(tune::TuneArgs),
}

/// Runs the subcommand.
pub fn run(command: &KernelCommand) -> Result<(), Failure> {
    match command {
        KernelCommand::List(args) => list::run(args),
        KernelCommand::Test(args) => test::run(args),
        KernelCommand::Bench(args) => match &args.against {
            Some(folder) => against::run(args, folder),
            None => bench::run(args),
        },
        KernelCommand::Show(args) => show::run(args),
        KernelCommand::Tune(args) => tune::run(args),
    }
}

/// The kernels and cases that a command runs.
#[derive(Args)]
struct Selection {
    /// Kernel, or `all`
    #[arg(value_name = "NAME", default_value = "all")]
    name: String,
    /// Only the cases whose label contains TEXT
    #[arg(long, value_name = "TEXT")]
    case: Option<String>,
}

impl Selection {
    /// Returns the kernels, in the order of the list.
    fn entries(&self) -> samara::Result<Vec<&'static Entry>> {
        if self.name == "all" { Ok(LIST.iter().collect()) } else { Ok(vec![entry(&self.name)?]) }
    }

    /// Returns whether the label of a case is selected.
    fn matches(&self, case: &Case) -> bool {
        self.case.as_ref().is_none_or(|text| case.label.contains(text.as_str()))
    }

    /// Returns the cases to time at a tier: the matching ones that are benched, or with --case all matching ones if
    /// none is benched.
    fn timed(&self, entries: &[&Entry], tier: Tier) -> samara::Result<Vec<Case>> {
        let all = entries.iter().flat_map(|entry| entry.cases());
        let (here, elsewhere): (Vec<Case>, Vec<Case>) =
            all.filter(|case| self.matches(case)).partition(|case| case.kernel.runs_on(tier));
        if here.is_empty() && !elsewhere.is_empty() {
            return Err(Error::Input(format!("kernel `{}` has no shader for tier {tier}", self.name)));
        }
        let benched = here.iter().any(|case| case.bench);
        let cases: Vec<Case> =
            here.into_iter().filter(|case| case.bench || (!benched && self.case.is_some())).collect();
        if cases.is_empty() { Err(self.nothing()) } else { Ok(cases) }
    }

    /// Returns the error of a selection without cases.
    fn nothing(&self) -> Error {
        let Self { name, case } = self;
        let of = if name == "all" { "any kernel".to_owned() } else { format!("kernel `{name}`") };
        match case {
            Some(text) => Error::Input(format!(
                "--case `{text}`: no case of {of} has that in its label; `samara kernel list NAME` lists the cases"
            )),
            None => Error::Input(format!("no case of {of} is benched")),
        }
    }
}

/// Finds a kernel by its name.
fn entry(name: &str) -> samara::Result<&'static Entry> {
    Entry::named(name).ok_or_else(|| {
        let names: Vec<&str> = LIST.iter().map(|entry| entry.name).collect();
        Error::Input(format!("there is no kernel `{name}`; there are {}", names.join(", ")))
    })
}

/// Where kernels run.
#[derive(Args)]
struct DeviceArgs {
    /// Adapter: its number in `samara devices`, or a part of its name [default: the first, hardware before software]
    #[arg(long, value_name = "N|NAME")]
    adapter: Option<String>,
    /// Graphics API: vulkan, metal or dx12
    #[arg(long)]
    backend: Option<Backend>,
    #[command(flatten)]
    tier: TierArgs,
    #[command(flatten)]
    shaders: ShaderArgs,
}

impl DeviceArgs {
    /// Returns the tier that the flag or the environment names.
    fn tier(&self) -> samara::Result<Option<Tier>> {
        self.tier.requested()
    }

    /// Opens the adapter at a tier, or at the adapter's default one.
    fn open(&self, tier: Option<Tier>) -> samara::Result<Gpu> {
        let (adapter, backend) = (self.adapter.clone(), self.backend);
        let mut gpu = Gpu::open_with(&GpuOptions { adapter, backend, tier, ..GpuOptions::default() })?;
        gpu.set_shaders(self.shaders.read()?);
        Ok(gpu)
    }
}

/// How kernels are timed.
#[derive(Args)]
struct TimingArgs {
    /// Samples of each case; each is the mean of many dispatches
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u16).range(5..))]
    samples: u16,
    /// Clock: timestamps, pass-timestamps or wall [default: the best that the adapter has]
    #[arg(long)]
    clock: Option<Clock>,
}

impl TimingArgs {
    /// Opens the adapter with the clock of the flag.
    fn open(&self, device: &DeviceArgs) -> samara::Result<Gpu> {
        let mut gpu = device.open(device.tier()?)?;
        self.clock.map_or(Ok(()), |clock| gpu.set_clock(clock))?;
        Ok(gpu)
    }

    fn samples(&self) -> usize {
        self.samples.into()
    }
}

/// Returns a time in nanoseconds with the unit that suits its size.
fn duration(ns: f64) -> String {
    numbers::si(ns * 1e-9, "s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_selected_by_name_label_and_tier() {
        let selection = |name: &str, case: Option<&str>| Selection {
            name: name.to_owned(),
            case: case.map(str::to_owned),
        };
        let timed = |selection: &Selection, tier| {
            let cases = selection.timed(&selection.entries().unwrap(), tier);
            cases.map(|cases| cases.into_iter().map(|case| (case.label, case.bench)).collect::<Vec<_>>())
        };
        let q8 = timed(&selection("matvec", Some("qkv, T 1, 1152")), Tier::PLAIN).unwrap();
        assert!(
            q8.len() == 5 && q8.iter().all(|(label, bench)| *bench && label.starts_with("270M qkv")),
            "{q8:?}"
        );
        let tail = timed(&selection("matvec", Some("half a scale word")), Tier::PLAIN).unwrap();
        assert!(tail.len() == 5 && tail.iter().all(|(_, bench)| !bench), "{tail:?}");
        let refused = |name, case, part: &str| {
            let message = timed(&selection(name, case), Tier::PLAIN).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        };
        refused("matvec", Some("no such"), "--case `no such`: no case of kernel `matvec`");
        refused("matrix_multiply_add", None, "no shader for tier plain");
        let message = selection("matvecs", None).entries().unwrap_err().to_string();
        assert!(
            message.contains("no kernel `matvecs`") && message.contains("matvec, matvec_add"),
            "{message}"
        );
    }
}
