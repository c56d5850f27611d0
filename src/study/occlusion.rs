//! The paper's Figure 7: a square slides over an image, and what the network makes of it is noted.
//!
//! At every place of the square: the total activity of the map of a high layer that was strongest
//! before (its sum over the map), the probability of the image's class, and the most probable class.
//! Where the probability falls, the network looked.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::fill::{Cover, Fill};
use super::picks::Picked;
use super::{field_box, projection_image};
use crate::Result;
use crate::backend::{Backend, Peak, SeedUnit};
use crate::disk::write_whole;
use crate::model::{
    InputStage, Layer, Model, Projector, Purpose, Rule, Seed, Workspace, strongest,
};
use crate::picture::{GREY, Image};
use crate::report::figure::{
    Figure, PHOTOGRAPH_CONTRAST, PROJECTION_CONTRAST, Picture, Section, Table,
};
use crate::report::plot::{COLOURS, heat};
use crate::report::{csv, short};
use crate::shape::Shape;
use crate::train::evaluate::{TestCrops, softmax};

/// Covered images at a time.
const BATCH: usize = 64;
/// Least side of a picture, in pixels.
const SHOWN: usize = 256;

/// How the square slides.
#[derive(Clone, Copy, Debug)]
pub struct Sliding {
    /// Its side in pixels of the network's input; as large as that, it covers all.
    pub square: usize,
    /// From one place to the next.
    pub stride: usize,
    /// What it is filled with.
    pub fill: Fill,
    /// Index of the layer whose activity is noted.
    pub layer: usize,
}

/// What was noted of one image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Occluded {
    /// Side of the square, after it was cut to the input's.
    pub square: usize,
    /// First rows, and columns, of the square, in pixels of the centre crop.
    pub corners: Vec<usize>,
    /// The map whose activity is noted.
    pub map: usize,
    /// Without the square.
    pub before: Noted,
    /// `[row, column]` over `corners`.
    pub places: Vec<Noted>,
}

/// What the network makes of an image.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Noted {
    /// Sum of the map.
    pub activity: f32,
    /// Probability of the image's class.
    pub probability: f64,
    /// The most probable class, the first of equals.
    pub label: usize,
}

impl Occluded {
    /// Whether it is of a square that slides so over `size` pixels and of a layer of `maps` maps: what was
    /// read from a disk need not be.
    pub fn fits(&self, size: usize, sliding: Sliding, maps: usize) -> bool {
        let square = sliding.square.min(size);
        self.square == square
            && self.corners == corners(size, square, sliding.stride)
            && self.places.len() == self.corners.len().pow(2)
            && self.map < maps
    }

    /// Where the probability is lowest, as row and column in `corners`, the first of equals; `None` if
    /// it is nowhere lower than without the square.
    pub fn drop(&self) -> Option<[usize; 2]> {
        let mut lowest = (self.before.probability, None);
        for (i, place) in self.places.iter().enumerate() {
            if place.probability < lowest.0 {
                lowest =
                    (place.probability, Some([i / self.corners.len(), i % self.corners.len()]));
            }
        }
        lowest.1
    }

    /// The square `[x0, y0, x1, y1]` at a place, in pixels of the centre crop.
    pub fn at(&self, [row, column]: [usize; 2]) -> [i64; 4] {
        let [y, x] = [row, column].map(|i| self.corners[i] as i64);
        let side = self.square as i64;
        [x, y, x + side, y + side]
    }
}

/// First pixels of a square that slides over `size` pixels, the last place at the far edge.
pub fn corners(size: usize, square: usize, stride: usize) -> Vec<usize> {
    let last = size.saturating_sub(square);
    let mut corners: Vec<usize> = (0..last).step_by(stride.max(1)).collect();
    corners.push(last);
    corners
}

/// A network that looks at covered images, many at a time.
pub struct Occluder<'a, B: Backend> {
    backend: &'a B,
    model: &'a Model<B>,
    sliding: Sliding,
    stage: InputStage<B>,
    workspace: Workspace<B>,
}

