//! The paper's Figure 7: a square slides over an image, and what the network makes of it is noted.
//!
//! At every position of the square: the total activity of the map of a high layer that was strongest
//! before (its sum over the map), the probability of the image's class, and the most probable class.
//! Where the probability falls, the network looked.

use serde::{Deserialize, Serialize};

use super::extractor::FeatureExtractor;
use super::image_selection::StudyImage;
use super::numbers::argmax;
use super::occluder::{Cover, Fill};
use super::peaks::spatial_layers;
use super::pixels::{projection_image, seen_box};
use super::{Facts, Session, Study, projection_of};
use crate::Result;
use crate::backend::{Backend, SeedUnit};
use crate::model::{Model, Network, Preprocess, Projector, Rule, strongest};
use crate::picture::Image;
use crate::shape::Shape;
use crate::train::evaluate::{TestCrops, softmax};

/// See [`super::STUDIES`].
pub const STUDY: Study = Study {
    name: "occlusion",
    shows: "what covering parts of an image changes",
    paper: "Figure 7",
    of_one_run: true,
};

/// Covered images at a time.
const BATCH: usize = 64;
/// Steps of the square from one side of the image to the other, unless a stride is given.
const STEPS: usize = 24;

/// How the square slides.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Its side in pixels of the network's input, at most the shorter one's.
    pub square: usize,
    /// Stride: from one position to the next.
    pub stride: usize,
    /// Its fill value.
    pub fill: Fill,
    /// Index of the layer whose activity is noted.
    pub layer: usize,
}

impl Settings {
    /// For what is not given: the last spatial convolution, a square with a quarter of the input's (shorter) side,
    /// and as many pixels from one place to the next as make 25 positions on its (longer) side.
    ///
    /// # Errors
    /// If no layer is given and the network has no spatial convolution.
    pub fn new(
        network: &Network,
        layer: Option<usize>,
        square: Option<usize>,
        stride: Option<usize>,
        fill: Fill,
    ) -> Result<Self> {
        let layer = match layer {
            Some(layer) => layer,
            None => *spatial_layers(network, false)?.last().expect("one at least"),
        };
        let Shape { h, w, .. } = network.input();
        let square = square.unwrap_or(h.min(w).div_ceil(4));
        let stride = stride.unwrap_or(h.max(w).saturating_sub(square).div_ceil(STEPS).max(1));
        Ok(Settings { square, stride, fill, layer })
    }

    /// The square's side on an input of so many rows and columns, its first rows and its first columns.
    pub(crate) fn sweep(&self, size: [usize; 2]) -> (usize, [Vec<usize>; 2]) {
        let square = self.square.min(size[0]).min(size[1]);
        (square, size.map(|size| corners(size, square, self.stride)))
    }
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Occlusion {
    /// What it was made with.
    pub facts: Facts,
    /// The network's name.
    pub network: String,
    /// Its preprocessing.
    pub preprocess: Preprocess,
    /// Names of its classes.
    pub classes: Vec<String>,
    /// How the square slid.
    pub settings: Settings,
    /// Name of the layer whose activity was noted.
    pub layer: String,
    /// Image by image.
    pub images: Vec<OfImage>,
}

/// What was found of one image.
#[derive(Clone, Debug, Serialize)]
pub struct OfImage {
    /// The image.
    pub image: StudyImage,
    /// What was noted.
    pub occluded: Occluded,
    /// The strongest unit of the map without the square, projected; none if it did not fire.
    pub projected: Option<Projected>,
    /// The object's box, in pixels of the centre crop.
    pub object: Option<[f64; 4]>,
}

/// A unit and its projection by the deconvnet.
#[derive(Clone, Debug, Serialize)]
pub struct Projected {
    /// The unit.
    pub unit: SeedUnit,
    /// What it sees, in pixels of the centre crop.
    pub field: [i64; 4],
    /// As large as the network's input.
    #[serde(skip)]
    pub projection: Image,
}

/// What was noted of one image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Occluded {
    /// Side of the square, after it was cut to the input's.
    pub square: usize,
    /// First rows of the square and first columns, in pixels of the centre crop.
    pub corners: [Vec<usize>; 2],
    /// The map whose activity is noted.
    pub map: usize,
    /// Without the square.
    pub before: Reading,
    /// `[row, column]` over `corners`.
    pub places: Vec<Reading>,
}

