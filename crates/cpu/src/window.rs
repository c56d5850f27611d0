//! Windows of maps: what a backward pass from single units needs of the forward pass, gathered.
//!
//! `dst[n, i, j] = src[image, y + i, x + j]`, with the window of sample `n` at (y, x) and zeros outside
//! the map. Rows of windows are contiguous runs of rows of the map.

use std::ops::Range;

use rayon::prelude::*;

use crate::values::{Element, Values, ValuesMut, by_element};
use zfnet_core::operation::NOT_POSITIVE;
use zfnet_core::shape::{PoolDims, Windows};

/// One row of one sample's window.
struct Row {
    sample: usize,
    /// Its columns that lie in the map; none where the row itself does not.
    columns: Range<usize>,
    /// Row of the map, and its column of the first of these.
    from: [usize; 2],
}

impl Row {
    /// Row `index` of all samples' windows.
    fn new(index: usize, units: &[u32], windows: &Windows) -> Self {
        let rows = windows.size[0] as usize;
        let (sample, row) = (index / rows, index % rows);
        let (inside, y) = windows.inside(0, units[2 * sample]);
        let (columns, x) = windows.inside(1, units[2 * sample + 1]);
        if inside.contains(&row) {
            Row { sample, columns, from: [y + row - inside.start, x] }
        } else {
            Row { sample, columns: 0..0, from: [0, 0] }
        }
    }

    /// The row's values, of `c` channels, cut out of those of all images.
    fn cut<T: bytemuck::Pod>(
        &self,
        dst: &mut [T],
        src: &[T],
        images: Option<&[u32]>,
        map: [u32; 2],
        c: usize,
    ) {
        let Row { sample, columns, from: [y, x] } = self;
        let image = images.map_or(*sample, |images| images[*sample] as usize);
        let [h, w] = map.map(|v| v as usize);
        let inside = columns.start * c..columns.end * c;
        dst[..inside.start].fill(T::zeroed());
        dst[inside.end..].fill(T::zeroed());
        let dst = &mut dst[inside];
        if dst.is_empty() {
            return;
        }
        dst.copy_from_slice(&src[((image * h + y) * w + x) * c..][..dst.len()]);
    }
}

/// Windows of values.
pub fn gather_windows(
    dst: ValuesMut<'_>,
    src: Values<'_>,
    images: Option<&[u32]>,
    units: &[u32],
    windows: &Windows,
    c: usize,
) {
    by_element!(dst; src => gather_rows(dst, src, images, units, windows, c));
}

fn gather_rows<T: Element>(
    dst: &mut [T],
    src: &[T],
    images: Option<&[u32]>,
    units: &[u32],
    windows: &Windows,
    c: usize,
) {
    dst.par_chunks_mut(windows.size[1] as usize * c).enumerate().for_each(|(index, dst)| {
        Row::new(index, units, windows).cut(dst, src, images, windows.map, c);
    });
}

/// Windows of switches, which no longer ask where the image begins.
pub fn gather_switches(
    dst: &mut [u8],
    src: &[u8],
    images: Option<&[u32]>,
    units: &[u32],
    windows: &Windows,
    forward_mask: bool,
    dims: &PoolDims,
) {
    let c = dims.c as usize;
    // First index inside the image, along one axis, of a window.
    let first = |axis: usize, window: usize| {
        (dims.pad[axis] as usize).saturating_sub(window * dims.stride[axis] as usize)
    };
    dst.par_chunks_mut(windows.size[1] as usize * c).enumerate().for_each(|(index, dst)| {
        let row = Row::new(index, units, windows);
        row.cut(dst, src, images, windows.map, c);
        if forward_mask {
            return;
        }
        let Row { columns, from: [y, x], .. } = row;
        let inside = &mut dst[columns.start * c..columns.end * c];
        for (column, switches) in inside.chunks_exact_mut(c).enumerate() {
            let place = first(0, y) * dims.window[1] as usize + first(1, x + column);
            // Index 0 is where unpooling puts what is not positive anyway.
            if place > 0 {
                for switch in switches.iter_mut().filter(|switch| **switch == NOT_POSITIVE) {
                    *switch = place as u8;
                }
            }
        }
    });
}

/// Zeros where a window lies outside the map.
pub fn zero_out_of_bounds(x: ValuesMut<'_>, units: &[u32], windows: &Windows, c: usize) {
    by_element!(x; => zero_rows(x, units, windows, c));
}

fn zero_rows<T: Element>(x: &mut [T], units: &[u32], windows: &Windows, c: usize) {
    x.par_chunks_mut(windows.size[1] as usize * c).enumerate().for_each(|(index, x)| {
        let Row { columns, .. } = Row::new(index, units, windows);
        x[..columns.start * c].fill(T::zeroed());
        x[columns.end * c..].fill(T::zeroed());
    });
}