impl<'a, B: Backend> Occluder<'a, B> {
    /// Plans for a model.
    ///
    /// # Errors
    /// If the backend has no room.
    pub fn new(backend: &'a B, model: &'a Model<B>, sliding: Sliding) -> Result<Self> {
        Ok(Occluder {
            backend,
            model,
            sliding,
            stage: InputStage::new(backend, &model.preprocess, BATCH, BATCH)?,
            workspace: Workspace::new(backend, &model.network, Purpose::Infer, BATCH)?,
        })
    }

    /// Number of places of the square on one image.
    pub fn places(&self) -> usize {
        let Sliding { square, stride, .. } = self.sliding;
        corners(self.model.preprocess.size, square, stride).len().pow(2)
    }

    /// Slides the square over an image. `progress` is called with the number of places that are done.
    ///
    /// # Errors
    /// If the backend refuses.
    pub fn look(&mut self, image: &Picked, mut progress: impl FnMut(usize)) -> Result<Occluded> {
        let Sliding { square, stride, fill, layer } = self.sliding;
        let preprocess = &self.model.preprocess;
        let side = square.min(preprocess.size);
        let corners = corners(preprocess.size, side, stride);

        // All walks are of as many images, the uncovered one in the place of what is not there: how a sum
        // is rounded may depend on their number, and a rounding must not look like a drop.
        self.walk(&image.square.repeat(BATCH))?;
        let sums = self.sums(layer)?;
        let output = self.workspace.output(layer);
        let maps = output.shape().c;
        let mut peaks = vec![Peak { value: 0.0, position: 0 }; BATCH * maps];
        self.backend.channel_max(&mut peaks, output)?;
        peaks.truncate(maps);
        let first = strongest(&peaks, output.shape().w, 1);
        // If nothing fires, the first map is as good as any.
        let map = first.first().map_or(0, |unit| unit.map as usize);
        let noted = |sums: &[f32], logits: &[f32]| {
            let probabilities: Vec<f64> = softmax(logits).collect();
            let first = |best: usize, class: usize| {
                if probabilities[class] > probabilities[best] { class } else { best }
            };
            let label = (0..probabilities.len()).fold(0, first);
            Noted { activity: sums[map], probability: probabilities[image.class], label }
        };
        let classes = self.model.classes.len();
        let before = noted(&sums[..maps], &self.logits()?[..classes]);

        let cover = Cover::new(preprocess, &image.square, fill);
        let squares: Vec<[i64; 4]> = corners
            .iter()
            .flat_map(|&y| corners.iter().map(move |&x| [x, y, x + side, y + side]))
            .map(|edges| edges.map(|v| v as i64))
            .collect();
        let (mut places, mut pixels) = (Vec::with_capacity(squares.len()), Vec::new());
        for some in squares.chunks(BATCH) {
            pixels.clear();
            for place in some {
                let from = pixels.len();
                pixels.extend_from_slice(&image.square);
                cover.lay(&mut pixels[from..], *place);
            }
            pixels.extend(image.square.repeat(BATCH - some.len()));
            self.walk(&pixels)?;
            let (sums, logits) = (self.sums(layer)?, self.logits()?);
            let rows = sums.chunks_exact(maps).zip(logits.chunks_exact(classes)).take(some.len());
            places.extend(rows.map(|(sums, logits)| noted(sums, logits)));
            progress(places.len());
        }
        Ok(Occluded { square: side, corners, map, before, places })
    }

    /// Walks up with whole squares of pixels.
    fn walk(&mut self, pixels: &[u8]) -> Result<()> {
        let Model { params, preprocess, .. } = self.model;
        let images = (pixels.len() / preprocess.bytes()) as u32;
        let crops: Vec<_> =
            (0..images).flat_map(|image| TestCrops::One.of(preprocess, image)).collect();
        self.stage.fill(self.backend, &mut self.workspace.input, pixels, &crops)?;
        self.workspace.up(self.backend, params)
    }

