//! How much a projection shows of what was learnt: the same unit projected with trained and with freshly
//! drawn weights, by all three rules (Adebayo et al. 2018, Nie et al. 2018).
//!
//! A picture that hardly changes when all that was learnt is thrown away tells of the image and of the
//! architecture, not of training. Beside the pictures stand Pearson correlations, over the pixels of the
//! unit's receptive field:
//!
//! ```text
//! r(a, b) = sum (a - mean a)(b - mean b) / sqrt(sum (a - mean a)^2 sum (b - mean b)^2)
//! ```

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::numbers::argmax;
use super::picks::Picked;
use super::pixels::{centre_crop, field_box, projection_image};
use super::{Study, projection_of};
use crate::backend::{Backend, Peak, SeedUnit};
use crate::disk::write_whole;
use crate::model::{Model, Network, Params, Projector, Rule, strongest};
use crate::picture::Image;
use crate::report::figure::{
    Figure, PHOTOGRAPH_CONTRAST, PROJECTION_CONTRAST, Picture, Section, Table,
};
use crate::report::{csv, short};
use crate::shape::Shape;
use crate::train::evaluate::TestCrops;
use crate::{Error, Result};

/// See [`super::STUDIES`].
pub const STUDY: Study = Study {
    name: "sanity",
    shows: "how much a projection shows of what was learnt",
    paper: "",
    of_one_run: true,
};

/// The rules, in the order of the page.
const RULES: [(&str, Rule); 3] =
    [("deconvnet", Rule::DECONVNET), ("gradient", Rule::GRADIENT), ("guided", Rule::GUIDED)];
/// Least side of a picture, in pixels.
const SHOWN: usize = 192;

/// A layer and a map of it, or its strongest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Index of the layer.
    pub layer: usize,
    /// The map; for `None` the one that fires most.
    pub map: Option<usize>,
}

/// One unit, by one rule, with trained and with random weights.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// The image.
    pub image: String,
    /// The layer.
    pub layer: String,
    /// The map, row and column of the unit.
    pub unit: [usize; 3],
    /// The random network's map at that place: the same, or the strongest there if that one does not fire.
    pub random_map: usize,
    /// The rule.
    pub rule: &'static str,
    /// Between the trained and the random network's projection. 0 where one of two does not vary.
    pub trained_random: f64,
    /// Between the trained network's projection and the image.
    pub trained_image: f64,
    /// Between the random network's projection and the image.
    pub random_image: f64,
}

/// The first and the last spatial convolution, and the logits.
pub fn default_units(network: &Network) -> Vec<Wanted> {
    let spatial = network.spatial();
    let mut found: Vec<usize> =
        spatial.first().into_iter().chain(spatial.last()).copied().collect();
    found.extend((0..network.layers.len()).last());
    found.dedup();
    found.into_iter().map(|layer| Wanted { layer, map: None }).collect()
}

/// Pearson's correlation; 0 if one of the two does not vary, or they hold what is no number.
///
/// # Panics
/// If they are not of one length.
pub fn correlation(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "as many values");
    let mean = |values: &[f32]| {
        values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len().max(1) as f64
    };
    let (mean_a, mean_b) = (mean(a), mean(b));
    let [mut ab, mut aa, mut bb] = [0.0; 3];
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (f64::from(*a) - mean_a, f64::from(*b) - mean_b);
        ab += a * b;
        aa += a * a;
        bb += b * b;
    }
    // One root, so that a picture's correlation with itself is exactly 1.
    let size = (aa * bb).sqrt();
    if size > 0.0 && ab.is_finite() { ab / size } else { 0.0 }
}

/// A network that projects, with the weights it has.
struct Eye<'a, B: Backend> {
    projector: Projector<'a, B>,
    network: &'a Network,
}

