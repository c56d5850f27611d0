//! How much a projection shows of what was learnt: the same unit projected with trained weights and with
//! freshly drawn ones, by all three rules (Adebayo et al. 2018, Nie et al. 2018).
//!
//! Weights are randomised from the top down, one layer more each time, until none is left of those that were
//! trained (the *cascading randomisation* of Adebayo et al.). A picture that hardly changes when all that was
//! learnt is thrown away tells of the image and of the architecture, not of training. What lies above a unit
//! has no part in its projection, so its cascade begins with its own layer; that of a logit is of all layers.
//!
//! The network's logit of the image's class is followed by the gradient and by guided backpropagation, as in
//! the article: whatever its sign, from 1. Any other unit is projected where it fires: after a layer was
//! randomised the unit of the same map at the same place, or, if that does not fire, the one that fires most
//! there.
//!
//! Beside the pictures stand, over the pixels of the unit's receptive field,
//!
//! ```text
//! r(a, b) = sum (a - mean a)(b - mean b) / sqrt(sum (a - mean a)^2 sum (b - mean b)^2)
//! ```
//!
//! of the values (Pearson's correlation); r of their magnitudes, since a gradient may point at the same places
//! with other signs, which r of the values takes for no likeness at all; and the structural similarity
//! (SSIM, Wang et al. 2004) of the two pictures as they are shown, each with a contrast of its own, in bytes.

use serde::Serialize;

use super::image_selection::StudyImage;
use super::numbers::argmax;
use super::pixels::{centre_crop, clipped, field_box, projection_image, seen_box, whole};
use super::ssim::ssim;
use super::{Facts, Session, Study, projection_of};
use crate::backend::{Backend, Peak, SeedUnit};
use crate::model::{Model, Network, Params, Projector, Rule, strongest};
use crate::picture::{Image, contrast};
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

/// Those that a class's logit is followed by.
const LOGIT_RULES: &[(&str, Rule)] = RULES.split_at(1).1;

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
    /// The layers with weights from the top, as they are randomised.
    pub cascade: Vec<Randomised>,
    /// Image by image.
    pub images: Vec<OfImage>,
}

/// A layer that is randomised.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Randomised {
    /// Its name.
    pub layer: String,
    /// Standard deviation of its random weights; none if these are not known to be drawn.
    pub std: Option<f64>,
    /// Whether it is known how its trained weights were drawn before training. If not, as of an imported
    /// network, the random ones are drawn as the network's description says, which need not be as large.
    pub initial_is_known: bool,
}

/// What was found of one image.
#[derive(Clone, Debug, Serialize)]
pub struct OfImage {
    /// The image's name.
    pub image: String,
    /// The logit of its class, by the gradient and guided; none if the network has no classes.
    pub logit: Option<Followed>,
    /// Those that were wanted, by each of the three rules (deconvnet, gradient, guided).
    pub units: Vec<OfUnit>,
}

/// What was found of a unit that was wanted.
#[derive(Clone, Debug, Serialize)]
pub struct OfUnit {
    /// The layer's name.
    pub layer: String,
    /// None if nothing in the layer fires.
    pub fired: Option<Followed>,
}

/// A unit, and its projections while the weights are randomised.
#[derive(Clone, Debug, Serialize)]
pub struct Followed {
    /// The unit.
    pub unit: SeedUnit,
    /// What it sees, in pixels of the file.
    pub area: [f64; 4],
    /// What it saw.
    #[serde(skip)]
    pub patch: Image,
    /// First as trained, then with one layer more randomised each time, of those at or below the unit. The
    /// last is that of a network in which nothing is left of what was learnt.
    pub stages: Vec<Stage>,
}

impl Followed {
    /// Its projections with trained weights.
    pub fn trained(&self) -> Option<&Projected> {
        self.stages.first()?.projected.as_ref()
    }

    /// Its projections with random weights; none if nothing fires there with them.
    pub fn random(&self) -> Option<&Projected> {
        self.stages.last()?.projected.as_ref()
    }
}

/// A unit with some of the layers randomised.
#[derive(Clone, Debug, Serialize)]
pub struct Stage {
    /// Number of randomised layers of those that have a part in the unit, from the top.
    pub randomised: usize,
    /// The lowest of them; none if there are none.
    pub down_to: Option<String>,
    /// None if nothing fires at the unit's place.
    pub projected: Option<Projected>,
}

/// Projections of one stage.
#[derive(Clone, Debug, Serialize)]
pub struct Projected {
    /// The unit of the same map at the same place, or of the map that fires most there.
    pub unit: SeedUnit,
    /// By each of the rules, cut to the receptive field.
    #[serde(skip)]
    pub projections: Vec<Image>,
    /// By each of the rules.
    pub compared: Vec<Comparison>,
}