    /// Sums of each map of a layer, `[image, map]`.
    fn sums(&self, layer: usize) -> Result<Vec<f32>> {
        let output = self.workspace.output(layer);
        let Shape { n, c, .. } = output.shape();
        let mut sums = vec![0.0; n * c];
        self.backend.channel_sum(&mut sums, output)?;
        Ok(sums)
    }

    fn logits(&self) -> Result<Vec<f32>> {
        let tensor = self.workspace.logits();
        let mut logits = vec![0.0; tensor.shape().len()];
        self.backend.download(&mut logits, tensor)?;
        Ok(logits)
    }
}

/// An image, what was noted of it, and what its page shows besides.
pub struct Shown {
    /// The image.
    pub image: Picked,
    /// What was noted.
    pub occluded: Occluded,
    /// The strongest unit of the map without the square, and its projection; none if it did not fire.
    pub projected: Option<(SeedUnit, Image)>,
    /// The object's box, in pixels of the centre crop.
    pub object: Option<[f64; 4]>,
}

impl Shown {
    /// Adds the projection of the noted map.
    ///
    /// # Errors
    /// If the backend refuses.
    pub fn new<B: Backend>(
        projector: &mut Projector<'_, B>,
        model: &Model<B>,
        image: Picked,
        occluded: Occluded,
        layer: usize,
        object: Option<[f64; 4]>,
    ) -> Result<Self> {
        projector.look(&image.square, &TestCrops::One.of(&model.preprocess, 0))?;
        let map = occluded.map;
        let Peak { value, position } = projector.peaks(layer)?[map];
        let mut projected = None;
        if value > 0.0 {
            let width = model.network.layers[layer].output.w as u32;
            let unit =
                SeedUnit { map: map as u32, y: position / width, x: position % width, value };
            let seeds = [Seed { image: 0, unit }];
            projector.project(layer, &seeds, Rule::DECONVNET, |_, values| {
                projected = Some((unit, projection_image(&model.preprocess, values)));
                Ok(())
            })?;
        }
        Ok(Shown { image, occluded, projected, object })
    }

    /// The centre of the square where the probability is lowest, as x and y in the centre crop.
    fn centre_of_drop(&self) -> Option<[f64; 2]> {
        let [x0, y0, x1, y1] = self.occluded.at(self.occluded.drop()?);
        Some([(x0 + x1) as f64 / 2.0, (y0 + y1) as f64 / 2.0])
    }

    /// Whether that centre lies in the object's box; `None` without a box.
    pub fn drop_is_inside(&self) -> Option<bool> {
        let [x0, y0, x1, y1] = self.object?;
        let inside = |[x, y]: [f64; 2]| (x0..x1).contains(&x) && (y0..y1).contains(&y);
        Some(self.centre_of_drop().is_some_and(inside))
    }

    /// The share of the square's places whose centre lies in the box: what chance would give.
    fn places_inside(&self) -> Option<f64> {
        let [x0, y0, x1, y1] = self.object?;
        let Occluded { square, corners, .. } = &self.occluded;
        let share = |low: f64, high: f64| {
            let centre =
                |corner: &&usize| (low..high).contains(&(**corner as f64 + *square as f64 / 2.0));
            corners.iter().filter(centre).count() as f64 / corners.len() as f64
        };
        Some(share(x0, x1) * share(y0, y1))
    }
}

/// Writes pictures, `occlusion.csv`, `occlusion.json` and the page into a folder; returns the page's path.
/// `facts` say what it was made with, `layer` is the noted layer's name.
///
/// # Errors
/// If the folder cannot be written.
pub fn write<B: Backend>(
    out: &Path,
    model: &Model<B>,
    facts: Vec<(String, String)>,
    layer: &Layer,
    shown: &[Shown],
) -> io::Result<PathBuf> {
    let mut figure = Figure {
        study: "occlusion".into(),
        title: format!("What {} looks at", model.network.architecture.name),
        paper: "Figure 7".into(),
        facts,
        how: vec![
            "A square is laid over the image, at one place after another, and the network looks again. \
             Each map below has the geometry of the image: the colour at a point is what was noted with \
             the square’s centre there. Where no centre can come, since the square does not leave the \
             image, a map is grey; a square that covers everything has one place, which stands for all."
                .into(),
            "Where the probability of the class falls, the network looked at what was covered. Where \
             the map’s activity falls, that map did."
                .into(),
        ],
        files: vec![
            ("occlusion.csv".into(), "every place of the square".into()),
            ("occlusion.json".into(), "the same, with what was noted without it".into()),
        ],
        ..Figure::default()
    };
    let boxed: Vec<bool> = shown.iter().filter_map(Shown::drop_is_inside).collect();
    if !boxed.is_empty() {
        figure.sections.push(Section { tables: vec![inside(model, shown)], ..Section::default() });
    }
    for (number, shown) in shown.iter().enumerate() {
        figure.sections.push(section(out, model, layer, number, shown)?);
    }
    write_numbers(out, model, &figure.facts, shown)?;
    figure.write(out)
}