impl<B: Backend> Eye<'_, B> {
    /// The strongest unit of a map, if it fires; for `None`, of all maps.
    fn strongest(&self, layer: usize, map: Option<usize>) -> Result<Option<SeedUnit>> {
        let mut peaks: Vec<Peak> = self.projector.peaks(layer)?;
        if let Some(map) = map {
            for (other, peak) in peaks.iter_mut().enumerate() {
                peak.value = if other == map { peak.value } else { 0.0 };
            }
        }
        Ok(strongest(&peaks, self.network.layers[layer].output.w, 1).first().copied())
    }

    /// The unit of the same map at the same place as `unit`, or of the map that fires most there; none if
    /// nothing fires there.
    fn at(&self, backend: &B, layer: usize, unit: SeedUnit) -> Result<Option<SeedUnit>> {
        let output = self.projector.workspace.output(layer);
        let mut values = vec![0.0; output.shape().len()];
        backend.download(&mut values, output)?;
        let Shape { w, c, .. } = output.shape();
        let place = (unit.y as usize * w + unit.x as usize) * c;
        let here = &values[place..place + c];
        let same = unit.map as usize;
        let map = if here[same] > 0.0 { same } else { argmax(here) };
        let found = SeedUnit { map: map as u32, value: here[map], ..unit };
        Ok((found.value > 0.0).then_some(found))
    }

    fn project(&mut self, layer: usize, unit: SeedUnit, rule: Rule) -> Result<Vec<f32>> {
        projection_of(&mut self.projector, layer, unit, rule)
    }
}

/// Projects units of images with the model's weights and with those that `random` holds, writes the
/// pictures into `out`, and compares. Returns what was compared and the parts of the page. `progress` is
/// called with the number of images done.
///
/// # Errors
/// If a unit that was asked for does not fire, the folder cannot be written, or the backend refuses.
pub fn sanity<B: Backend>(
    backend: &B,
    model: &Model<B>,
    random: &Params<B>,
    images: &[Picked],
    wanted: &[Wanted],
    out: &Path,
    mut progress: impl FnMut(usize),
) -> Result<(Vec<Compared>, Vec<Section>)> {
    let Model { network, params, preprocess, .. } = model;
    let projector = |params| Projector::new(backend, network, params, preprocess, 1, 1);
    let mut trained = Eye { projector: projector(params)?, network };
    let mut untrained = Eye { projector: projector(random)?, network };
    let (mut compared, mut sections) = (Vec::new(), Vec::new());
    for (number, image) in images.iter().enumerate() {
        let crops = TestCrops::One.of(preprocess, 0);
        trained.projector.look(&image.square, &crops)?;
        untrained.projector.look(&image.square, &crops)?;
        let mut input = vec![0.0; network.input().len()];
        backend.download(&mut input, &trained.projector.workspace.input)?;
        for (place, &Wanted { layer, map }) in wanted.iter().enumerate() {
            let shown = &network.layers[layer];
            let fires = trained.strongest(layer, map)?;
            let title = format!("{} in {}", shown.name, image.name);
            let unit = match (fires, map) {
                (Some(unit), _) => unit,
                (None, None) => {
                    let text = vec!["No unit of this layer fires.".into()];
                    sections.push(Section { title, text, ..Section::default() });
                    continue;
                }
                (None, Some(map)) => {
                    return Err(Error::Network(format!(
                        "{} map {map} does not fire in {}: there is nothing to project",
                        shown.name, image.name
                    )));
                }
            };
            let field = field_box(shown, unit.y as usize, unit.x as usize);
            let prefix = format!("{number:03}-{place}");
            let mut pictures = vec![tile(
                out,
                format!("{prefix}-patch.png"),
                &centre_crop(preprocess, &image.square).crop(field),
                Picture {
                    title: format!("What {} map {} saw", shown.name, unit.map),
                    contrast: PHOTOGRAPH_CONTRAST.into(),
                    image: image.name.clone(),
                    area: Some(image.in_file(preprocess, field)),
                    ..Picture::default()
                },
            )?];
            let random_unit = untrained.at(backend, layer, unit)?;
            for (name, rule) in RULES {
                let by_trained = trained.project(layer, unit, rule)?;
                let by_random = match random_unit {
                    Some(unit) => Some(untrained.project(layer, unit, rule)?),
                    None => None,
                };
                let both = [
                    ("trained", Some(&by_trained), Some(unit)),
                    ("random", by_random.as_ref(), random_unit),
                ];
                for (weights, pixels, unit) in both {
                    let (Some(pixels), Some(unit)) = (pixels, unit) else { continue };
                    let file = format!("{prefix}-{name}-{weights}.png");
                    let picture = projection_image(preprocess, pixels).crop(field);
                    pictures.push(tile(
                        out,
                        file,
                        &picture,
                        Picture {
                            title: format!("{name}, {weights} weights"),
                            method: format!(
                                "{} map {}, row {}, column {}, activation {}",
                                shown.name,
                                unit.map,
                                unit.y,
                                unit.x,
                                short(unit.value)
                            ),
                            contrast: PROJECTION_CONTRAST.into(),
                            image: image.name.clone(),
                            area: Some(image.in_file(preprocess, field)),
                            ..Picture::default()
                        },
                    )?);
                }
                let (Some(by_random), Some(random_unit)) = (by_random, random_unit) else {
                    continue;
                };
                let size = preprocess.size;
                let here = |pixels: &[f32]| inside(pixels, size, field);
                compared.push(Compared {
                    image: image.name.clone(),
                    layer: shown.name.clone(),
                    unit: [unit.map, unit.y, unit.x].map(|v| v as usize),
                    random_map: random_unit.map as usize,
                    rule: name,
                    trained_random: correlation(&here(&by_trained), &here(&by_random)),
                    trained_image: correlation(&here(&by_trained), &here(&input)),
                    random_image: correlation(&here(&by_random), &here(&input)),
                });
            }
            let text = match random_unit {
                None => vec!["With random weights nothing fires at this place.".into()],
                Some(random) if random.map != unit.map => vec![format!(
                    "With random weights map {} does not fire at this place; map {}, which fires most \
                     there, stands for it.",
                    unit.map, random.map
                )],
                Some(_) => Vec::new(),
            };
            sections.push(Section { title, text, pictures, ..Section::default() });
        }
        progress(number + 1);
    }
    Ok((compared, sections))
}

