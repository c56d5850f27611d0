//! The paper's Figure 2 for a network of one's own: for every map shown, its nine strongest
//! activations, each projected to pixels, beside the patches of the images that caused them.
//!
//! ```text
//! OUT/index.html                    the page
//! OUT/top9.json                     every peak: image, position, value, box in the original
//! OUT/LAYER/projections-000.png     sheets of maps, each map a block of 3x3 tiles;
//! OUT/LAYER/patches-000.jpg         a map has the same place in both
//! ```
//!
//! A map's place in its sheet depends on its place in `rows` alone, dead or not, so that a page that
//! is renewed while training goes on never shows one map's picture under another's name.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use maud::{Markup, PreEscaped, html};
use serde::{Deserialize, Serialize};

use super::{
    Slugs, by, by_rule, caution, facts, grouped, inline_json, page, plural, rounded, short, signed,
};
use crate::disk::write_atomic;
use crate::picture::Image;
pub use crate::study::features::{FeatureLayer, Map};
pub use crate::study::peaks::ProjectedPeak;

const SCRIPT: &str = include_str!("page.js");

/// The data beside a page.
pub const FILE: &str = "top9.json";

/// Tiles a map has, and a side of its block.
const PEAKS: usize = 9;
const SIDE: usize = 3;
/// Blocks in a row of a sheet.
const COLUMNS: usize = 4;
/// Smaller tiles are enlarged by a whole factor to at least this side; larger ones reduced to the
/// second.
const SMALLEST: usize = 32;
const LARGEST: usize = 160;
/// Between blocks, and the level of all that is no tile.
const GAP: usize = 8;
const PAPER: u8 = 232;

/// Everything at once, for small networks and tests; see [`Writer`] for large ones.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Top9 {
    /// What was looked at, with what.
    #[serde(flatten)]
    pub header: Header,
    /// In the order of the page.
    pub layers: Vec<FeatureLayer>,
}

/// What was looked at, with what.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Header {
    /// The page's title.
    pub title: String,
    /// Where the weights come from.
    pub checkpoint: String,
    /// The folder of images.
    pub data: String,
    /// The network's name.
    pub network: String,
    /// `train` or `val`.
    pub split: String,
    /// How many images were searched for peaks.
    pub images: usize,
    /// Rows and columns of the network's input.
    #[serde(with = "zfnet_core::size")]
    pub input: [usize; 2],
    /// Name of the rule of the backward pass.
    pub rule: String,
    /// Top-1 error, epochs, seed: whatever should stand under the title.
    pub facts: Vec<(String, String)>,
    /// "epoch 3 of 12, training"; None when there is nothing left to come.
    pub status: Option<String>,
    /// Seconds after which the page renews itself.
    #[serde(skip)]
    pub refresh: Option<u32>,
}

/// Writes the page, its sheets and its data; returns the page's path.
pub fn write(out: &Path, top9: &Top9) -> io::Result<PathBuf> {
    let mut writer = Writer::new(out, top9.header.clone())?;
    for layer in &top9.layers {
        writer.layer(FeatureLayer { rows: Vec::new(), ..layer.clone() })?;
        for map in &layer.rows {
            writer.map(map.clone())?;
        }
    }
    writer.finish()
}

/// Takes one layer after another and one map after another, and keeps no more pictures than the
/// sheet at hand: `new`, then `layer`, `map`, `map`, ..., `layer`, ..., then `finish`.
pub struct Writer {
    out: PathBuf,
    header: Header,
    slugs: Slugs,
    done: Vec<Finished>,
    open: Option<(Finished, Option<Sheet>)>,
}

/// A layer without its pictures, and how they lie in its sheets (None: no map fired).
struct Finished {
    layer: FeatureLayer,
    slug: String,
    grid: Option<Grid>,
}

/// The measures of a layer's sheets in pixels.
#[derive(Clone, Copy, Debug)]
struct Grid {
    /// Side of a tile, and the gap between two of a block.
    tile: usize,
    gutter: usize,
    /// Blocks in a full sheet.
    blocks: usize,
    enlarged: bool,
}

struct Sheet {
    number: usize,
    projections: Image,
    patches: Image,
}

