//! Pictures: a projection becomes bytes, bytes become tiles, tiles become sheets and files.
//!
//! The display contrast of a projection x (H * W * 3 values around zero):
//!
//! ```text
//! s = the 99.5 % percentile of |x| over the values that are not zero, for this tile alone
//! byte = 128 + round(127 * clamp(x / s, -1, 1))
//! ```
//!
//! Zero is therefore mid-grey in every tile, and x and -x lie equally far from it. Zeros are left
//! out of the percentile because most of an uncut projection lies outside the unit's receptive
//! field: so cutting it before or after the contrast gives the same picture.

use std::io;
use std::path::Path;

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};

use crate::data::decode::resize;

/// Zero in a projection, and whatever lies outside the image.
pub const GREY: u8 = 128;

/// The share of non-zero magnitudes that a tile shows without clipping.
const PERCENTILE: f64 = 0.995;

const JPEG_QUALITY: u8 = 85;

/// A projection (any number of values, zero meaning "nothing") as display bytes, see above.
///
/// NaN is shown as zero; infinities are clipped and have no say in the scale.
pub fn contrast(projection: &[f32]) -> Vec<u8> {
    let scale = scale(projection);
    let byte = |&x: &f32| {
        if scale == 0.0 && x.is_finite() || x.is_nan() {
            return GREY;
        }
        let signed = (127.0 * (x / scale).clamp(-1.0, 1.0)).round() as i16;
        (i16::from(GREY) + signed) as u8
    };
    projection.iter().map(byte).collect()
}

/// The magnitude that is shown as full black or white; 0 if there is nothing to show.
pub(crate) fn scale(projection: &[f32]) -> f32 {
    let mut magnitudes: Vec<f32> =
        projection.iter().map(|x| x.abs()).filter(|x| x.is_finite() && *x > 0.0).collect();
    if magnitudes.is_empty() {
        return 0.0;
    }
    let rank = (magnitudes.len() as f64 * PERCENTILE).ceil() as usize - 1;
    *magnitudes.select_nth_unstable_by(rank, f32::total_cmp).1
}

/// A picture: `pixels` is `[height, width, 3]` in RGB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width` pixels, row by row.
    pub pixels: Vec<u8>,
}

impl Image {
    /// Panics unless `pixels` holds height * width * 3 bytes.
    pub fn new(width: usize, height: usize, pixels: Vec<u8>) -> Image {
        assert_eq!(pixels.len(), width * height * 3, "a {width}x{height} RGB picture");
        Image { width, height, pixels }
    }

    /// One grey level all over.
    pub fn filled(width: usize, height: usize, level: u8) -> Image {
        Image { width, height, pixels: vec![level; width * height * 3] }
    }

    /// One projection (`[height, width, 3]`, RGB, or `[height, width]`, grey) with its own contrast.
    pub fn projection(width: usize, height: usize, values: &[f32]) -> Image {
        let bytes = contrast(values);
        match bytes.len() == width * height {
            true => Image::new(width, height, bytes.iter().flat_map(|byte| [*byte; 3]).collect()),
            false => Image::new(width, height, bytes),
        }
    }

    /// Whether there is no pixel at all.
    pub fn is_empty(&self) -> bool {
        self.width == 0 || self.height == 0
    }

    /// The part inside `[x0, y0, x1, y1]`, x1 and y1 excluded; grey where that is outside.
    pub fn crop(&self, [x0, y0, x1, y1]: [i64; 4]) -> Image {
        let (width, height) = ((x1 - x0).max(0) as usize, (y1 - y0).max(0) as usize);
        let mut out = Image::filled(width, height, GREY);
        out.paste(self, -x0, -y0);
        out
    }

    /// Lays `top` over this picture with its corner at (x, y); what falls outside is lost.
    pub fn paste(&mut self, top: &Image, x: i64, y: i64) {
        let left = x.max(0);
        let right = (x + top.width as i64).min(self.width as i64);
        if left >= right {
            return;
        }
        let bytes = (right - left) as usize * 3;
        for row in y.max(0)..(y + top.height as i64).min(self.height as i64) {
            let from = ((row - y) as usize * top.width + (left - x) as usize) * 3;
            let to = (row as usize * self.width + left as usize) * 3;
            self.pixels[to..to + bytes].copy_from_slice(&top.pixels[from..from + bytes]);
        }
    }