/// Writes a picture, enlarged if it is small, and completes its description.
fn tile(out: &Path, file: String, image: &Image, picture: Picture) -> Result<Picture> {
    let times = SHOWN.div_ceil(image.width.max(1));
    let image = image.resize(image.width * times, image.height * times);
    image.write_png(&out.join(&file)).map_err(Error::io("write", out))?;
    Ok(Picture { file, size: [image.width, image.height], ..picture })
}

/// The values of a picture `[size, size, 3]` inside a box.
fn inside(pixels: &[f32], size: usize, field: [i64; 4]) -> Vec<f32> {
    let [x0, y0, x1, y1] = field.map(|edge| edge.clamp(0, size as i64) as usize);
    let row = |y: usize| &pixels[(y * size + x0) * 3..(y * size + x1) * 3];
    (y0..y1).flat_map(|y| row(y).iter().copied()).collect()
}

/// Writes `sanity.csv`, `sanity.json` and the page; returns the page's path.
///
/// # Errors
/// If the folder cannot be written.
pub fn write(
    out: &Path,
    network: &Network,
    facts: Vec<(String, String)>,
    compared: &[Compared],
    sections: Vec<Section>,
) -> io::Result<PathBuf> {
    let summary = Section { tables: vec![table(compared)], ..Section::default() };
    let figure = Figure {
        study: "sanity".into(),
        title: format!("What the pictures of {} show of its training", network.architecture.name),
        paper: String::new(),
        facts,
        how: vec![
            "Each unit is projected by three rules, with the trained weights and, from the same place of \
             the layer, with weights drawn afresh. If the two pictures are much alike, the picture tells of the image and of the \
             architecture, and little of what was learnt."
                .into(),
            "Nie et al. (2018) found that a deconvnet and guided backpropagation partly recover the image, \
             whatever the weights, and that the gradient does not: compare the last columns of the table."
                .into(),
        ],
        sections: std::iter::once(summary).chain(sections).collect(),
        files: vec![
            ("sanity.csv".into(), "every correlation".into()),
            ("sanity.json".into(), "the same".into()),
        ],
    };
    let head = ["image", "layer", "map", "y", "x", "random_map", "rule"];
    let head = [&head[..], &["trained_random", "trained_image", "random_image"]].concat();
    let rows = compared.iter().map(|c| {
        let mut row = vec![c.image.clone(), c.layer.clone()];
        row.extend(c.unit.iter().chain([&c.random_map]).map(usize::to_string));
        row.push(c.rule.into());
        row.extend([c.trained_random, c.trained_image, c.random_image].map(|v| v.to_string()));
        row
    });
    write_whole(&out.join("sanity.csv"), csv(&head, rows).as_bytes())?;
    write_whole(&out.join("sanity.json"), &serde_json::to_vec_pretty(compared)?)?;
    figure.write(out)
}