impl Writer {
    /// Begins a page in folder `out`.
    pub fn new(out: &Path, header: Header) -> io::Result<Writer> {
        fs::create_dir_all(out)?;
        Ok(Writer {
            out: out.to_path_buf(),
            header,
            slugs: Slugs::default(),
            done: Vec::new(),
            open: None,
        })
    }

    /// Starts the next layer. Rows it brings along are written, and `map` adds more.
    pub fn layer(&mut self, mut layer: FeatureLayer) -> io::Result<()> {
        self.close_layer()?;
        let rows = std::mem::take(&mut layer.rows);
        let slug = self.slugs.make(&layer.name);
        self.open = Some((Finished { layer, slug, grid: None }, None));
        rows.into_iter().try_for_each(|map| self.map(map))
    }

    /// Adds a map to the layer last started.
    pub fn map(&mut self, mut map: Map) -> io::Result<()> {
        let Some((finished, sheet)) = &mut self.open else {
            return Err(io::Error::other("a map before any layer"));
        };
        if finished.layer.rows.iter().any(|row| row.map == map.map) {
            let text = format!("map {} of {} came twice", map.map, finished.layer.name);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        map.peaks.truncate(PEAKS);
        let row = finished.layer.rows.len();
        for (i, peak) in map.peaks.iter_mut().enumerate() {
            let projection = std::mem::take(&mut peak.projection);
            let photo = std::mem::take(&mut peak.photo);
            let grid = *finished.grid.get_or_insert_with(|| Grid::new(finished.layer.field));
            let number = row / grid.blocks;
            if sheet.as_ref().is_some_and(|s| s.number != number) {
                let full = sheet.take().expect("just seen");
                full.write(&self.out.join(&finished.slug), &grid, grid.blocks)?;
            }
            let sheet = sheet.get_or_insert_with(|| Sheet::new(number, &grid));
            let (x, y) = grid.corner(row, i);
            sheet.projections.paste(&projection.squared().resize(grid.tile, grid.tile), x, y);
            sheet.patches.paste(&photo.squared().resize(grid.tile, grid.tile), x, y);
        }
        finished.layer.rows.push(map);
        Ok(())
    }

    /// Writes the page and the data. Until then the pages of an earlier call stay as they were.
    pub fn finish(mut self) -> io::Result<PathBuf> {
        self.close_layer()?;
        let layers: Vec<&FeatureLayer> = self.done.iter().map(|f| &f.layer).collect();
        #[derive(Serialize)]
        struct Data<'a> {
            #[serde(flatten)]
            header: &'a Header,
            layers: Vec<&'a FeatureLayer>,
        }
        let json = serde_json::to_vec(&Data { header: &self.header, layers })?;
        write_atomic(&self.out.join(FILE), &json)?;
        let path = self.out.join("index.html");
        let html = page(&self.header.title, self.header.refresh, &body(&self.header, &self.done)?);
        write_atomic(&path, html.as_bytes())?;
        Ok(path)
    }

    fn close_layer(&mut self) -> io::Result<()> {
        let Some((finished, sheet)) = self.open.take() else {
            return Ok(());
        };
        let folder = self.out.join(&finished.slug);
        if let (Some(sheet), Some(grid)) = (sheet, &finished.grid) {
            let last = finished.layer.rows.len().div_ceil(grid.blocks) - 1;
            let blocks = match sheet.number == last {
                true => finished.layer.rows.len() - last * grid.blocks,
                false => grid.blocks,
            };
            sheet.write(&folder, grid, blocks)?;
        }
        self.done.push(finished);
        Ok(())
    }
}

impl Grid {
    /// For patches of so many rows and columns.
    fn new(field: [usize; 2]) -> Grid {
        let side = field[0].max(field[1]).max(1);
        let tile = (side * SMALLEST.div_ceil(side)).min(LARGEST);
        // A sheet of large tiles holds fewer maps: what one link loads stays small.
        let blocks = COLUMNS * if tile <= 80 { 4 } else { 2 };
        Grid { tile, gutter: 1 + tile / 50, blocks, enlarged: tile >= 2 * side }
    }

    fn block(&self) -> usize {
        SIDE * (self.tile + self.gutter) - self.gutter
    }

    /// From one block to the next.
    fn pitch(&self) -> usize {
        self.block() + GAP
    }

    fn size(&self, blocks: usize) -> (usize, usize) {
        (COLUMNS * self.pitch() - GAP, blocks.div_ceil(COLUMNS) * self.pitch() - GAP)
    }