/// One unit, by one rule, with trained weights and with some of them random.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The image.
    pub image: String,
    /// `unit`: a unit that was wanted, where it fires. `logit`: that of the image's class, whatever its sign.
    pub of: &'static str,
    /// The layer.
    pub layer: String,
    /// The map, row and column of the unit.
    pub unit: [usize; 3],
    /// Number of randomised layers of those that have a part in the unit, from the top; 0 is the trained
    /// network beside itself.
    pub randomised: usize,
    /// The lowest of them; empty for none.
    pub down_to: String,
    /// The map at that place with random weights: the same, or the strongest there if that one does not fire.
    pub random_map: usize,
    /// The rule.
    pub rule: &'static str,
    /// Correlation between the trained and the randomised network's projection, from -1 to 1. 0 where one of
    /// two does not vary.
    pub trained_random: f64,
    /// The same of the magnitudes of their values: of where they are, whatever their signs.
    pub magnitudes: f64,
    /// Structural similarity of the two pictures as shown, from -1 to 1, which is that of the same picture.
    pub ssim: f64,
    /// Correlation between the trained network's projection and the image.
    pub trained_image: f64,
    /// Correlation between the randomised network's projection and the image.
    pub random_image: f64,
}

impl Sanity {
    /// All comparisons, stage by stage: by image, first of the class's logit, then by unit; then by stage, then
    /// by rule.
    pub fn stages(&self) -> impl Iterator<Item = &Comparison> {
        let followed = self.images.iter().flat_map(|image| {
            let units = image.units.iter().filter_map(|unit| unit.fired.as_ref());
            image.logit.iter().chain(units)
        });
        let stages = followed.flat_map(|followed| &followed.stages);
        stages.filter_map(|stage| stage.projected.as_ref()).flat_map(|stage| &stage.compared)
    }

    /// The wanted units with all layers randomised: by image, then by unit, then by rule.
    pub fn compared(&self) -> impl Iterator<Item = &Comparison> {
        let units = self.images.iter().flat_map(|image| &image.units);
        let random = units.filter_map(|unit| unit.fired.as_ref()?.random());
        random.flat_map(|random| &random.compared)
    }
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
    backend: &'a B,
    model: &'a Model<B>,
}

impl<'a, B: Backend> UnitProjector<'a, B> {
    fn new(backend: &'a B, model: &'a Model<B>) -> Result<Self> {
        let Model { network, params, preprocess, .. } = model;
        let projector = Projector::new(backend, network, params, preprocess, 1, 1)?;
        Ok(UnitProjector { projector, backend, model })
    }

    fn look(&mut self, image: &StudyImage) -> Result<()> {
        self.projector.look(&image.square, &TestCrops::One.of(&self.model.preprocess, 0))
    }

    /// What the network sees of the image.
    fn input(&self) -> Result<Vec<f32>> {
        let mut input = vec![0.0; self.model.network.input().len()];
        self.backend.download(&mut input, &self.projector.workspace.input)?;
        Ok(input)
    }

    /// The strongest unit of a map, if it fires; for `None`, of all maps.
    fn strongest(&self, layer: usize, map: Option<usize>) -> Result<Option<SeedUnit>> {
        let mut peaks: Vec<Peak> = self.projector.peaks(layer)?;
        if let Some(map) = map {
            for (other, peak) in peaks.iter_mut().enumerate() {
                peak.value = if other == map { peak.value } else { 0.0 };
            }
        }
        Ok(strongest(&peaks, self.model.network.layers[layer].output.w, 1).first().copied())
    }

    /// All maps of a layer at the place of a unit.
    fn values_at(&self, layer: usize, unit: SeedUnit) -> Result<Vec<f32>> {
        let output = self.projector.workspace.output(layer);
        let mut values = vec![0.0; output.shape().len()];
        self.backend.download(&mut values, output)?;
        let Shape { w, c, .. } = output.shape();
        let place = (unit.y as usize * w + unit.x as usize) * c;
        Ok(values[place..place + c].to_vec())
    }

    /// The unit of the same map at the same place as `unit`, or of the map that fires most there; none if
    /// nothing fires there.
    fn at(&self, layer: usize, unit: SeedUnit) -> Result<Option<SeedUnit>> {
        let here = self.values_at(layer, unit)?;
        let same = unit.map as usize;
        let map = if here[same] > 0.0 { same } else { argmax(&here) };
        let found = SeedUnit { map: map as u32, value: here[map], ..unit };
        Ok((found.value > 0.0).then_some(found))
    }
}

