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

use serde::Serialize;

use super::image_selection::StudyImage;
use super::numbers::argmax;
use super::pixels::{centre_crop, clipped, field_box, projection_image, seen_box};
use super::{Facts, Session, Study, projection_of};
use crate::backend::{Backend, Peak, SeedUnit};
use crate::model::{Model, Network, Params, Projector, Rule, strongest};
use crate::picture::Image;
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

/// The rules with their names.
pub(crate) const RULES: [(&str, Rule); 3] =
    [("deconvnet", Rule::DECONVNET), ("gradient", Rule::GRADIENT), ("guided", Rule::GUIDED)];

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// In each image.
    pub units: Vec<Wanted>,
}

/// A layer and a map of it, or its strongest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Wanted {
    /// Index of the layer.
    pub layer: usize,
    /// The map; for `None` the one that fires most.
    pub map: Option<usize>,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Sanity {
    /// What it was made with.
    pub facts: Facts,
    /// The network's name.
    pub network: String,
    /// Image by image.
    pub images: Vec<OfImage>,
}

/// What was found of one image.
#[derive(Clone, Debug, Serialize)]
pub struct OfImage {
    /// The image's name.
    pub image: String,
    /// Those that were wanted.
    pub units: Vec<OfUnit>,
}

/// What was found of a unit that was wanted.
#[derive(Clone, Debug, Serialize)]
pub struct OfUnit {
    /// The layer's name.
    pub layer: String,
    /// None if nothing in the layer fires.
    pub fired: Option<Fired>,
}

/// A unit that fires, and its projections.
#[derive(Clone, Debug, Serialize)]
pub struct Fired {
    /// The unit.
    pub unit: SeedUnit,
    /// What it sees, in pixels of the file.
    pub area: [f64; 4],
    /// What it saw.
    #[serde(skip)]
    pub patch: Image,
    /// By each of the three rules (deconvnet, gradient, guided), cut to the receptive field.
    #[serde(skip)]
    pub projections: Vec<Image>,
    /// The same with random weights; none if nothing fires there with them.
    pub random: Option<Random>,
}

/// A unit's projections with random weights.
#[derive(Clone, Debug, Serialize)]
pub struct Random {
    /// The unit of the same map at the same place, or of the map that fires most there.
    pub unit: SeedUnit,
    /// By each of the rules, cut to the receptive field.
    #[serde(skip)]
    pub projections: Vec<Image>,
    /// By each of the rules.
    pub compared: Vec<Comparison>,
}

impl Sanity {
    /// All that was compared: by image, then by unit, then by rule.
    pub fn compared(&self) -> impl Iterator<Item = &Comparison> {
        let units = self.images.iter().flat_map(|image| &image.units);
        let random = units.filter_map(|unit| unit.fired.as_ref()?.random.as_ref());
        random.flat_map(|random| &random.compared)
    }
}

/// One unit, by one rule, with trained and with random weights.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
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
struct UnitProjector<'a, B: Backend> {
    projector: Projector<'a, B>,
    network: &'a Network,
}

impl<B: Backend> UnitProjector<'_, B> {
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

    /// A unit's projections by each of the rules.
    fn project(&mut self, layer: usize, unit: SeedUnit) -> Result<Vec<Vec<f32>>> {
        let by = |(_, rule): &(_, Rule)| projection_of(&mut self.projector, layer, unit, *rule);
        RULES.iter().map(by).collect()
    }
}