    /// Where the `i`-th tile of the `row`-th map lies in its sheet.
    fn corner(&self, row: usize, i: usize) -> (i64, i64) {
        let cell = row % self.blocks;
        let step = self.tile + self.gutter;
        let x = cell % COLUMNS * self.pitch() + i % SIDE * step;
        let y = cell / COLUMNS * self.pitch() + i / SIDE * step;
        (x as i64, y as i64)
    }
}

impl Sheet {
    fn new(number: usize, grid: &Grid) -> Sheet {
        let (width, height) = grid.size(grid.blocks);
        let empty = Image::filled(width, height, PAPER);
        Sheet { number, projections: empty.clone(), patches: empty }
    }

    fn write(&self, folder: &Path, grid: &Grid, blocks: usize) -> io::Result<()> {
        let (width, height) = grid.size(blocks);
        let used = [0, 0, width as i64, height as i64];
        let path = |name| folder.join(name);
        self.projections.crop(used).write_png(&path(projections_name(self.number)))?;
        self.patches.crop(used).write_jpeg(&path(patches_name(self.number)))
    }
}

fn projections_name(number: usize) -> String {
    format!("projections-{number:03}.png")
}

fn patches_name(number: usize) -> String {
    format!("patches-{number:03}.jpg")
}

fn body(header: &Header, layers: &[Finished]) -> io::Result<Markup> {
    let searched = match header.images {
        0 => header.split.clone(),
        n => format!("{}, {}", header.split, plural(n, "image")),
    };
    let fixed = [
        ("Network", header.network.as_str()),
        ("Checkpoint", &header.checkpoint),
        ("Data", &header.data),
        ("Searched", &searched),
        ("Rule", &header.rule),
    ];
    let own = header.facts.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    Ok(html! {
        header.top {
            h1 { (header.title) }
            @if let Some(status) = &header.status {
                p.status role="status" { (status) }
            }
            (facts(fixed.into_iter().chain(own)))
            (how_to_read(&header.rule))
        }
        nav.toc aria-label="Layers" { (layer_links(layers)) }
        main { @for f in layers { (section(header, f, "")) } }
        footer {
            p { "All peaks as data: " a href=(FILE) { (FILE) } ". Made by zfnet." }
        }
        (enlarger(header, layers, "")?)
    })
}

/// A page's maps as a part of another page.
pub(super) struct Embedded {
    /// What was looked at, with what.
    pub header: Header,
    /// How to read them, links to the layers, and the layers.
    pub maps: Markup,
    /// See [`enlarger`]; for the page's end.
    pub enlarger: Markup,
}

/// What [`Writer`] has written into the folder `name` in `out`, for a page in `out`.
///
/// # Errors
/// If the data cannot be read, or are none of ours.
pub(super) fn embed(out: &Path, name: &str) -> io::Result<Embedded> {
    let data: Top9 = serde_json::from_slice(&fs::read(out.join(name).join(FILE))?)?;
    let mut slugs = Slugs::default();
    let finished = |layer: FeatureLayer| {
        let fired = layer.rows.iter().any(|map| !map.peaks.is_empty());
        let grid = fired.then(|| Grid::new(layer.field));
        Finished { slug: slugs.make(&layer.name), layer, grid }
    };
    let layers: Vec<Finished> = data.layers.into_iter().map(finished).collect();
    let folder = format!("{name}/");
    let maps = html! {
        (how_to_read(&data.header.rule))
        p.layers { (layer_links(&layers)) }
        @for f in &layers { (section(&data.header, f, &folder)) }
    };
    let enlarger = enlarger(&data.header, &layers, &folder)?;
    Ok(Embedded { header: data.header, maps, enlarger })
}

fn layer_links(layers: &[Finished]) -> Markup {
    html! {
        @for f in layers {
            a href={ "#" (f.slug) } {
                (f.layer.name) " " small { (grouped(f.layer.rows.len())) }
            }
            " "
        }
    }
}

/// The script that enlarges maps, with its data; its sheets are under `folder`.
fn enlarger(header: &Header, layers: &[Finished], folder: &str) -> io::Result<Markup> {
    Ok(html! {
        dialog.view aria-label="One map, enlarged" {}
        script type="application/json" id="page.data" {
            (PreEscaped(inline_json(&for_script(header, layers, folder))?))
        }
        script { (PreEscaped(SCRIPT)) }
    })
}