/// What is followed through the cascade, and compared with.
struct Subject {
    layer: usize,
    /// Whether it is the logit of the image's class.
    is_logit: bool,
    rules: &'static [(&'static str, Rule)],
    /// What it sees, in pixels of the network's input.
    seen: [i64; 4],
    /// What it could see if the input went on, likewise.
    field: [i64; 4],
    /// What the network sees of the image there.
    input: Vec<f32>,
    /// Projections with trained weights by each of the rules, of what it sees; empty before the first stage.
    trained: Vec<Vec<f32>>,
    found: Followed,
}

impl Subject {
    /// The logit of an image's class; none if the network has no classes.
    fn logit<B: Backend>(
        looked: &UnitProjector<'_, B>,
        image: &StudyImage,
        input: &[f32],
    ) -> Option<Self> {
        let network = &looked.model.network;
        (image.class < network.classes()).then(|| {
            let unit = SeedUnit { map: image.class as u32, y: 0, x: 0, value: 0.0 };
            let layer = network.layers.len() - 1;
            let all = whole(looked.model.preprocess.size);
            let subject = Self::new(looked, image, input, layer, unit);
            // All of the input, also what the layers' strides leave out.
            let area = image.in_file(&looked.model.preprocess, all);
            let patch = image.input(&looked.model.preprocess);
            let found = Followed { area, patch, ..subject.found };
            Subject {
                is_logit: true,
                rules: LOGIT_RULES,
                seen: all,
                field: all,
                input: input.to_vec(),
                found,
                ..subject
            }
        })
    }

    fn new<B: Backend>(
        looked: &UnitProjector<'_, B>,
        image: &StudyImage,
        input: &[f32],
        layer: usize,
        unit: SeedUnit,
    ) -> Self {
        let Model { network, preprocess, .. } = looked.model;
        let place = (unit.y as usize, unit.x as usize);
        let seen = seen_box(&network.layers[layer], place.0, place.1);
        let field = field_box(&network.layers[layer], place.0, place.1);
        Subject {
            layer,
            is_logit: false,
            rules: &RULES,
            seen,
            field,
            input: inside(input, network.input(), seen),
            trained: Vec::new(),
            found: Followed {
                unit,
                area: image.in_file(preprocess, seen),
                patch: centre_crop(preprocess, &image.square).crop(field),
                stages: Vec::new(),
            },
        }
    }

    /// Projects it with the weights that the network now has, which has looked at its image. The first time
    /// these are the trained ones.
    fn add_stage<B: Backend>(
        &mut self,
        looked: &mut UnitProjector<'_, B>,
        image: &str,
        lowest: Option<&str>,
    ) -> Result<()> {
        let is_first = self.found.stages.is_empty();
        if self.is_logit && is_first {
            let map = self.found.unit.map as usize;
            self.found.unit.value = looked.values_at(self.layer, self.found.unit)?[map];
        }
        let unit = match (self.is_logit, is_first) {
            (_, true) => Some(self.found.unit),
            (true, false) => {
                let value = looked.values_at(self.layer, self.found.unit)?;
                Some(SeedUnit { value: value[self.found.unit.map as usize], ..self.found.unit })
            }
            (false, false) => looked.at(self.layer, self.found.unit)?,
        };
        let projected = unit.map(|unit| self.project(looked, image, lowest, unit)).transpose()?;
        let (randomised, down_to) = (self.found.stages.len(), lowest.map(String::from));
        self.found.stages.push(Stage { randomised, down_to, projected });
        Ok(())
    }

    fn project<B: Backend>(
        &mut self,
        looked: &mut UnitProjector<'_, B>,
        image: &str,
        lowest: Option<&str>,
        unit: SeedUnit,
    ) -> Result<Projected> {
        let Model { network, preprocess, .. } = looked.model;
        // A logit's size and sign say nothing of what it depends on.
        let seed = if self.is_logit { SeedUnit { value: 1.0, ..unit } } else { unit };
        let (mut projections, mut seen) = (Vec::new(), Vec::new());
        for (_, rule) in self.rules {
            let pixels = projection_of(&mut looked.projector, self.layer, seed, *rule)?;
            projections.push(projection_image(preprocess, &pixels).crop(self.field));
            seen.push(inside(&pixels, network.input(), self.seen));
        }
        if self.trained.is_empty() {
            self.trained = seen.clone();
        }
        let [x0, y0, x1, y1] = clipped(preprocess.size, self.seen);
        let size = [y1 - y0, x1 - x0, network.input().c];
        let magnitudes = |values: &[f32]| values.iter().map(|v| v.abs()).collect::<Vec<f32>>();
        let shown =
            |values: &[f32]| contrast(values).into_iter().map(f32::from).collect::<Vec<f32>>();
        let compared = self.rules.iter().zip(self.trained.iter().zip(&seen)).map(
            |((rule, _), (trained, random))| Comparison {
                image: image.into(),
                of: if self.is_logit { "logit" } else { "unit" },
                layer: network.layers[self.layer].name.clone(),
                unit: [self.found.unit.map, unit.y, unit.x].map(|v| v as usize),
                randomised: self.found.stages.len(),
                down_to: lowest.unwrap_or_default().into(),
                random_map: unit.map as usize,
                rule,
                trained_random: correlation(trained, random),
                magnitudes: correlation(&magnitudes(trained), &magnitudes(random)),
                ssim: ssim(&shown(trained), &shown(random), size, 255.0),
                trained_image: correlation(trained, &self.input),
                random_image: correlation(random, &self.input),
            },
        );
        Ok(Projected { unit, compared: compared.collect(), projections })
    }
}