/// Mean correlations by layer and rule.
fn table(compared: &[Compared]) -> Table {
    let mut keys: Vec<(&str, &str)> = Vec::new();
    for c in compared {
        let key = (c.layer.as_str(), c.rule);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let row = |(layer, rule): (&str, &str)| {
        let same: Vec<&Compared> =
            compared.iter().filter(|c| (c.layer.as_str(), c.rule) == (layer, rule)).collect();
        let mean = |value: fn(&Compared) -> f64| {
            let sum: f64 = same.iter().map(|c| value(c)).sum();
            format!("{:.2}", sum / same.len() as f64).replace('-', "−")
        };
        vec![
            format!("{layer}, {rule}"),
            mean(|c| c.trained_random),
            mean(|c| c.trained_image),
            mean(|c| c.random_image),
            same.len().to_string(),
            same.iter().filter(|c| c.random_map == c.unit[0]).count().to_string(),
        ]
    };
    let head = [
        "",
        "trained – random",
        "trained – image",
        "random – image",
        "pictures",
        "of the same map",
    ];
    Table {
        caption: "Mean correlation of the pixels in the receptive field".into(),
        head: head.map(String::from).into(),
        rows: keys.into_iter().map(row).collect(),
        notes: vec![
            "1 is the same picture up to brightness and contrast, 0 no linear relation. Both pictures are \
             of the same place, and so of the same pixels; the image is what the network sees. A gradient may follow the image with either sign, so its mean may be near \
             0 though single ones are not."
                .into(),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn correlations_of_known_pictures() {
        let a = [1.0, 2.0, 4.0, -3.0, 0.5];
        let minus: Vec<f32> = a.iter().map(|v| -v).collect();
        let moved: Vec<f32> = a.iter().map(|v| 2.0 * v + 8.0).collect();
        assert_eq!(correlation(&a, &a), 1.0);
        assert_eq!(correlation(&a, &minus), -1.0);
        assert!((correlation(&a, &moved) - 1.0).abs() < 1e-12);
        assert_eq!(correlation(&[1.0, -1.0, 1.0, -1.0], &[1.0, 1.0, -1.0, -1.0]), 0.0);
        // Of a straight line and its square, by hand.
        let (line, square) = ([0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 4.0, 9.0]);
        assert!((correlation(&line, &square) - 15.0 / (5.0f64 * 49.0).sqrt()).abs() < 1e-12);
        assert_eq!(correlation(&[2.0; 5], &a), 0.0);
        assert_eq!(correlation(&[f32::NAN; 5], &a), 0.0);
        assert_eq!(correlation(&[], &[]), 0.0);
    }

    #[test]
    fn only_the_field_is_compared() {
        let pixels: Vec<f32> = (0..4 * 4 * 3).map(|v| v as f32).collect();
        assert_eq!(inside(&pixels, 4, [1, 2, 2, 3]), [27.0, 28.0, 29.0]);
        assert_eq!(inside(&pixels, 4, [-9, -9, 9, 9]), pixels);
        assert_eq!(inside(&pixels, 4, [-9, -9, 1, 1]), [0.0, 1.0, 2.0]);
    }
}