fn how_to_read(rule: &str) -> Markup {
    html! {
        section.how aria-labelledby="page.how" {
            h2 id="page.how" { "How to read this" }
            p {
                "Each numbered map has two blocks of nine. On the right are the nine image patches "
                "that excite it most, strongest first, one from an image; on the left the same nine "
                "activations, each carried back to pixels on its own " (by_rule(rule)) ", all "
                "others of its layer set to zero. Grey is zero, lighter and darker are opposite "
                "signs, and every tile has its own contrast: compare shapes between tiles, not "
                "strengths. The number beside a map’s name is its strongest activation. "
                span.scripted { "Choose a map to enlarge it; the arrow keys step through the maps." }
            }
            (caution())
        }
    }
}

fn section(header: &Header, f: &Finished, folder: &str) -> Markup {
    let layer = &f.layer;
    let dead = layer.rows.iter().filter(|map| map.peaks.is_empty()).count();
    html! {
        section.layer id=(f.slug) style=[f.grid.map(|g| style(&g))]
            .crisp[f.grid.is_some_and(|g| g.enlarged)] {
            div.head {
                (glyph(header.input, layer.field))
                div {
                    h2 { (layer.name) }
                    p { (geometry(header.input, layer)) " " (count(layer, dead)) }
                }
            }
            div.maps { @for (row, map) in layer.rows.iter().enumerate() { (card(f, row, map, folder)) } }
        }
    }
}

/// A sheet's measures as shares of a block, for the style sheet.
fn style(grid: &Grid) -> String {
    let block = grid.block() as f64;
    let percent = |part: usize| part as f64 / block * 100.0;
    let line = grid.tile as f64 / (grid.block() - grid.gutter) as f64 * 100.0;
    format!(
        "--sheet:{:.4}%;--pitch:{:.4}%;--line:{:.3}%;--thick:{:.3}%;--card:{}px",
        percent(grid.size(grid.blocks).0),
        percent(grid.pitch()),
        line,
        percent(grid.gutter),
        if grid.tile <= 50 { 232 } else { 280 },
    )
}

/// How much of the input a patch is, drawn.
fn glyph(input: [usize; 2], field: [usize; 2]) -> Markup {
    let longest = input[0].max(input[1]);
    if longest == 0 {
        return html! {};
    }
    // Of a box in the middle: its corner and its size, left to right and from above.
    let drawn = |[rows, columns]: [usize; 2], least: f64| {
        let [width, height] =
            [columns, rows].map(|size| (size as f64 / longest as f64 * 40.0).clamp(least, 40.0));
        [22.0 - width / 2.0, 22.0 - height / 2.0, width, height].map(|v| format!("{v:.1}"))
    };
    let ([left, top, wide, high], [x, y, width, height]) = (drawn(input, 0.0), drawn(field, 1.0));
    html! {
        svg.glyph viewBox="0 0 44 44" width="44" height="44" aria-hidden="true" {
            rect.whole x=(left) y=(top) width=(wide) height=(high) {}
            rect.field x=(x) y=(y) width=(width) height=(height) {}
        }
    }
}

fn geometry(input: [usize; 2], layer: &FeatureLayer) -> String {
    let FeatureLayer { field, jump, start, .. } = layer;
    let mut text = format!("A patch is {} pixels", by(*field));
    if input[0] > 0 {
        text += &format!(" of the {} input", by(input));
    }
    text += &format!(
        ", all that one unit sees; neighbouring units look {} apart",
        plural(*jump, "pixel")
    );
    if *start < 0 {
        text += &format!(
            ", the first from pixel {}, so that patches at an edge reach beyond the image (grey)",
            signed(*start)
        );
    }
    text + "."
}

fn count(layer: &FeatureLayer, dead: usize) -> String {
    let shown = layer.rows.len();
    let mut text = match shown == layer.maps {
        true => format!("All {} are shown", plural(layer.maps, "map")),
        false => format!("{} of {} are shown", grouped(shown), plural(layer.maps, "map")),
    };
    match dead {
        0 => {}
        1 => text += "; one of them is dead",
        n => text += &format!("; {} of them are dead", grouped(n)),
    }
    text + "."
}