/// Projects units of images with the model's weights and with those that `random` holds, and compares.
///
/// # Errors
/// If a map that was asked for does not fire, or a backend operation fails.
pub fn run<B: Backend>(
    session: &mut Session<'_, B>,
    model: &Model<B>,
    random: &Params<B>,
    settings: &Settings,
    images: &[StudyImage],
) -> Result<Sanity> {
    let Model { network, params, preprocess, .. } = model;
    let backend = session.backend;
    let projector = |params| Projector::new(backend, network, params, preprocess, 1, 1);
    let mut trained = UnitProjector { projector: projector(params)?, network };
    let mut untrained = UnitProjector { projector: projector(random)?, network };
    let mut found = Vec::new();
    for (number, image) in images.iter().enumerate() {
        let crops = TestCrops::One.of(preprocess, 0);
        trained.projector.look(&image.square, &crops)?;
        untrained.projector.look(&image.square, &crops)?;
        let mut input = vec![0.0; network.input().len()];
        backend.download(&mut input, &trained.projector.workspace.input)?;
        let mut units = Vec::new();
        for &Wanted { layer, map } in &settings.units {
            let name = network.layers[layer].name.clone();
            let fired = match (trained.strongest(layer, map)?, map) {
                (Some(unit), _) => {
                    let projectors = [&mut trained, &mut untrained];
                    Some(compare(backend, model, projectors, image, &input, layer, unit)?)
                }
                (None, None) => None,
                (None, Some(map)) => {
                    return Err(Error::Network(format!(
                        "{name} map {map} does not fire in {}: there is nothing to project",
                        image.name
                    )));
                }
            };
            units.push(OfUnit { layer: name, fired });
        }
        found.push(OfImage { image: image.name.clone(), units });
        session.progress("sanity: images", number + 1, images.len(), "");
    }
    let (facts, network) = (session.facts.clone(), network.architecture.name.clone());
    Ok(Sanity { facts, network, images: found })
}

/// Projects a unit of the image that both networks, the trained and the random one, have looked at; `input`
/// is what they saw of it.
fn compare<B: Backend>(
    backend: &B,
    model: &Model<B>,
    [trained, untrained]: [&mut UnitProjector<'_, B>; 2],
    image: &StudyImage,
    input: &[f32],
    layer: usize,
    unit: SeedUnit,
) -> Result<Fired> {
    let Model { network, preprocess, .. } = model;
    let shown = &network.layers[layer];
    let field = field_box(shown, unit.y as usize, unit.x as usize);
    let seen = seen_box(shown, unit.y as usize, unit.x as usize);
    let cut = |all: &[Vec<f32>]| {
        all.iter().map(|pixels| projection_image(preprocess, pixels).crop(field)).collect()
    };
    let by_trained = trained.project(layer, unit)?;
    let mut random = None;
    if let Some(random_unit) = untrained.at(backend, layer, unit)? {
        let by_random = untrained.project(layer, random_unit)?;
        let here = |pixels: &[f32]| inside(pixels, network.input(), seen);
        let compared = RULES.iter().zip(by_trained.iter().zip(&by_random)).map(
            |((rule, _), (by_trained, by_random))| Comparison {
                image: image.name.clone(),
                layer: shown.name.clone(),
                unit: [unit.map, unit.y, unit.x].map(|v| v as usize),
                random_map: random_unit.map as usize,
                rule,
                trained_random: correlation(&here(by_trained), &here(by_random)),
                trained_image: correlation(&here(by_trained), &here(input)),
                random_image: correlation(&here(by_random), &here(input)),
            },
        );
        random = Some(Random {
            unit: random_unit,
            compared: compared.collect(),
            projections: cut(&by_random),
        });
    }
    Ok(Fired {
        unit,
        area: image.in_file(preprocess, seen),
        patch: centre_crop(preprocess, &image.square).crop(field),
        projections: cut(&by_trained),
        random,
    })
}

/// The values of a picture inside a box of it.
fn inside(pixels: &[f32], Shape { h, w, c, .. }: Shape, area: [i64; 4]) -> Vec<f32> {
    let [x0, y0, x1, y1] = clipped([h, w], area);
    let row = |y: usize| &pixels[(y * w + x0) * c..(y * w + x1) * c];
    (y0..y1).flat_map(|y| row(y).iter().copied()).collect()
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
        assert_eq!(inside(&pixels, Shape::new(1, 4, 4, 3), [1, 2, 2, 3]), [27.0, 28.0, 29.0]);
        assert_eq!(inside(&pixels, Shape::new(1, 4, 4, 3), [-9, -9, 9, 9]), pixels);
        assert_eq!(inside(&pixels, Shape::new(1, 4, 4, 3), [-9, -9, 1, 1]), [0.0, 1.0, 2.0]);
    }
}