/// What the network makes of an image.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// Sum of the map.
    pub activity: f32,
    /// Probability of the image's class.
    pub probability: f64,
    /// The most probable class; ties go to the first.
    pub label: usize,
}

impl Occluded {
    /// Whether it is of a square that slides so over `size` pixels and of a layer of `maps` maps: what was
    /// read from a disk need not be.
    fn fits(&self, size: [usize; 2], settings: &Settings, maps: usize) -> bool {
        let (square, corners) = settings.sweep(size);
        self.square == square
            && self.corners == corners
            && self.places.len() == corners[0].len() * corners[1].len()
            && self.map < maps
    }

    /// Row and column in `corners` of a number in `places`.
    pub fn place(&self, number: usize) -> [usize; 2] {
        let columns = self.corners[1].len();
        [number / columns, number % columns]
    }

    /// Where the probability is lowest, as row and column in `corners`; ties go to the first. `None` if
    /// it is nowhere lower than without the square.
    pub fn drop(&self) -> Option<[usize; 2]> {
        let mut lowest = (self.before.probability, None);
        for (i, place) in self.places.iter().enumerate() {
            if place.probability < lowest.0 {
                lowest = (place.probability, Some(self.place(i)));
            }
        }
        lowest.1
    }

    /// The square `[x0, y0, x1, y1]` at a place, in pixels of the centre crop.
    pub fn at(&self, [row, column]: [usize; 2]) -> [i64; 4] {
        let (y, x) = (self.corners[0][row] as i64, self.corners[1][column] as i64);
        let side = self.square as i64;
        [x, y, x + side, y + side]
    }
}

impl OfImage {
    /// The centre of the square where the probability is lowest, as x and y in the centre crop.
    pub(crate) fn centre_of_drop(&self) -> Option<[f64; 2]> {
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
    pub fn places_inside(&self) -> Option<f64> {
        let [x0, y0, x1, y1] = self.object?;
        let Occluded { square, corners, .. } = &self.occluded;
        let share = |corners: &[usize], low: f64, high: f64| {
            let centre =
                |corner: &&usize| (low..high).contains(&(**corner as f64 + *square as f64 / 2.0));
            corners.iter().filter(centre).count() as f64 / corners.len() as f64
        };
        Some(share(&corners[1], x0, x1) * share(&corners[0], y0, y1))
    }
}

/// Slides the square over images, each with the box of its object in pixels of the centre crop, if that is
/// known.
///
/// # Errors
/// If parts cannot be kept, or a backend operation fails.
pub fn run<B: Backend>(
    session: &mut Session<'_, B>,
    model: &Model<B>,
    settings: &Settings,
    images: Vec<(StudyImage, Option<[f64; 4]>)>,
) -> Result<Occlusion> {
    let Model { network, params, preprocess, classes } = model;
    let (layer, backend) = (&network.layers[settings.layer], session.backend);
    let seen: Vec<_> = images.iter().map(|(image, _)| image.fingerprint()).collect();
    let parts = session.parts(&[model], &(seen, settings))?;
    let mut occluder = OcclusionSweep::new(backend, model, settings)?;
    let mut projector = Projector::new(backend, network, params, preprocess, 1, 1)?;
    let total = images.len() * occluder.squares.len();
    let (mut done, mut found) = (0, Vec::new());
    for (number, (image, object)) in images.into_iter().enumerate() {
        let part = format!("image-{number}");
        let fits = |kept: &Occluded| kept.fits(preprocess.size, settings, layer.output.c);
        let occluded = match parts.get(&part).filter(fits) {
            Some(occluded) => occluded,
            None => {
                let occluded = occluder.look(&image, |now| {
                    session.progress("occlusion: positions of the square", done + now, total, "");
                })?;
                parts.put(&part, &occluded)?;
                occluded
            }
        };
        done += occluder.squares.len();
        projector.look(&image.square, &TestCrops::One.of(preprocess, 0))?;
        let peak = projector.peaks(settings.layer)?[occluded.map];
        let unit = peak.unit(occluded.map, layer.output.w);
        let mut projected = None;
        if unit.value > 0.0 {
            let pixels = projection_of(&mut projector, settings.layer, unit, Rule::DECONVNET)?;
            projected = Some(Projected {
                unit,
                field: seen_box(layer, unit.y as usize, unit.x as usize),
                projection: projection_image(preprocess, &pixels),
            });
        }
        found.push(OfImage { image, occluded, projected, object });
    }
    Ok(Occlusion {
        facts: session.facts.clone(),
        network: network.architecture.name.clone(),
        preprocess: preprocess.clone(),
        classes: classes.names.clone(),
        settings: *settings,
        layer: layer.name.clone(),
        images: found,
    })
}

/// First pixels of a square that slides over `size` pixels, the last place at the far edge.
fn corners(size: usize, square: usize, stride: usize) -> Vec<usize> {
    let last = size.saturating_sub(square);
    let mut corners: Vec<usize> = (0..last).step_by(stride.max(1)).collect();
    corners.push(last);
    corners
}

/// A network that looks at covered images, many at a time.
struct OcclusionSweep<'a, B: Backend> {
    extractor: FeatureExtractor<'a, B>,
    model: &'a Model<B>,
    settings: &'a Settings,
    side: usize,
    corners: [Vec<usize>; 2],
    /// `[x0, y0, x1, y1]` of every place, row by row.
    squares: Vec<[i64; 4]>,
}

