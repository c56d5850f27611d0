//! What a layer's maps have to do with classes: which of them matter to one, and how strongly one fires for each.
//!
//! What a map contributes to a class is, for an image of it, its activations times the gradient of the class's logit
//! by them, summed over its units: by how much the logit would fall, to first order, without the map.

use std::sync::Arc;

use serde::Serialize;

use super::engine::Progress;
use crate::Result;
use crate::backend::Backend;
use crate::data::classes::Classes;
use crate::data::images::{Images, Scratch};
use crate::model::{Model, Projector};
use crate::shape::Shape;
use crate::train::evaluate::{TestCrops, softmax};

/// Images of a class whose contributions are averaged, at most.
const OF_A_CLASS: usize = 50;
/// Images of a histogram, at most: as many of each class.
const OF_ALL: usize = 1000;
/// Images of a class that are shown.
const SHOWN: usize = 12;
const BINS: usize = 24;

/// Images that are looked at one by one, as far as they can be read.
struct Looked<'a, B: Backend> {
    model: Arc<Model<B>>,
    images: Arc<Images>,
    chosen: Vec<u32>,
    done: usize,
    projector: Option<Projector<'a, B>>,
}

impl<'a, B: Backend> Looked<'a, B> {
    fn new(model: Arc<Model<B>>, images: Arc<Images>, chosen: Vec<u32>) -> Self {
        Looked { model, images, chosen, done: 0, projector: None }
    }

    fn progress(&self) -> Progress {
        Progress { done: self.done, total: self.chosen.len(), failed: None }
    }

    /// Looks at the next image; none at the end, and none for an image that cannot be read.
    fn next(&mut self, backend: &'a B) -> Result<Option<(u32, &mut Projector<'a, B>)>> {
        let Some(&image) = self.chosen.get(self.done) else { return Ok(None) };
        self.done += 1;
        let mut square = vec![0; self.images.bytes_per_image()];
        if self.images.read(image as usize, &mut Scratch::default(), &mut square)?.is_none() {
            return Ok(None);
        }
        let projector = match &mut self.projector {
            Some(projector) => projector,
            none => none.insert(Projector::shared(backend, self.model.clone(), 1, 1)?),
        };
        projector.look(&square, &TestCrops::One.of(&self.model.preprocess, 0))?;
        Ok(Some((image, projector)))
    }

    /// Whether there are more; if not, what they were looked at with is given back.
    fn finish_if_done(&mut self) -> bool {
        let is_more = self.done < self.chosen.len();
        if !is_more {
            self.projector = None;
        }
        is_more
    }
}

/// What a layer's maps contribute to a class.
pub(super) struct OfClass<'a, B: Backend> {
    looked: Looked<'a, B>,
    layer: usize,
    class: usize,
    /// What the data number it.
    data_class: u32,
    /// By map, over the images so far.
    sums: Vec<f64>,
    /// Images and the class's probability in them, the most probable first.
    images: Vec<(u32, f64)>,
    read: usize,
}

/// The same for the page.
#[derive(Serialize)]
pub(super) struct ClassShown {
    #[serde(flatten)]
    pub progress: Progress,
    /// What the data number the class.
    data_class: u32,
    /// Images that could be read, over which the mean is.
    read: usize,
    maps: Vec<Contribution>,
    images: Vec<ImageOfClass>,
}

#[derive(Serialize)]
struct Contribution {
    map: usize,
    contribution: f64,
}

#[derive(Serialize)]
struct ImageOfClass {
    id: String,
    probability: f64,
}

impl<'a, B: Backend> OfClass<'a, B> {
    /// Of a class of the network, which the data number otherwise.
    pub fn new(
        model: Arc<Model<B>>,
        images: Arc<Images>,
        layer: usize,
        class: usize,
        data_class: u32,
    ) -> Self {
        let all: Vec<u32> =
            (0..images.len() as u32).filter(|i| images.class(*i as usize) == data_class).collect();
        let sums = vec![0.0; model.network.layers[layer].output.c];
        let looked = Looked::new(model, images, evenly(&all, OF_A_CLASS));
        OfClass { looked, layer, class, data_class, sums, images: Vec::new(), read: 0 }
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.looked.progress()
    }