    /// Draws a frame of `thickness` pixels in a colour, inside the edges `[x0, y0, x1, y1]`.
    pub fn frame(&mut self, [x0, y0, x1, y1]: [i64; 4], thickness: i64, colour: [u8; 3]) {
        let (width, height) = (self.width as i64, self.height as i64);
        for y in y0.max(0)..y1.min(height) {
            for x in x0.max(0)..x1.min(width) {
                if (x - x0).min(y - y0).min(x1 - 1 - x).min(y1 - 1 - y) < thickness {
                    let place = (y * width + x) as usize * 3;
                    self.pixels[place..place + 3].copy_from_slice(&colour);
                }
            }
        }
    }

    /// The same picture at another size: its pixels repeated if it at least doubles (so that a
    /// 7x7 patch shows its 49 pixels), averaged bilinearly otherwise.
    pub fn resize(&self, width: usize, height: usize) -> Image {
        if (width, height) == (self.width, self.height) {
            return self.clone();
        }
        let mut out = Image::filled(width, height, GREY);
        if self.is_empty() || out.is_empty() {
            return out;
        }
        if width >= 2 * self.width && height >= 2 * self.height {
            for (i, pixel) in out.pixels.chunks_exact_mut(3).enumerate() {
                let (y, x) = (i / width * self.height / height, i % width * self.width / width);
                let from = (y * self.width + x) * 3;
                pixel.copy_from_slice(&self.pixels[from..from + 3]);
            }
            return out;
        }
        resize([self.width, self.height], &self.pixels, [width, height], &mut out.pixels);
        out
    }

    /// The picture in the middle of a square as large as its longer side, grey beside it.
    pub fn squared(&self) -> Image {
        let side = self.width.max(self.height) as i64;
        let [x, y] = [self.width, self.height].map(|size| (side - size as i64) / 2);
        self.crop([-x, -y, side - x, side - y])
    }

    /// The same picture, every pixel a square of so many that it is at least `least` pixels wide.
    pub fn enlarged(&self, least: usize) -> Image {
        let times = least.div_ceil(self.width.max(1));
        self.resize(self.width * times, self.height * times)
    }

    /// Tiles of one size in rows of `columns`, `gap` pixels of `level` between them.
    pub fn sheet(tiles: &[Image], columns: usize, gap: usize, level: u8) -> Image {
        let Some(first) = tiles.first() else {
            return Image::default();
        };
        let columns = columns.clamp(1, tiles.len());
        let rows = tiles.len().div_ceil(columns);
        let mut out = Image::filled(
            columns * (first.width + gap) - gap,
            rows * (first.height + gap) - gap,
            level,
        );
        for (i, tile) in tiles.iter().enumerate() {
            let x = i % columns * (first.width + gap);
            let y = i / columns * (first.height + gap);
            out.paste(&tile.resize(first.width, first.height), x as i64, y as i64);
        }
        out
    }

    /// Filters `[filters, rows, columns, 3]` as tiles, with one scale for all or one for each.
    pub(crate) fn of_filters(
        filters: &[f32],
        [rows, columns]: [usize; 2],
        one_scale: bool,
    ) -> Image {
        let of_filter = rows * columns * 3;
        let bytes: Vec<u8> = match one_scale {
            true => contrast(filters),
            false => filters.chunks_exact(of_filter).flat_map(contrast).collect(),
        };
        let tile =
            |bytes: &[u8]| Image::new(columns, rows, bytes.to_vec()).resize(columns * 6, rows * 6);
        Image::filter_tiles(&bytes.chunks_exact(of_filter).map(tile).collect::<Vec<_>>())
    }

    /// A tile for each filter of a layer.
    pub(crate) fn filter_tiles(tiles: &[Image]) -> Image {
        Image::sheet(tiles, 12, 3, 255)
    }

    /// Without loss: for projections, whose grey must stay exactly zero.
    pub fn png(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        PngEncoder::new_with_quality(&mut bytes, CompressionType::Default, FilterType::Adaptive)
            .write_image(
                &self.pixels,
                self.width as u32,
                self.height as u32,
                ExtendedColorType::Rgb8,
            )
            .map_err(io::Error::other)?;
        Ok(bytes)
    }

