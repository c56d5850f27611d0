//! A figure: what a study found, as a page of its own and as a part of a run's report.
//!
//! ```text
//! OUT/index.html     the page
//! OUT/figure.json    the same as data, for the report
//! OUT/...            pictures, and the study's numbers as CSV or JSON
//! ```
//!
//! Studies describe a figure in words, pictures and tables; how it looks is decided here alone.

use std::io;
use std::path::{Component, Path, PathBuf};

use maud::{Markup, PreEscaped, html};
use serde::{Deserialize, Serialize};

use super::plot::{self, Line, Plot};
use super::{csv, facts, page, top9};
use crate::disk::write_atomic;
use crate::picture::Image;
use crate::study::{Facts, Study};

/// Where a figure's data are.
pub const FILE: &str = "figure.json";

/// How values around zero are shown, for [`Figure::how`]: "Projections: ...". See [`crate::picture`].
pub fn contrast_of(what: &str, scale_for: &str) -> String {
    format!(
        "{what}: zero is mid-grey, one scale for {scale_for}, symmetric about zero, full at the 99.5 % \
         percentile of the values that are not zero."
    )
}

/// How projections beside photographs are shown, for [`Figure::how`].
pub fn projection_contrast() -> String {
    contrast_of("Projections", "each picture") + " Photographs are as in the file."
}

/// The enlarged view of a picture; for the end of a page with figures.
const SCRIPT: &str = include_str!("figure.js");

/// What a study found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The study's name, as in `zfnet study NAME`.
    pub study: String,
    /// The page's title.
    pub title: String,
    /// What of the paper it repeats: "Figure 7".
    pub paper: String,
    /// Network, checkpoint, data, seed: what it was made with, as name and value.
    pub facts: Facts,
    /// How it was made and how to read it, and what holds for all of its pictures: paragraphs.
    pub how: Vec<String>,
    /// In the order of the page.
    pub sections: Vec<Section>,
    /// Files of numbers beside the page: name, and what they hold.
    pub files: Vec<(String, String)>,
}

/// A part of a figure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Section {
    /// Its heading.
    pub title: String,
    /// Paragraphs under it.
    pub text: Vec<String>,
    /// What is wrong, in words, set off from the text.
    pub alarms: Vec<String>,
    /// Side by side, as many in a row as fit.
    pub pictures: Vec<Picture>,
    /// Below the pictures.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grids: Vec<Grid>,
    /// Below them.
    pub tables: Vec<Table>,
}

/// Pictures in rows and columns that have names, scrolled where the page is too narrow.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Grid {
    /// What it shows.
    pub caption: String,
    /// Names of its columns; the first is that of the rows' names.
    pub head: Vec<String>,
    /// A name, and a cell for each of the other columns.
    pub rows: Vec<(String, Vec<Cell>)>,
}

/// A cell of a [`Grid`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// None where there is nothing to show.
    pub picture: Option<Picture>,
    /// Under it: a few words or numbers, line by line.
    pub text: Vec<String>,
}

/// A picture with its caption.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Picture {
    /// Path relative to the figure's folder.
    pub file: String,
    /// Width and height in pixels of the file.
    pub size: [usize; 2],
    /// What it shows, in a few words: the caption's beginning, and the text for who cannot see it.
    pub title: String,
    /// How it was made, unless that is the same for all of the figure.
    pub method: String,
    /// What its brightness or colour means, likewise.
    pub contrast: String,
    /// The image it was made from; none if it is of no single image.
    pub image: String,
    /// x0, y0, x1, y1 in pixels of the original file, of the part that is shown or meant.
    pub area: Option<[f64; 4]>,
    /// Whether it takes the whole width: plots, and sheets of many tiles.
    pub wide: bool,
}

/// Numbers in rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// What it holds, in which unit.
    pub caption: String,
    /// Names of its columns.
    pub head: Vec<String>,
    /// As many cells as columns in each; the first is the row's name.
    pub rows: Vec<Vec<String>>,
    /// What differs from the paper's table, and other remarks.
    pub notes: Vec<String>,
}