    /// Looks at one more image; whether there are more.
    ///
    /// # Errors
    /// If a shard can no longer be read, or a backend operation fails.
    pub fn go_on(&mut self, backend: &'a B) -> Result<bool> {
        let (layer, class) = (self.layer, self.class);
        if let Some((image, projector)) = self.looked.next(backend)? {
            let found = contributions(backend, projector, layer, class)?;
            self.sums.iter_mut().zip(found.maps).for_each(|(sum, more)| *sum += more);
            self.read += 1;
            let place = self.images.partition_point(|(_, other)| *other > found.probability);
            self.images.insert(place, (image, found.probability));
            self.images.truncate(SHOWN);
        }
        Ok(self.looked.finish_if_done())
    }

    /// What has been found so far; `split` is the name of the images' split.
    pub fn shown(&self, split: &str) -> ClassShown {
        let mean = |(map, sum): (usize, &f64)| {
            let contribution = sum / self.read.max(1) as f64;
            Contribution { map, contribution }
        };
        let mut maps: Vec<Contribution> = self.sums.iter().enumerate().map(mean).collect();
        maps.sort_by(|a, b| b.contribution.total_cmp(&a.contribution));
        let image = |&(image, probability): &(u32, f64)| ImageOfClass {
            id: format!("{split}/{image}"),
            probability,
        };
        ClassShown {
            progress: self.looked.progress(),
            data_class: self.data_class,
            read: self.read,
            maps,
            images: self.images.iter().map(image).collect(),
        }
    }
}

struct Contributions {
    maps: Vec<f64>,
    probability: f64,
}

/// By the image that a projector has looked at.
fn contributions<B: Backend>(
    backend: &B,
    projector: &mut Projector<'_, B>,
    layer: usize,
    class: usize,
) -> Result<Contributions> {
    let logits = projector.workspace.logits();
    let shape = logits.shape();
    let mut values = vec![0.0; shape.len()];
    backend.download(&mut values, logits)?;
    let probability = softmax(&values).nth(class).unwrap_or(0.0);
    values.fill(0.0);
    values[class] = 1.0;
    projector.workspace.signal().reshape(shape);
    backend.upload(projector.workspace.signal(), &values)?;
    projector.gradient_at(layer)?;
    let Shape { c, .. } = projector.workspace.output(layer).shape();
    let mut output = vec![0.0; projector.workspace.output(layer).shape().len()];
    backend.download(&mut output, projector.workspace.output(layer))?;
    let mut gradient = vec![0.0; output.len()];
    backend.download(&mut gradient, projector.workspace.signal())?;
    let mut maps = vec![0.0; c];
    for (output, gradient) in output.chunks_exact(c).zip(gradient.chunks_exact(c)) {
        for ((sum, a), g) in maps.iter_mut().zip(output).zip(gradient) {
            *sum += f64::from(*a) * f64::from(*g);
        }
    }
    Ok(Contributions { maps, probability })
}

/// The largest activation of each of a layer's maps in images of all classes.
pub(super) struct Histograms<'a, B: Backend> {
    looked: Looked<'a, B>,
    layer: usize,
    /// The class that the data give to an image, and its maps' largest activations.
    found: Vec<(u32, Vec<f32>)>,
}

/// One map's for the page.
#[derive(Serialize)]
pub(super) struct Histogram {
    #[serde(flatten)]
    pub progress: Progress,
    edges: Vec<f64>,
    classes: Vec<ClassCounts>,
}

#[derive(Serialize)]
struct ClassCounts {
    class: u32,
    name: String,
    counts: Vec<u32>,
}

