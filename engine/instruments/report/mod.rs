//! One HTML page out of the results of any number of runs.
//!
//! The page is a single file: its charts are inline SVG, its style is inline, and there is no script and
//! nothing to fetch. Everything that a result holds, names included, is escaped.

mod ablation;
mod bars;
mod depth;
mod layers;
mod page;
mod platforms;
mod plot;
mod roofline;
mod throughput;

use crate::instruments::document::{Ablation, Bench, Document, Kernels, Profile};
use page::{Page, Section};
use platforms::Platforms;

/// Returns the page of documents, each with the name of its file; a section whose documents are missing is
/// left out.
pub fn report(documents: &[(String, Document)]) -> String {
    let platforms = Platforms::of(documents);
    let input = Input::of(documents);
    let sections = [
        Section {
            title: "Throughput",
            about: "Tokens per second: the bar is the median, the whisker spans the least and the largest sample.",
            figures: throughput::figures(&input.benches, &platforms),
        },
        Section {
            title: "Throughput against depth",
            about: "Tokens per second after tokens that are already cached: what attention over a longer cache costs.",
            figures: depth::figures(&input.benches, &platforms),
        },
        Section {
            title: "Roofline",
            about: "Operations per second of each kernel against its operations per byte moved, below the \
                ceilings that were measured on the same adapter.",
            figures: roofline::figures(&input.profiles, &input.kernels, &platforms),
        },
        Section {
            title: "Time by layer",
            about: "Where the time of a step goes. OpenELM gives later layers more heads and wider FFNs.",
            figures: layers::figures(&input.profiles, &platforms),
        },
        Section {
            title: "Ablation",
            about: "The gain of each fusion rule: the same model with rules switched off.",
            figures: ablation::figures(&input.ablations, &platforms),
        },
    ];
    Page { platforms: &platforms, sections: sections.into_iter().filter(|s| !s.figures.is_empty()).collect() }
        .html()
}

/// The documents by kind.
#[derive(Default)]
struct Input<'a> {
    benches: Vec<&'a Bench>,
    profiles: Vec<&'a Profile>,
    ablations: Vec<&'a Ablation>,
    kernels: Vec<&'a Kernels>,
}

impl<'a> Input<'a> {
    fn of(documents: &'a [(String, Document)]) -> Self {
        let mut input = Self::default();
        for (_, document) in documents {
            match document {
                Document::Bench(bench) => input.benches.push(bench),
                Document::Profile(profile) => input.profiles.push(profile),
                Document::Ablation(ablation) => input.ablations.push(ablation),
                Document::Kernels(kernels) => input.kernels.push(kernels),
            }
        }
        input
    }
}