/// What is followed in one image.
struct OfOne {
    logit: Option<Subject>,
    units: Vec<(String, Option<Subject>)>,
}

impl OfOne {
    fn subjects(&mut self) -> impl Iterator<Item = &mut Subject> {
        let units = self.units.iter_mut().filter_map(|(_, subject)| subject.as_mut());
        self.logit.iter_mut().chain(units)
    }
}

/// Projects units of images with the model's weights and while these are replaced by those that `random`
/// holds, layer by layer from the top, and compares. A forward pass of each image for each layer with weights
/// that has a part in one of the units; no more memory for weights than the two sets that are handed over.
///
/// # Errors
/// If a map that was asked for does not fire, or a backend operation fails.
pub fn run<B: Backend>(
    session: &mut Session<'_, B>,
    mut model: Model<B>,
    mut random: Params<B>,
    settings: &Settings,
    images: &[StudyImage],
) -> Result<Sanity> {
    let backend = session.backend;
    let mut order: Vec<usize> =
        (0..model.network.layers.len()).filter(|&i| model.params.layers[i].is_some()).collect();
    order.reverse();
    let cascade: Vec<Randomised> = order
        .iter()
        .map(|&layer| Randomised {
            layer: model.network.layers[layer].name.clone(),
            std: random.initial[layer].map(|initial| initial.std),
            initial_is_known: model.params.initial[layer].is_some(),
        })
        .collect();
    let (mut done, total) = (0, (1 + order.len()) * images.len());
    let mut found = Vec::new();
    let mut looked = UnitProjector::new(backend, &model)?;
    for image in images {
        looked.look(image)?;
        let mut of_one = choose(&looked, settings, image)?;
        for subject in of_one.subjects() {
            subject.add_stage(&mut looked, &image.name, None)?;
        }
        found.push(of_one);
        done += 1;
        session.progress("sanity: images", done, total, "as trained");
    }
    drop(looked);
    for (&layer, Randomised { layer: name, .. }) in order.iter().zip(&cascade) {
        std::mem::swap(&mut model.params.layers[layer], &mut random.layers[layer]);
        let mut looked = UnitProjector::new(backend, &model)?;
        for (image, of_one) in images.iter().zip(&mut found) {
            // What lies above a unit has no part in it.
            let mut depending = of_one.subjects().filter(|s| s.layer >= layer).peekable();
            if depending.peek().is_some() {
                looked.look(image)?;
            }
            for subject in depending {
                subject.add_stage(&mut looked, &image.name, Some(name))?;
            }
            done += 1;
            session.progress("sanity: images", done, total, &format!("random down to {name}"));
        }
    }
    let of_unit = |(layer, subject): (String, Option<Subject>)| OfUnit {
        layer,
        fired: subject.map(|subject| subject.found),
    };
    let of_image = |(image, OfOne { logit, units }): (&StudyImage, OfOne)| OfImage {
        image: image.name.clone(),
        logit: logit.map(|subject| subject.found),
        units: units.into_iter().map(of_unit).collect(),
    };
    Ok(Sanity {
        facts: session.facts.clone(),
        network: model.network.architecture.name.clone(),
        cascade,
        images: images.iter().zip(found).map(of_image).collect(),
    })
}

/// What is to be followed in an image that the trained network has looked at.
fn choose<B: Backend>(
    looked: &UnitProjector<'_, B>,
    settings: &Settings,
    image: &StudyImage,
) -> Result<OfOne> {
    let input = looked.input()?;
    let mut units = Vec::new();
    for &Wanted { layer, map } in &settings.units {
        let name = looked.model.network.layers[layer].name.clone();
        let unit = looked.strongest(layer, map)?;
        if let (None, Some(map)) = (unit, map) {
            return Err(Error::Network(format!(
                "{name} map {map} does not fire in {}: there is nothing to project",
                image.name
            )));
        }
        units.push((name, unit.map(|unit| Subject::new(looked, image, &input, layer, unit))));
    }
    Ok(OfOne { logit: Subject::logit(looked, image, &input), units })
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
