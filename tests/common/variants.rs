//! Every distinct module that the kernels of the list make: kernel × format × tier.

use std::collections::BTreeSet;

use samara::kernels::{Case, Choice, Dispatch, LIST, Shaders, Source, Tier};
use samara::translate::Module;

/// A kernel as one tier runs it, with the first of the cases that make the same module.
pub struct Variant {
    pub case: Case,
    pub tier: Tier,
    pub source: Source,
    pub dispatch: Dispatch,
}

impl Variant {
    fn new(case: Case, tier: Tier) -> Self {
        let source = Shaders::default().source(&case.kernel.source(tier));
        let dispatch = case.kernel.dispatch(tier, &Choice::default());
        Self { case, tier, source, dispatch }
    }

    /// Returns a name for messages.
    pub fn name(&self) -> String {
        format!("{} [{}] tier {}", self.case.kernel.name(), self.case.label, self.tier)
    }

    /// Returns the module with every override set.
    pub fn module(&self) -> samara::Result<Module> {
        Module::new(&self.source, self.tier)?.specialise(&self.dispatch.overrides)
    }

    /// Returns whether it uses matrix units: naga's own extension of WGSL, which naga cannot write as HLSL.
    pub fn needs_matrix_units(&self) -> bool {
        self.source.text.contains("enable wgpu_cooperative_matrix;")
    }
}

/// Returns the modules of every tier, including the one of adapters with subgroups but no f16.
pub fn variants() -> Vec<Variant> {
    let without_f16 = Tier { f16: false, ..Tier::SUBGROUP };
    let mut seen = BTreeSet::new();
    let tiers = Tier::ALL.into_iter().chain([without_f16]);
    let all = tiers.flat_map(|tier| {
        let cases = LIST.iter().flat_map(|entry| entry.cases());
        cases.filter(move |case| case.kernel.runs_on(tier)).map(move |case| Variant::new(case, tier))
    });
    let distinct = all.filter(|v| {
        seen.insert((v.source.text.clone(), format!("{:?}", v.dispatch.overrides), v.tier.to_string()))
    });
    let distinct: Vec<Variant> = distinct.collect();
    for entry in LIST.iter() {
        assert!(distinct.iter().any(|v| v.case.kernel.name() == entry.name), "{} is missing", entry.name);
    }
    distinct
}
