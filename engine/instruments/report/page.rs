//! The page around the charts. Everything is escaped except the drawings, whose texts the backend escapes.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::platforms::{Platform, Platforms};
use super::plot::Drawing;
use crate::instruments::names;
use crate::instruments::numbers::si;

/// Most rows of a table that is shown unfolded.
const OPEN: usize = 12;

/// The whole page.
pub struct Page<'a> {
    pub platforms: &'a Platforms<'a>,
    pub sections: Vec<Section>,
}

/// Charts of one kind.
pub struct Section {
    pub title: &'static str,
    pub about: &'static str,
    pub figures: Vec<Figure>,
}

/// A chart with what a reader needs beside it.
pub struct Figure {
    pub title: String,
    /// The caption of the chart, which is also its text for screen readers.
    pub caption: String,
    pub chart: Drawing,
    pub legend: Vec<(Drawing, String)>,
    pub table: Table,
}

/// The numbers of a chart.
pub struct Table {
    names: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Returns an empty table; a name that begins with `>` makes a column of numbers, aligned right.
    pub fn new(names: &[&str]) -> Self {
        Self { names: names.iter().map(|name| (*name).to_owned()).collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn push<const N: usize>(&mut self, row: [String; N]) {
        assert_eq!(row.len(), self.names.len(), "a row has a cell for each column");
        self.rows.push(row.into());
    }

    fn html(&self, about: &str) -> Markup {
        let number = |index: usize| self.names[index].starts_with('>').then_some("number");
        html! {
            div.scroll tabindex="0" role="region" aria-label={ "Table: " (about) } {
                table {
                    thead { tr {
                        @for (index, name) in self.names.iter().enumerate() {
                            th scope="col" class=[number(index)] { (name.trim_start_matches('>')) }
                        }
                    } }
                    tbody {
                        @for row in &self.rows {
                            tr { @for (index, cell) in row.iter().enumerate() { td class=[number(index)] { (cell) } } }
                        }
                    }
                }
            }
        }
    }
}

impl Page<'_> {
    /// Returns the page.
    pub fn html(&self) -> String {
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { "samara report: " (self.adapters()) }
                    style { (PreEscaped(include_str!("style.css"))) }
                }
                body {
                    header {
                        h1 { "samara report" }
                        p.lead { "OpenELM on " (self.adapters()) "." }
                        (self.warnings())
                        nav aria-label="Sections" {
                            ul {
                                li { a href="#where" { "Where it was measured" } }
                                @for section in &self.sections {
                                    li { a href={ "#" (slug(section.title)) } { (section.title) } }
                                }
                            }
                        }
                    }
                    main {
                        (self.environments())
                        @for section in &self.sections { (section.html()) }
                    }
                    footer {
                        p { "Made with " code { "samara report FILE... -o report.html" } " (samara "
                            (env!("CARGO_PKG_VERSION")) ") from the JSON of " code { "samara bench" } ", "
                            code { "profile" } ", " code { "ablate" } " and " code { "kernel bench" } "." }
                    }
                }
            }
        };
        page.into_string()
    }

    fn adapters(&self) -> String {
        self.adapters_that(|_| true)
    }

    /// Names the adapters of the platforms that are chosen, each once.
    fn adapters_that(&self, chosen: impl Fn(&Platform) -> bool) -> String {
        let mut names: Vec<&str> = Vec::new();
        for platform in self.platforms.iter().filter(|platform| chosen(platform)) {
            if !names.contains(&&*platform.environment.adapter) {
                names.push(&platform.environment.adapter);
            }
        }
        names.join(", ")
    }

    /// What a reader must know before reading any number.
    fn warnings(&self) -> Markup {
        let software = self.adapters_that(|platform| platform.environment.software);
        let replaced = self.adapters_that(|platform| !platform.environment.replaced_shaders.is_empty());
        html! {
            @if !software.is_empty() {
                p.warning role="note" {
                    strong { "Software adapter: " } (software)
                    ". It runs on the CPU; its numbers say nothing about any GPU."
                }
            }
            @if !replaced.is_empty() {
                p.warning role="note" {
                    strong { "Replaced shaders: " } (replaced) ". Its numbers are not those of samara's own kernels."
                }
            }
        }
    }

    /// A column for each platform, a row for each fact.
    fn environments(&self) -> Markup {
        let platforms: Vec<&Platform> = self.platforms.iter().collect();
        let facts: Vec<_> = platforms.iter().map(|platform| names::facts(platform.environment)).collect();
        let ceiling =
            |platform: &Platform,
             value: fn(&crate::instruments::document::Ceilings) -> Option<(f64, &'static str)>| {
                platform
                    .ceilings
                    .as_ref()
                    .and_then(value)
                    .map_or("–".to_owned(), |(value, unit)| si(value * 1e9, unit))
            };
        html! {
            section #where {
                h2 { "Where it was measured" }
                div.scroll tabindex="0" role="region" aria-label="Table: where it was measured" {
                    table.facts {
                        tbody {
                            @for index in 0..facts.first().map_or(0, |facts| facts.len()) {
                                tr {
                                    th scope="row" { (facts[0][index].0) }
                                    @for facts in &facts { td { (facts[index].1) } }
                                }
                            }
                            tr {
                                th scope="row" { "copy ceiling" }
                                @for platform in &platforms { td { (ceiling(platform, |c| Some((c.copy_gb_s, "B/s")))) } }
                            }
                            tr {
                                th scope="row" { "f32 FMA ceiling" }
                                @for platform in &platforms { td { (ceiling(platform, |c| Some((c.fma_gflop_s, "FLOP/s")))) } }
                            }
                            tr {
                                th scope="row" { "f16 matrix ceiling" }
                                @for platform in &platforms {
                                    td { (ceiling(platform, |c| c.matrix_gflop_s.map(|value| (value, "FLOP/s")))) }
                                }
                            }
                            tr {
                                th scope="row" { "files" }
                                @for platform in &platforms { td { (platform.files.join(", ")) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

impl Section {
    fn html(&self) -> Markup {
        html! {
            section id=(slug(self.title)) {
                h2 { (self.title) }
                p { (self.about) }
                @for (index, figure) in self.figures.iter().enumerate() {
                    (figure.html(&format!("{}-{}", slug(self.title), index + 1)))
                }
            }
        }
    }
}

impl Figure {
    fn html(&self, id: &str) -> Markup {
        let (title, about) = (format!("{id}-title"), format!("{id}-about"));
        html! {
            figure id=(id) {
                h3 { (self.title) }
                figcaption { (self.caption) }
                @if !self.legend.is_empty() {
                    ul.legend aria-label={ "Legend: " (self.title) } {
                        @for (key, label) in &self.legend { li { (svg(key, None)) (label) } }
                    }
                }
                div.scroll.chart tabindex="0" role="region" aria-label={ "Chart: " (self.title) } {
                    (svg(&self.chart, Some((&title, &self.title, &about, &self.caption))))
                }
                details open[self.table.rows.len() <= OPEN] {
                    summary { "The numbers" span.count { (self.table.rows.len()) " rows" } }
                    (self.table.html(&self.title))
                }
            }
        }
    }
}

/// Returns a drawing as an element, named and described, or as decoration.
fn svg(drawing: &Drawing, names: Option<(&str, &str, &str, &str)>) -> Markup {
    let Drawing { width, height, body } = drawing;
    let size = format!("0 0 {width} {height}");
    html! {
        @if let Some((title, named, about, described)) = names {
            svg xmlns="http://www.w3.org/2000/svg" width=(width) height=(height) viewBox=(size) role="img"
                aria-labelledby={ (title) " " (about) } {
                title id=(title) { (named) }
                desc id=(about) { (described) }
                (PreEscaped(body))
            }
        } @else {
            svg xmlns="http://www.w3.org/2000/svg" width=(width) height=(height) viewBox=(size) aria-hidden="true" {
                (PreEscaped(body))
            }
        }
    }
}

/// Returns a title as an anchor.
fn slug(title: &str) -> String {
    title.to_lowercase().replace(' ', "-")
}