/// Whether the deepest drop lies in the object's box, image by image.
fn inside<B: Backend>(model: &Model<B>, shown: &[Shown]) -> Table {
    let answer = |shown: &Shown| {
        let answer = match (shown.drop_is_inside()?, shown.centre_of_drop()) {
            (_, None) => "it falls nowhere",
            (true, _) => "yes",
            (false, _) => "no",
        };
        let chance = format!("{:.0} %", 100.0 * shown.places_inside()?);
        let class = model.classes[shown.image.class].clone();
        Some(vec![shown.image.name.clone(), class, answer.into(), chance])
    };
    let expected: f64 = shown.iter().filter_map(Shown::places_inside).sum();
    let rows: Vec<_> = shown.iter().filter_map(answer).collect();
    let count = rows.iter().filter(|row| row[2] == "yes").count();
    Table {
        caption: "Does the probability fall most with the square’s centre inside the object’s box?"
            .into(),
        head: ["image", "class", "inside", "places that are"].map(String::from).into(),
        notes: vec![format!(
            "Inside in {count} of {}; at places drawn by chance it would be {expected:.1}. {} of the \
             images have no box.",
            rows.len(),
            shown.len() - rows.len()
        )],
        rows,
    }
}

fn section<B: Backend>(
    out: &Path,
    model: &Model<B>,
    layer: &Layer,
    number: usize,
    shown: &Shown,
) -> io::Result<Section> {
    let Shown { image, occluded, projected, object } = shown;
    let Occluded { square, map, before, places, .. } = occluded;
    let class = &model.classes[image.class];
    let size = model.preprocess.size;
    // Small inputs are shown with every pixel as a square of this side.
    let times = SHOWN.div_ceil(size);
    let file = |what: &str| format!("{number:03}-{what}.png");
    let whole = Some(image.in_file(&model.preprocess, [0, 0, size as i64, size as i64]));
    let picture = |what: &str, title: String, method: String, contrast: String, shown: &Image| {
        shown.write_png(&out.join(file(what)))?;
        Ok::<_, io::Error>(Picture {
            file: file(what),
            size: [shown.width, shown.height],
            title,
            method,
            contrast,
            image: image.name.clone(),
            area: whole,
            wide: false,
        })
    };

    let mut input = image.input(&model.preprocess);
    input = input.resize(size * times, size * times);
    let scaled = |edges: [f64; 4]| edges.map(|edge| (edge * times as f64).round() as i64);
    let mut method = String::from("the centre crop, as the network sees it");
    if let Some(object) = object {
        let visible = object.map(|edge| edge.clamp(0.0, size as f64));
        input.frame(scaled(visible), 2, COLOURS[5].0);
        method += ", with the object’s box (sky blue)";
    }
    if let Some(place) = occluded.drop() {
        input.frame(scaled(occluded.at(place).map(|edge| edge as f64)), 2, COLOURS[1].0);
        method += ", and the square where the probability is lowest (vermilion)";
    }
    let mut pictures =
        vec![picture("input", class.clone(), method, PHOTOGRAPH_CONTRAST.into(), &input)?];

    let name = format!("{} map {map}", layer.name);
    if let Some((unit, projection)) = projected {
        let SeedUnit { y, x, value, .. } = unit;
        let field = field_box(layer, *y as usize, *x as usize);
        let shown = projection.resize(size * times, size * times);
        let mut projected = picture(
            "projection",
            format!("{name}, projected"),
            format!(
                "its strongest unit (row {y}, column {x}, activation {}) without the square, \
                 carried down by the deconvnet",
                short(*value)
            ),
            PROJECTION_CONTRAST.into(),
            &shown,
        )?;
        projected.area = Some(image.in_file(&model.preprocess, field));
        pictures.push(projected);
    }
    let activities = || places.iter().map(|p| p.activity).chain([before.activity]);
    let most = activities().fold(0.0, f32::max);
    let least = activities().fold(0.0, f32::min); // logits may be below zero
    let laid = |colour: &dyn Fn(&Noted) -> [u8; 3]| lay(occluded, size, times, colour);
    pictures.push(picture(
        "activity",
        format!("Activity of {name}"),
        format!("its sum over the map; {} without the square", short(before.activity)),
        format!("from {} (dark) to {} (yellow)", short(least), short(most)),
        &laid(&|place| heat(f64::from(place.activity), f64::from(least), f64::from(most))),
    )?);
    pictures.push(picture(
        "probability",
        format!("Probability of {class}"),
        format!("{:.1} % without the square", before.probability * 100.0),
        "from 0 (dark) to 1 (yellow), the same for all images".into(),
        &laid(&|place| heat(place.probability, 0.0, 1.0)),
    )?);
    let labels = shares(places);
    let colour_of = |label: usize| {
        // The last colour is for all that come after.
        let place = labels.iter().position(|(class, _)| *class == label).unwrap_or(usize::MAX);
        COLOURS[place.min(COLOURS.len() - 1)]
    };
    pictures.push(picture(
        "label",
        "Most probable class".into(),
        "the colours are in the table below".into(),
        String::new(),
        &laid(&|place| colour_of(place.label).0),
    )?);
    let rows = labels.iter().map(|(label, count)| {
        let share = *count as f64 / places.len() as f64 * 100.0;
        vec![colour_of(*label).1.into(), model.classes[*label].clone(), format!("{share:.0} %")]
    });
    let table = Table {
        caption: "Most probable class, by the square’s place".into(),
        head: ["colour", "class", "share of places"].map(String::from).into(),
        rows: rows.collect(),
        notes: Vec::new(),
    };
    let known = match image.known {
        true => String::new(),
        false => {
            format!(" The class is the network’s own answer, “{class}”: the file’s is not known.")
        }
    };
    let drop = match occluded.drop() {
        Some([row, column]) => {
            let lowest = places[row * occluded.corners.len() + column].probability;
            format!(
                "The probability of {class} falls from {:.1} % to {:.1} % at its lowest.",
                before.probability * 100.0,
                lowest * 100.0
            )
        }
        None => format!("The probability of {class} falls nowhere."),
    };
    Ok(Section {
        title: format!("{class}: {}", image.name),
        text: vec![format!(
            "A square of {square} of {size} pixels, at {} places. {drop}{known}",
            places.len()
        )],
        pictures,
        tables: vec![table],
        ..Section::default()
    })
}