impl<'a, B: Backend> OcclusionSweep<'a, B> {
    fn new(backend: &'a B, model: &'a Model<B>, settings: &'a Settings) -> Result<Self> {
        let (side, corners) = settings.sweep(model.preprocess.size);
        let [rows, columns] = &corners;
        let squares = rows
            .iter()
            .flat_map(|&y| columns.iter().map(move |&x| [x, y, x + side, y + side]))
            .map(|edges| edges.map(|v| v as i64))
            .collect();
        let extractor = FeatureExtractor::new(backend, model, BATCH)?;
        Ok(OcclusionSweep { extractor, model, settings, side, corners, squares })
    }

    /// Slides the square over an image. `progress` is called with the number of places that are done.
    fn look(&mut self, image: &StudyImage, mut progress: impl FnMut(usize)) -> Result<Occluded> {
        let Settings { fill, layer, .. } = *self.settings;
        let Model { network, preprocess, classes, .. } = self.model;
        let extractor = &mut self.extractor;

        // All batches are of as many images, the uncovered one in the place of what is not there: how a sum
        // is rounded may depend on their number, and a rounding must not look like a drop.
        extractor.forward(&image.square.repeat(BATCH))?;
        let output = network.layers[layer].output;
        let first = strongest(&extractor.peaks(layer)?[..output.c], output.w, 1);
        // If nothing fires, the first map is as good as any.
        let map = first.first().map_or(0, |unit| unit.map as usize);
        let noted = |sums: &[f32], logits: &[f32]| {
            let probabilities: Vec<f64> = softmax(logits).collect();
            let (probability, label) = (probabilities[image.class], argmax(&probabilities));
            Reading { activity: sums[map], probability, label }
        };
        let noted_of =
            |extractor: &FeatureExtractor<'_, B>, images: usize| -> Result<Vec<Reading>> {
                let (sums, logits) = (extractor.sums(layer)?, extractor.logits()?);
                let rows = sums.chunks_exact(output.c).zip(logits.chunks_exact(classes.len()));
                Ok(rows.take(images).map(|(sums, logits)| noted(sums, logits)).collect())
            };
        let before = noted_of(extractor, 1)?[0];

        let cover = Cover::new(preprocess, &image.square, fill);
        let (mut places, mut pixels) = (Vec::with_capacity(self.squares.len()), Vec::new());
        for some in self.squares.chunks(BATCH) {
            pixels.clear();
            for place in some {
                let from = pixels.len();
                pixels.extend_from_slice(&image.square);
                cover.lay(&mut pixels[from..], *place);
            }
            pixels.extend(image.square.repeat(BATCH - some.len()));
            extractor.forward(&pixels)?;
            places.extend(noted_of(extractor, some.len())?);
            progress(places.len());
        }
        Ok(Occluded { square: self.side, corners: self.corners.clone(), map, before, places })
    }
}

#[cfg(test)]
mod tests {
    use super::{Occluded, Reading, corners};

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
        let noted = |probability| Reading { activity: 0.0, probability, label: 0 };
        let mut occluded = Occluded {
            square: 2,
            corners: [vec![0, 3], vec![0, 3]],
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