impl Figure {
    /// Writes `index.html` and, last, `figure.json`; the pictures are there already. Returns the page's path.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn write(&self, out: &Path) -> io::Result<PathBuf> {
        let body = html! {
            header.top {
                h1 { (self.title) }
                (self.about())
            }
            main { (self.sections("", 2)) }
            footer { (self.numbers("")) }
            (enlarger())
        };
        let path = out.join("index.html");
        write_atomic(&path, page(&self.title, None, &body).as_bytes())?;
        write_atomic(&out.join(FILE), &serde_json::to_vec_pretty(self)?)?;
        Ok(path)
    }

    /// What it was made with, and how to read it.
    pub(super) fn about(&self) -> Markup {
        let paper = (!self.paper.is_empty()).then_some(("In the paper", self.paper.as_str()));
        let own = self.facts.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        html! {
            @if !(self.paper.is_empty() && self.facts.is_empty()) {
                (facts(paper.into_iter().chain(own)))
            }
            @if !self.how.is_empty() {
                section.how { @for text in &self.how { p { (text) } } }
            }
        }
    }

    /// The parts, with files under `folder` (empty, or ending with a slash) and headings of `level`.
    pub(super) fn sections(&self, folder: &str, level: usize) -> Markup {
        html! {
            @for section in &self.sections {
                section.part {
                    @if !section.title.is_empty() {
                        @if level == 2 { h2 { (section.title) } } @else { h3 { (section.title) } }
                    }
                    @for alarm in &section.alarms { p.alarm role="note" { (alarm) } }
                    @for text in &section.text { p { (text) } }
                    @if !section.pictures.is_empty() {
                        div.pictures { @for picture in &section.pictures { (shown(picture, folder)) } }
                    }
                    @for grid in &section.grids { (grid_of(grid, folder)) }
                    @for table in &section.tables { (table_of(table)) }
                }
            }
        }
    }

    /// Links to the files of numbers.
    pub(super) fn numbers(&self, folder: &str) -> Markup {
        html! {
            @if !self.files.is_empty() {
                p {
                    "As data: "
                    @for (i, (file, what)) in self.files.iter().enumerate() {
                        @if i > 0 { ", " }
                        a href={ (folder) (file) } { (file) } " (" (what) ")"
                    }
                    "."
                }
            }
        }
    }

    /// Its pictures and numbers, relative to its folder.
    pub(super) fn all_files(&self) -> impl Iterator<Item = &str> {
        let grids = self.sections.iter().flat_map(|section| &section.grids);
        let cells = grids.flat_map(|grid| &grid.rows).flat_map(|(_, cells)| cells);
        let pictures = self.sections.iter().flat_map(|section| &section.pictures);
        let pictures = pictures.chain(cells.filter_map(|cell| cell.picture.as_ref()));
        let files = self.files.iter().map(|(file, _)| file.as_str());
        pictures.map(|picture| picture.file.as_str()).chain(files)
    }

    /// Whether all its files lie in its own folder: what was read from a disk need not be ours.
    pub(super) fn stays_in_its_folder(&self) -> bool {
        let plain = |part| matches!(part, Component::Normal(_));
        let mut files = self.all_files();
        files.all(|file| !file.contains(['\\', ':']) && Path::new(file).components().all(plain))
    }
}

/// A study's page in the making: each of its files is written as it is described.
pub(super) struct Page<'a> {
    out: &'a Path,
    /// What it says; sections and paragraphs are added as they come.
    pub figure: Figure,
}

/// Draws a plot into a file of the folder `out`, and completes its description.
pub fn plotted(out: &Path, file: String, plot: &Plot<'_>, picture: Picture) -> io::Result<Picture> {
    write_atomic(&out.join(&file), plot.svg().as_bytes())?;
    Ok(Picture { file, size: plot::SIZE, wide: true, ..picture })
}

impl<'a> Page<'a> {
    /// Begins the page of a study in the folder `out`, and takes back what an earlier one said
    /// there, so that no report shows new pictures under old words.
    pub fn new(out: &'a Path, study: &Study, title: String, facts: Facts) -> io::Result<Self> {
        take_back(out)?;
        let (study, paper) = (study.name.into(), study.paper.into());
        Ok(Page { out, figure: Figure { study, title, paper, facts, ..Figure::default() } })
    }