/// A picture of `times * size` pixels a side, coloured by the place whose square has its centre nearest,
/// no further than half a stride; grey elsewhere.
fn lay(
    occluded: &Occluded,
    size: usize,
    times: usize,
    colour: &dyn Fn(&Noted) -> [u8; 3],
) -> Image {
    let Occluded { square, corners, places, .. } = occluded;
    let centre = |i: usize| corners[i] as f64 + *square as f64 / 2.0;
    let reach =
        corners.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(2 * size) as f64 / 2.0;
    let nearest: Vec<Option<usize>> = (0..size * times)
        .map(|pixel| {
            let at = (pixel as f64 + 0.5) / times as f64;
            let distance = |i: &usize| (centre(*i) - at).abs();
            let nearest = (0..corners.len()).min_by(|a, b| distance(a).total_cmp(&distance(b)))?;
            (distance(&nearest) <= reach).then_some(nearest)
        })
        .collect();
    let pixels = nearest.iter().flat_map(|row| {
        nearest.iter().flat_map(move |column| match (row, column) {
            (Some(row), Some(column)) => colour(&places[row * corners.len() + column]),
            _ => [GREY; 3],
        })
    });
    Image::new(size * times, size * times, pixels.collect())
}

/// The most probable classes with the number of their places, most frequent first.
fn shares(places: &[Noted]) -> Vec<(usize, usize)> {
    let mut counts = BTreeMap::new();
    for place in places {
        *counts.entry(place.label).or_insert(0) += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(label, count)| (std::cmp::Reverse(*count), *label));
    counts
}