    /// With loss: for photographs.
    pub fn jpeg(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY)
            .write_image(
                &self.pixels,
                self.width as u32,
                self.height as u32,
                ExtendedColorType::Rgb8,
            )
            .map_err(io::Error::other)?;
        Ok(bytes)
    }

    /// Writes a PNG, whole or not at all.
    pub fn write_png(&self, path: &Path) -> io::Result<()> {
        crate::disk::write_atomic(path, &self.png()?)
    }

    /// Writes a JPEG, whole or not at all.
    pub fn write_jpeg(&self, path: &Path) -> io::Result<()> {
        crate::disk::write_atomic(path, &self.jpeg()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 - n as f32 / 2.0) * 0.37).collect()
    }

    #[test]
    fn nothing_is_grey() {
        assert_eq!(contrast(&[0.0; 27]), vec![GREY; 27]);
        assert_eq!(contrast(&[-0.0, f32::NAN, 0.0]), vec![GREY; 3]);
        assert_eq!(contrast(&[]), Vec::<u8>::new());
        let grey = Image::projection(2, 1, &[-3.0, 3.0]);
        assert_eq!(grey.pixels, [1, 1, 1, 255, 255, 255]);
    }

    #[test]
    fn zero_is_grey_whatever_stands_beside_it() {
        assert_eq!(contrast(&[0.0, 3.0, 9.0, 1e30]), [128, 128, 128, 255]);
        assert_eq!(contrast(&[0.0, -1e-40, -1e-41])[0], GREY);
    }

    #[test]
    fn opposite_values_lie_equally_far_from_grey() {
        let x = ramp(3000);
        let minus: Vec<f32> = x.iter().map(|v| -v).collect();
        for (a, b) in contrast(&x).iter().zip(contrast(&minus)) {
            assert_eq!(u16::from(*a) + u16::from(b), 256);
        }
    }

    #[test]
    fn a_tile_has_its_own_scale() {
        let x = ramp(3000);
        for factor in [0.001, 8.0, 1024.0] {
            let scaled: Vec<f32> = x.iter().map(|v| v * factor).collect();
            let far = contrast(&x).iter().zip(contrast(&scaled)).map(|(a, b)| a.abs_diff(b)).max();
            // A factor that is no power of two may move a value over a rounding edge.
            assert!(far.unwrap() <= u8::from(factor < 1.0), "{far:?} at {factor}");
        }
    }

    #[test]
    fn a_few_outliers_do_not_darken_the_rest() {
        let mut x = vec![1.0; 1000];
        x[7] = 1e9;
        assert_eq!(contrast(&x)[0], 255);
        // but one in fifty is no outlier
        let x: Vec<f32> = (0..1000).map(|i| if i % 50 == 0 { 100.0 } else { 1.0 }).collect();
        assert_eq!(contrast(&x)[1], 129);
    }

    #[test]
    fn what_lies_outside_the_field_does_not_matter() {
        let mut x = ramp(300);
        let alone = contrast(&x);
        x.extend([0.0; 100_000]);
        assert_eq!(contrast(&x)[..300], alone);
    }

    #[test]
    fn nan_and_infinity_stay_local() {
        let x = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0, -1.0, 0.0];
        assert_eq!(contrast(&x), [128, 255, 1, 255, 1, 128]);
        assert_eq!(contrast(&[f32::INFINITY, 0.0, f32::NEG_INFINITY]), [255, 128, 1]);
    }

    fn numbered(width: usize, height: usize) -> Image {
        Image::new(width, height, (0..width * height * 3).map(|i| (i / 3) as u8).collect())
    }

    #[test]
    fn a_crop_beyond_the_edge_is_grey_there() {
        let image = numbered(4, 3);
        assert_eq!(image.crop([0, 0, 4, 3]), image);
        assert_eq!(image.crop([1, 1, 3, 2]).pixels, [5, 5, 5, 6, 6, 6]);
        let corner = image.crop([-1, -1, 1, 1]);
        assert_eq!(corner.pixels, [128, 128, 128, 128, 128, 128, 128, 128, 128, 0, 0, 0]);
        let corner = image.crop([3, 2, 5, 4]);
        assert_eq!(corner.pixels, [11, 11, 11, 128, 128, 128, 128, 128, 128, 128, 128, 128]);
        assert_eq!(image.crop([90, -70, 92, -68]), Image::filled(2, 2, GREY));
        assert!(image.crop([3, 3, 2, 2]).is_empty());
        let around = image.crop([-2, -2, 6, 5]);
        assert_eq!(around.crop([2, 2, 6, 5]), image);
    }

    #[test]
    fn tiny_pictures_are_enlarged_by_repetition_and_others_smoothly() {
        let two = Image::new(2, 1, vec![10, 10, 10, 200, 200, 200]);
        let four = two.resize(4, 2);
        assert_eq!(four.crop([0, 0, 2, 2]), Image::filled(2, 2, 10));
        assert_eq!(four.crop([2, 0, 4, 2]), Image::filled(2, 2, 200));
        assert_eq!(Image::filled(50, 40, 77).resize(31, 67), Image::filled(31, 67, 77));
        assert_eq!(Image::default().resize(2, 2), Image::filled(2, 2, GREY));
        let half = Image::new(2, 1, vec![10, 10, 10, 200, 200, 200]).resize(1, 1);
        assert!((104..=106).contains(&half.pixels[0]), "{half:?}");
    }

    #[test]
    fn a_frame_is_drawn_inside_its_edges_only() {
        let mut image = Image::filled(5, 4, 0);
        image.frame([1, 0, 5, 4], 1, [9, 8, 7]);
        let drawn: Vec<usize> = (0..20).filter(|i| image.pixels[i * 3] == 9).collect();
        assert_eq!(drawn, [1, 2, 3, 4, 6, 9, 11, 14, 16, 17, 18, 19]);
        assert_eq!(image.pixels[3..6], [9, 8, 7]);
        let mut outside = Image::filled(5, 4, 0);
        outside.frame([-3, -3, 90, 90], 2, [9; 3]);
        outside.frame([4, 4, 2, 2], 2, [9; 3]);
        assert_eq!(outside, Image::filled(5, 4, 0));
    }

    #[test]
    fn a_long_picture_lies_in_the_middle_of_its_square() {
        let long = numbered(5, 2);
        assert_eq!((long.squared().width, long.squared().height), (5, 5));
        assert_eq!(long.squared().crop([0, 1, 5, 3]), long);
        assert_eq!(long.squared().crop([0, 0, 5, 1]), Image::filled(5, 1, GREY));
        assert_eq!(numbered(2, 5).squared().crop([1, 0, 3, 5]), numbered(2, 5));
        assert_eq!(numbered(3, 3).squared(), numbered(3, 3));
    }

    #[test]
    fn a_sheet_puts_tiles_in_rows() {
        let tiles: Vec<Image> = (1..=3).map(|i| Image::filled(2, 2, i)).collect();
        let sheet = Image::sheet(&tiles, 2, 1, 255);
        assert_eq!((sheet.width, sheet.height), (5, 5));
        assert_eq!(sheet.crop([0, 0, 2, 2]), tiles[0]);
        assert_eq!(sheet.crop([3, 0, 5, 2]), tiles[1]);
        assert_eq!(sheet.crop([0, 3, 2, 5]), tiles[2]);
        assert_eq!(sheet.crop([3, 3, 5, 5]), Image::filled(2, 2, 255));
        assert!(Image::sheet(&[], 3, 1, 0).is_empty());
    }

    #[test]
    fn files_are_replaced_whole_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new folder/a.png");
        let image = numbered(13, 7);
        Image::filled(2, 2, 3).write_png(&path).unwrap();
        image.write_png(&path).unwrap();
        let back = image::open(&path).unwrap().to_rgb8();
        assert_eq!((back.width(), back.height()), (13, 7));
        assert_eq!(back.into_raw(), image.pixels);
        let photo = folder.path().join("a.jpg");
        Image::filled(8, 8, 50).write_jpeg(&photo).unwrap();
        let back = image::open(&photo).unwrap().to_rgb8();
        assert!(back.as_raw().iter().all(|&v| v.abs_diff(50) <= 2));
        let left: Vec<_> = std::fs::read_dir(folder.path().join("new folder")).unwrap().collect();
        assert_eq!(left.len(), 1);
    }
}