impl<'a, B: Backend> Histograms<'a, B> {
    /// Over images of each of so many classes.
    pub fn new(model: Arc<Model<B>>, images: Arc<Images>, layer: usize, classes: usize) -> Self {
        let mut of_class: Vec<Vec<u32>> = vec![Vec::new(); classes.max(1)];
        for image in 0..images.len() as u32 {
            if let Some(of_class) = of_class.get_mut(images.class(image as usize) as usize) {
                of_class.push(image);
            }
        }
        let each = (OF_ALL / of_class.len()).clamp(1, OF_A_CLASS);
        let taken: Vec<Vec<u32>> = of_class.iter().map(|all| evenly(all, each)).collect();
        // In turns, so that early histograms are of all classes.
        let chosen = (0..each).flat_map(|i| taken.iter().filter_map(move |of| of.get(i).copied()));
        let chosen = chosen.take(OF_ALL).collect();
        Histograms { looked: Looked::new(model, images, chosen), layer, found: Vec::new() }
    }

    /// Looks at one more image; whether there are more.
    ///
    /// # Errors
    /// If a shard can no longer be read, or a backend operation fails.
    pub fn go_on(&mut self, backend: &'a B) -> Result<bool> {
        let layer = self.layer;
        if let Some((image, projector)) = self.looked.next(backend)? {
            let peaks = projector.peaks(layer)?.iter().map(|peak| peak.value).collect();
            self.found.push((self.looked.images.class(image as usize), peaks));
        }
        Ok(self.looked.finish_if_done())
    }

    /// Those of a map so far.
    pub fn shown(&self, map: usize, names: Option<&Classes>) -> Histogram {
        let values = self.found.iter().map(|(class, peaks)| (*class, f64::from(peaks[map])));
        let values: Vec<(u32, f64)> = values.filter(|(_, value)| value.is_finite()).collect();
        let edges = edges(values.iter().map(|(_, value)| *value));
        let mut classes: Vec<ClassCounts> = Vec::new();
        for (class, value) in values {
            let place = classes.binary_search_by_key(&class, |counts| counts.class);
            let place = place.unwrap_or_else(|place| {
                let name = names.and_then(|names| names.names.get(class as usize));
                let name = name.cloned().unwrap_or_default();
                classes.insert(place, ClassCounts { class, name, counts: vec![0; BINS] });
                place
            });
            classes[place].counts[bin(&edges, value)] += 1;
        }
        Histogram { progress: self.looked.progress(), edges, classes }
    }
}

/// The edges of bins of one width that hold all values; none if there are no values.
fn edges(values: impl Iterator<Item = f64> + Clone) -> Vec<f64> {
    let low = values.clone().fold(f64::INFINITY, f64::min);
    let high = values.fold(f64::NEG_INFINITY, f64::max);
    if low > high {
        return Vec::new();
    }
    let width = if high > low { (high - low) / BINS as f64 } else { 1.0 };
    (0..=BINS).map(|i| low + width * i as f64).collect()
}

/// Which bin a value is in; the last edge belongs to the last bin.
fn bin(edges: &[f64], value: f64) -> usize {
    edges.partition_point(|edge| *edge <= value).clamp(1, BINS) - 1
}

/// At most so many of a list, evenly over it.
fn evenly(all: &[u32], most: usize) -> Vec<u32> {
    let count = all.len().min(most);
    (0..count).map(|i| all[i * all.len() / count]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_hold_every_value_once() {
        let values = [0.0, 0.5, 3.0, 12.0, 11.9];
        let edges = edges(values.iter().copied());
        assert_eq!((edges[0], edges[BINS], edges.len()), (0.0, 12.0, BINS + 1));
        assert_eq!(values.map(|value| bin(&edges, value)), [0, 1, 6, BINS - 1, BINS - 1]);
        let same = super::edges([2.0, 2.0].into_iter());
        assert_eq!((same[0], bin(&same, 2.0)), (2.0, 0));
        assert!(super::edges([].into_iter()).is_empty());
    }

    #[test]
    fn some_are_taken_evenly() {
        assert_eq!(evenly(&[1, 2, 3, 4, 5, 6], 3), [1, 3, 5]);
        assert_eq!(evenly(&[1, 2], 3), [1, 2]);
        assert_eq!(evenly(&[], 3), [0; 0]);
    }
}