fn write_numbers<B: Backend>(
    out: &Path,
    model: &Model<B>,
    facts: &[(String, String)],
    shown: &[Shown],
) -> io::Result<()> {
    let head = ["image", "class", "y", "x", "activity", "probability", "most_probable"];
    let rows = shown.iter().flat_map(|Shown { image, occluded, .. }| {
        let row = |i: usize, place: &Noted| {
            let [x0, y0, ..] =
                occluded.at([i / occluded.corners.len(), i % occluded.corners.len()]);
            vec![
                image.name.clone(),
                model.classes[image.class].clone(),
                y0.to_string(),
                x0.to_string(),
                place.activity.to_string(),
                place.probability.to_string(),
                model.classes[place.label].clone(),
            ]
        };
        occluded.places.iter().enumerate().map(move |(i, place)| row(i, place)).collect::<Vec<_>>()
    });
    write_whole(&out.join("occlusion.csv"), csv(&head, rows).as_bytes())?;
    let images: Vec<_> = shown
        .iter()
        .map(|shown| {
            let Shown { image, occluded, object, .. } = shown;
            let lowest = occluded.drop().map(|place| occluded.at(place));
            serde_json::json!({
                "image": image.name,
                "class": model.classes[image.class],
                "class_is_known": image.known,
                "occluded": occluded,
                "lowest_square_in_crop": lowest,
                "lowest_square_in_file": lowest.map(|area| image.in_file(&model.preprocess, area)),
                "object_in_crop": object,
                "lowest_is_inside": shown.drop_is_inside(),
            })
        })
        .collect();
    let facts: BTreeMap<&str, &str> =
        facts.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let json = serde_json::json!({ "made_with": facts, "images": images });
    write_whole(&out.join("occlusion.json"), &serde_json::to_vec(&json)?)
}

#[cfg(test)]
mod tests {
    use super::{Noted, Occluded, corners};

    #[test]
    fn the_square_reaches_both_edges() {
        assert_eq!(corners(10, 4, 3), [0, 3, 6]);
        assert_eq!(corners(10, 4, 4), [0, 4, 6]);
        assert_eq!(corners(10, 1, 20), [0, 9]);
        assert_eq!(corners(10, 9, 1), [0, 1]);
        assert_eq!(corners(10, 10, 1), [0]);
        assert_eq!(corners(10, 99, 3), [0]);
        for (size, square, stride) in [(64, 16, 2), (64, 17, 5), (224, 50, 8), (7, 3, 4)] {
            let found = corners(size, square, stride);
            assert_eq!((found[0], found[found.len() - 1] + square), (0, size));
            assert!(found.windows(2).all(|pair| pair[1] > pair[0] && pair[1] - pair[0] <= stride));
        }
    }

    #[test]
    fn the_deepest_drop_is_the_first_of_equals() {
        let noted = |probability| Noted { activity: 0.0, probability, label: 0 };
        let mut occluded = Occluded {
            square: 2,
            corners: vec![0, 3],
            map: 0,
            before: noted(0.5),
            places: [0.5, 0.2, 0.2, 0.9].map(noted).into(),
        };
        assert_eq!(occluded.drop(), Some([0, 1]));
        assert_eq!(occluded.at([0, 1]), [3, 0, 5, 2]);
        occluded.places = [0.5, 0.6, 0.5, f64::NAN].map(noted).into();
        assert_eq!(occluded.drop(), None);
    }
}