    /// Writes a picture, and completes its description.
    pub fn png(&self, file: String, image: &Image, picture: Picture) -> io::Result<Picture> {
        image.write_png(&self.out.join(&file))?;
        Ok(Picture { file, size: [image.width, image.height], ..picture })
    }

    /// Draws curves over a common axis, and completes their description.
    pub fn curves(
        &self,
        file: String,
        [x, y]: [&str; 2],
        lines: &[Line],
        picture: Picture,
    ) -> io::Result<Picture> {
        plotted(self.out, file, &Plot { x, y, lines, ..Plot::default() }, picture)
    }

    /// Writes a file of numbers, and names it under the page with what it holds.
    pub fn file(&mut self, name: &str, holds: &str, bytes: &[u8]) -> io::Result<()> {
        self.figure.files.push((name.into(), holds.into()));
        write_atomic(&self.out.join(name), bytes)
    }

    /// The same of comma-separated values.
    pub fn csv(
        &mut self,
        name: &str,
        holds: &str,
        head: &[&str],
        rows: impl IntoIterator<Item = Vec<String>>,
    ) -> io::Result<()> {
        self.file(name, holds, csv(head, rows).as_bytes())
    }

    /// Writes the page itself; returns its path.
    pub fn finish(self) -> io::Result<PathBuf> {
        self.figure.write(self.out)
    }
}

/// Takes back what the page in a folder says, before its pictures change: without these data no report
/// shows it.
///
/// # Errors
/// If a file is there and cannot be removed.
pub fn take_back(out: &Path) -> io::Result<()> {
    for file in [FILE, top9::FILE] {
        match std::fs::remove_file(out.join(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// See [`SCRIPT`].
pub(super) fn enlarger() -> Markup {
    html! {
        dialog.large aria-label="One picture, enlarged" {}
        script { (PreEscaped(SCRIPT)) }
    }
}

fn shown(picture: &Picture, folder: &str) -> Markup {
    let Picture { file, size: [width, height], title, method, contrast, image, area, wide } =
        picture;
    html! {
        figure.picture.wide[*wide] {
            a href={ (folder) (file) } {
                img src={ (folder) (file) } width=(width) height=(height) alt=(title) loading="lazy"
                    .tiny[*width < 160];
            }
            figcaption {
                b { (title) } @if !method.is_empty() { ": " (method) "." } " "
                @if !contrast.is_empty() { "Contrast: " (contrast) ". " }
                @if !image.is_empty() || area.is_some() {
                    span.details {
                        @if !image.is_empty() { "Image: " code { (image) } " " }
                        @if let Some(area) = area {
                            "Box: " (area.map(|edge| format!("{edge:.0}")).join(", "))
                        }
                    }
                }
            }
        }
    }
}

fn grid_of(grid: &Grid, folder: &str) -> Markup {
    html! {
        p.caption { (grid.caption) }
        div.table {
            table.grid aria-label=(grid.caption) {
                thead { tr { @for name in &grid.head { th scope="col" { (name) } } } }
                tbody {
                    @for (name, cells) in &grid.rows {
                        tr {
                            th scope="row" { (name) }
                            @for cell in cells { td { (cell_of(cell, folder)) } }
                        }
                    }
                }
            }
        }
    }
}

fn cell_of(Cell { picture, text }: &Cell, folder: &str) -> Markup {
    let lines = html! { @for line in text { span { (line) } } };
    match picture {
        None => lines,
        Some(Picture { file, size: [width, height], title, .. }) => html! {
            figure.picture {
                a href={ (folder) (file) } {
                    img src={ (folder) (file) } width=(width) height=(height) alt=(title) loading="lazy";
                }
                figcaption { (lines) }
            }
        },
    }
}

fn table_of(table: &Table) -> Markup {
    html! {
        // Not the table's own caption: that would scroll away with a wide table on a phone.
        p.caption { (table.caption) }
        div.table {
            table aria-label=(table.caption) {
                thead { tr { @for name in &table.head { th scope="col" { (name) } } } }
                tbody {
                    @for row in &table.rows {
                        tr {
                            @for (i, cell) in row.iter().enumerate() {
                                @if i == 0 { th scope="row" { (cell) } } @else { td { (cell) } }
                            }
                        }
                    }
                }
            }
        }
        @for note in &table.notes { p.note { (note) } }
    }
}