/// One map: its number, and its block cut out of either sheet. The whole is the map's own link.
fn card(f: &Finished, row: usize, map: &Map, folder: &str) -> Markup {
    let (slug, name, number) = (&f.slug, &f.layer.name, map.map);
    let id = format!("{slug}/{number}");
    let Some((grid, strongest)) = f.grid.zip(map.peaks.first()) else {
        return html! {
            a.map.dead id=(id) href={ "#" (id) } {
                span.name { b { (number) } i { "dead" } }
                span.void { "never above zero" }
            }
        };
    };
    let sheet = row / grid.blocks;
    let (width, height) = grid.size(grid.blocks.min(f.layer.rows.len() - sheet * grid.blocks));
    let pictures = [(projections_name(sheet), "projections"), (patches_name(sheet), "patches")];
    html! {
        a.map id=(id) href={ "#" (id) } {
            span.name { b { (number) } i { (short(strongest.value)) } }
            @for (file, what) in pictures {
                span.block.{ "k" (row % grid.blocks) } {
                    img src={ (folder) (slug) "/" (file) } width=(width) height=(height) loading="lazy"
                        alt={ (name) " map " (number) ", " (map.peaks.len()) " " (what) };
                }
            }
        }
    }
}

/// The page's data, compactly: an image's path and class are written once and then numbered.
#[derive(Serialize)]
struct ForScript<'a> {
    refresh: Option<u32>,
    /// Where the sheets are: empty, or a folder with a slash.
    folder: &'a str,
    searched: usize,
    classes: Vec<&'a str>,
    /// (path, number of the class)
    images: Vec<(&'a str, usize)>,
    layers: Vec<LayerForScript<'a>>,
}

#[derive(Serialize)]
struct LayerForScript<'a> {
    name: &'a str,
    slug: &'a str,
    maps: usize,
    /// tile, gutter, pitch, columns, blocks, width of a sheet, 1 if tiles are enlarged
    grid: Option<[usize; 7]>,
    /// map, then for each peak: image, y, x, value, and the box in the original
    rows: Vec<Vec<serde_json::Number>>,
}

fn for_script<'a>(header: &Header, layers: &'a [Finished], folder: &'a str) -> ForScript<'a> {
    let mut classes = Numbered::default();
    let mut images = Numbered::default();
    let mut data = Vec::new();
    for f in layers {
        let mut rows = Vec::new();
        for map in &f.layer.rows {
            let mut row = vec![map.map.into()];
            for peak in &map.peaks {
                let class = classes.number(peak.class.as_str());
                row.push(images.number((peak.image.as_str(), class)).into());
                row.extend([peak.y.into(), peak.x.into(), number(rounded(peak.value))]);
                row.extend(peak.patch.map(|edge| number((edge * 10.0).round() / 10.0)));
            }
            rows.push(row);
        }
        let grid = f.grid.map(|g| {
            let width = g.size(g.blocks).0;
            [g.tile, g.gutter, g.pitch(), COLUMNS, g.blocks, width, g.enlarged.into()]
        });
        let FeatureLayer { name, maps, .. } = &f.layer;
        data.push(LayerForScript { name, slug: &f.slug, maps: *maps, grid, rows });
    }
    ForScript {
        refresh: header.refresh,
        folder,
        searched: header.images,
        classes: classes.list,
        images: images.list,
        layers: data,
    }
}

/// Whole numbers without a fraction; what JSON has no number for (NaN) as zero.
fn number(value: f64) -> serde_json::Number {
    if value == value.trunc() && value.abs() < 1e15 {
        return (value as i64).into();
    }
    serde_json::Number::from_f64(value).unwrap_or_else(|| 0.into())
}

/// Equal things share a number, counted from the first seen.
struct Numbered<T> {
    list: Vec<T>,
    places: HashMap<T, usize>,
}

impl<T> Default for Numbered<T> {
    fn default() -> Self {
        Numbered { list: Vec::new(), places: HashMap::new() }
    }
}

impl<T: Copy + Eq + std::hash::Hash> Numbered<T> {
    fn number(&mut self, thing: T) -> usize {
        *self.places.entry(thing).or_insert_with(|| {
            self.list.push(thing);
            self.list.len() - 1
        })
    }
}
