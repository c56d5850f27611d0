//! What a walk down from single units needs beside a [`Workspace`](super::Workspace)'s tensors.
//!
//! A unit's receptive field grows on the way down, by
//! `size' = (size - 1) stride + kernel`, `start' = start stride - pad`; outside it all is zero. So
//! the walk holds windows of that size, each sample's at a place of its own ([`Windows`]), and runs the
//! same operations on them as on whole maps, only without padding. What the way up left for it is
//! cut out of the whole maps first.

use super::architecture::{Kind, Layer};
use super::network::{Block, Network};
use crate::Result;
use crate::backend::{Backend, SeedUnit, Tensor};
use crate::shape::{ConvDims, Shape, Windows};

/// Room for windows, of as many samples as descend at a time.
pub struct Room<B: Backend> {
    /// Row and column of each sample's unit.
    pub units: B::Indices,
    /// Windows of what a normalisation has seen.
    pub cut: Tensor<B>,
    /// Windows of a pooling's switches.
    pub switches: B::Bytes,
    /// The same as `units`, on the host.
    places: Vec<u32>,
    /// Windows of pixels, on the host.
    pixels: Vec<f32>,
}

/// What walks down from single units ask of the rest of a workspace.
#[derive(Default)]
pub struct Needs {
    /// Values of one sample's largest window.
    pub descending: usize,
    /// Every convolution of windows there is, of as many samples as descend at a time.
    pub convolutions: Vec<ConvDims>,
}

impl<B: Backend> Room<B> {
    /// Plans walks down from units of any layer, `seeds` at a time; none at all for 0.
    ///
    /// # Errors
    /// If the backend has no room.
    pub fn new(
        backend: &B,
        network: &Network,
        blocks: &[Block],
        seeds: usize,
    ) -> Result<(Needs, Self)> {
        let mut needs = Needs::default();
        let (mut cut, mut switches, mut pixels) = (0, 0, 0);
        for from in 0..if seeds > 0 { blocks.len() } else { 0 } {
            let mut windows = Windows::units(network.layers[blocks[from].layer].output);
            for block in blocks[..=from].iter().rev() {
                let layer = &network.layers[block.layer];
                if ends(layer, &windows) {
                    break; // from here on whole maps
                }
                let above = windows.shape(1, layer.output.c).len();
                if let Some(dims) = layer.convolution() {
                    needs.convolutions.push(dims.with_n(seeds).windowed(windows.size));
                }
                match layer.kind {
                    Kind::MaxPool { .. } => switches = switches.max(above),
                    Kind::Lrn(_) => cut = cut.max(above),
                    _ => {}
                }
                windows = below(layer, &windows);
                let values = windows.shape(1, layer.input.c).len();
                needs.descending = needs.descending.max(values);
                pixels = if block.layer == 0 { pixels.max(values) } else { pixels };
            }
        }
        let room = Room {
            units: backend.indices(2 * seeds)?,
            cut: backend.activations(Shape::new(seeds, 1, 1, cut))?,
            switches: backend.bytes(seeds * switches)?,
            places: Vec::with_capacity(2 * seeds),
            pixels: vec![0.0; seeds * pixels],
        };
        Ok((needs, room))
    }

    /// Begins a walk down: each unit a window of one place, `dy`, with its value.
    ///
    /// # Errors
    /// If the backend refuses.
    pub fn seed(
        &mut self,
        backend: &B,
        dy: &mut Tensor<B>,
        units: &[SeedUnit],
        map: Shape,
    ) -> Result<()> {
        let outside =
            units.iter().find(|unit| unit.y as usize >= map.h || unit.x as usize >= map.w);
        assert!(outside.is_none(), "unit {outside:?} outside [{}, {}, {}]", map.h, map.w, map.c);
        self.places.clear();
        self.places.extend(units.iter().flat_map(|unit| [unit.y, unit.x]));
        backend.upload_indices(&mut self.units, &self.places)?;
        let alone: Vec<SeedUnit> =
            units.iter().map(|unit| SeedUnit { y: 0, x: 0, ..*unit }).collect();
        backend.seed(dy, &alone)
    }

    /// Copies windows of pixels to the host, and each into its picture; the rest is zero.
    ///
    /// # Errors
    /// If the backend refuses.
    pub fn put_into_pictures(
        &mut self,
        backend: &B,
        pictures: &mut [f32],
        dx: &Tensor<B>,
        windows: &Windows,
    ) -> Result<()> {
        let Shape { n, w: columns, c, .. } = dx.shape();
        let [height, width] = windows.map.map(|v| v as usize);
        assert_eq!(pictures.len(), n * height * width * c, "operands disagree");
        let pixels = &mut self.pixels[..dx.shape().len()];
        backend.download(pixels, dx)?;
        pictures.fill(0.0);
        let samples = pictures.chunks_exact_mut(height * width * c);
        let samples = samples.zip(pixels.chunks_exact(dx.shape().per_image()));
        for ((picture, pixels), unit) in samples.zip(self.places.chunks_exact(2)) {
            let (rows, y) = windows.inside(0, unit[0]);
            let (inside, x) = windows.inside(1, unit[1]);
            for (row, y) in rows.zip(y..) {
                let from = &pixels[(row * columns + inside.start) * c..][..inside.len() * c];
                picture[(y * width + x) * c..][..from.len()].copy_from_slice(from);
            }
        }
        Ok(())
    }
}

/// Whether windows of a layer's output are to become whole maps before it is undone: those that are
/// no smaller than the map would be more work than the map; and what one unit of a transposed
/// convolution reaches below depends on where it stands, while all windows have one size.
pub fn ends(layer: &Layer, windows: &Windows) -> bool {
    windows.cover() || matches!(layer.kind, Kind::ConvTranspose { .. })
}

/// The windows below a layer, where those above it are given.
pub fn below(layer: &Layer, above: &Windows) -> Windows {
    let map = [layer.input.h as u32, layer.input.w as u32];
    match &layer.kind {
        Kind::Conv { dims, .. } | Kind::FullyConnected { dims, .. } => {
            above.below(map, [dims.r, dims.s], dims.stride, dims.pad)
        }
        Kind::MaxPool { dims } => above.below(map, dims.window, dims.stride, dims.pad),
        Kind::ConvTranspose { .. } => unreachable!("no windows go through it"),
        Kind::Relu | Kind::Lrn(_) | Kind::Dropout { .. } => *above,
    }
}

/// Values of the way up, for those who come down: all of them, to be looked up by `images`, or
/// `windows` of them cut out into `room`, in the descending samples' own order. Where no value is
/// `asked` for, only the shape is right.
pub fn seen<'a, B: Backend>(
    backend: &B,
    whole: &'a Tensor<B>,
    images: Option<&'a B::Indices>,
    windows: &Option<Windows>,
    units: &B::Indices,
    asked: bool,
    room: &'a mut Tensor<B>,
    n: usize,
) -> Result<(&'a Tensor<B>, Option<&'a B::Indices>)> {
    let Some(windows) = windows else { return Ok((whole, images)) };
    room.reshape(windows.shape(n, whole.shape().c));
    if asked {
        backend.cut(room, whole, images, units, windows)?;
    }
    Ok((room, None))
}
