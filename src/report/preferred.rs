//! The page of [`preferred`](crate::study::preferred): each map's synthesised picture beside the patches that
//! excite it most.

use std::io;
use std::path::{Path, PathBuf};

use super::figure::{Cell, Grid, Page, Picture, Section};
use super::{by, plural, short};
use crate::model::{Architecture, Network};
use crate::picture::{GREY, Image};
use crate::study::Facts;
use crate::study::peaks::ProjectedPeak;
use crate::study::preferred::{OfLayer, OfMap, STUDY, Settings};

/// Least side of a picture, in pixels.
const SHOWN: usize = 192;
/// Patches in a row.
const COLUMNS: usize = 3;
/// Pixels between two patches.
const GAP: usize = 2;

/// A page in the making.
pub struct Writer<'a> {
    page: Page<'a>,
    settings: Settings,
    /// Rows and columns of the network's input.
    input: [usize; 2],
    /// Whether there are images to compare with.
    is_compared: bool,
    /// Rows of the file of numbers.
    rows: Vec<Vec<String>>,
}

impl<'a> Writer<'a> {
    /// Begins the page in the folder `out`.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn new(
        out: &'a Path,
        network: &Network,
        facts: Facts,
        settings: &Settings,
        is_compared: bool,
    ) -> io::Result<Self> {
        let Architecture { name, input, .. } = &network.architecture;
        let title = format!("What the maps of {name} prefer");
        let mut page = Page::new(out, &STUDY, title, facts)?;
        page.figure.how = how(settings, is_compared);
        Ok(Writer { page, settings: *settings, input: input.size, is_compared, rows: Vec::new() })
    }

    /// Begins a layer.
    pub fn layer(&mut self, layer: &OfLayer) {
        let mut head = vec!["Map".into(), "Synthesised: no photograph".into()];
        head.extend(self.is_compared.then(|| "Strongest patches".into()));
        let caption = format!(
            "Synthesised by gradient ascent ({}): what the unit in the middle of each map sees, {} pixels; {} in \
             all.",
            self.settings,
            by(layer.seen),
            plural(layer.maps, "map")
        );
        let grids = vec![Grid { caption, head, rows: Vec::new() }];
        self.page.figure.sections.push(Section {
            title: layer.name.clone(),
            grids,
            ..Section::default()
        });
    }

    /// Writes the pictures of a map of that layer.
    ///
    /// # Errors
    /// If the folder cannot be written.
    ///
    /// # Panics
    /// If no layer has begun.
    pub fn map(&mut self, map: &OfMap) -> io::Result<()> {
        let sections = self.page.figure.sections.len();
        let file = |what: &str| format!("{:02}-{}-{what}.png", sections - 1, map.map);
        let of = format!("{} map {}", map.layer, map.map);
        let picture = Picture {
            title: format!("{of}: synthesised"),
            method: format!("gradient ascent from noise, {}", self.settings),
            ..Picture::default()
        };
        let picture = self.page.png(file("preferred"), &map.picture.enlarged(SHOWN), picture)?;
        let mut text = vec![format!("activation {}", short(map.activation))];
        text.extend(
            map.ratio().map(|ratio| format!("{} × the strongest patch’s", short(ratio as f32))),
        );
        let mut cells = vec![Cell { picture: Some(picture), text }];
        if self.is_compared {
            cells.push(match map.peaks.first() {
                None => Cell { picture: None, text: vec!["never above zero".into()] },
                Some(strongest) => {
                    let title = format!("{of}: patches of {}", plural(map.peaks.len(), "image"));
                    let picture = Picture { title, ..Picture::default() };
                    let sheet = patches(&map.peaks, self.input);
                    let picture = self.page.png(file("patches"), &sheet, picture)?;
                    let text = vec![format!("activation {}", short(strongest.value))];
                    Cell { picture: Some(picture), text }
                }
            });
        }
        let name = match map.class.as_str() {
            "" => map.map.to_string(),
            class => format!("{} {class}", map.map),
        };
        let section = self.page.figure.sections.last_mut().expect("a layer has begun");
        section.grids[0].rows.push((name, cells));

        let or_empty = |value: Option<String>| value.unwrap_or_default();
        self.rows.push(vec![
            map.layer.clone(),
            map.map.to_string(),
            map.class.clone(),
            map.noise.to_string(),
            map.activation.to_string(),
            or_empty(map.peaks.first().map(|peak| peak.value.to_string())),
            or_empty(map.ratio().map(|ratio| ratio.to_string())),
            map.variation.to_string(),
        ]);
        Ok(())
    }

    /// Writes `preferred.csv` and the page; returns the page's path.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn finish(mut self) -> io::Result<PathBuf> {
        let head =
            ["layer", "map", "class", "noise", "activation", "strongest", "ratio", "variation"];
        let holds = "activations of the noise at the beginning, the synthesised picture and the strongest patch; \
                     mean difference of neighbouring pixels of the synthesised picture";
        self.page.csv("preferred.csv", holds, &head, self.rows)?;
        self.page.finish()
    }
}

fn how(settings: &Settings, is_compared: bool) -> Vec<String> {
    let mut how = vec![
        format!(
            "These pictures are synthesised. Each began as noise and was changed step by step along the gradient of one \
             unit’s activation, so that the unit in the middle of the map fires more and more (Yosinski et al. 2015): \
             {settings}. A deconvnet’s picture shows what in one photograph a unit fired at; this one is of no \
             photograph at all, and much of its look (how smooth, how colourful) is of these settings, not of the \
             network."
        ),
        "The activation is that before the relu, for the picture as shown, cut out of one as large as the input. One that \
         is far stronger than any photograph’s means that the picture is unlike what the network was trained on: look \
         for what both have in common."
            .into(),
    ];
    if is_compared {
        how.push(
            "The strongest patches are those of nine images, strongest first, as in Figure 2 of the paper."
                .into(),
        );
    }
    how
}

/// What the strongest units saw, strongest first. Of fields that are larger than the input, which is `rows` by
/// `columns`, what lies in it.
fn patches(peaks: &[ProjectedPeak], [rows, columns]: [usize; 2]) -> Image {
    let tile = |peak: &ProjectedPeak| {
        let [x0, y0, x1, y1] = peak.field_box;
        let inside = |from: i64, to: i64, size: usize| match to - from > size as i64 {
            true => [-from, size as i64 - from],
            false => [0, to - from],
        };
        let ([left, right], [top, bottom]) = (inside(x0, x1, columns), inside(y0, y1, rows));
        peak.photo.crop([left, top, right, bottom]).enlarged(SHOWN / COLUMNS)
    };
    let tiles: Vec<Image> = peaks.iter().map(tile).collect();
    Image::sheet(&tiles, COLUMNS, GAP, GREY)
}
