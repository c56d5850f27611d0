//! From the bytes of one image file to the preprocessed image that the network sees:
//! `decode` (JPEG or PNG to RGB), then `prepare` (a part of it resized to a `Canvas`).
//!
//! With s = min(W, H), a square canvas shows the box of side s at ((W - s) / 2, (H - s) / 2), rounded
//! down, resized to `side` x `side`: pixel p of the result shows the source at
//! p * s / side + offset. That is the paper's "resize the smallest side to 256, crop the centre
//! 256x256", in the other order, so that a 3000x2 picture never becomes one of 384,000x256. Another
//! canvas shows the largest box of its shape in the same way, or all of the image (`Fit::Squash`).
//!
//! Filters are Pillow's. Values are so too, but for a difference of 1 where sums are rounded, and of more
//! with bicubic and Lanczos beside hard edges (14 at most on photographs): Pillow goes along rows first,
//! and this along columns, and what the first pass makes is clipped to bytes. Without antialiasing, which
//! Pillow does not know, weights beyond the image's edge are left out; PyTorch's `interpolate` and OpenCV
//! repeat the edge, and their cubic has a = -0.75.
//!
//! What is read, and how:
//! * The content says what a file is, never its name.
//! * Pixels are taken as stored. EXIF orientation and colour profiles are ignored, as
//!   torchvision's `ImageFolder` does, so that results compare with others on ImageNet.
//! * Everything becomes 8-bit RGB: grey is replicated, the high byte of 16 bits kept, alpha
//!   dropped, CMYK and YCCK read with inverted ink, as Adobe's programs write them.
//! * A file that is cut short or that the decoder finds damaged is an error, not a picture that is
//!   grey from some row on. Damage that still decodes (wrong bits, or bytes lost before the end
//!   marker) gives a damaged picture, as libjpeg does. Bytes after the end are ignored.
//! * The declared size is checked before anything of that size is allocated: against the limits
//!   below, and against what a file of that length could hold at all.

use std::cell::Cell;
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use fast_image_resize as fir;
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use zfnet_core::{Canvas, Fit, Interpolation};
use zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions};
use zune_jpeg::JpegDecoder;

/// What decodes, for a set's manifest: another version may give other pixels.
pub(crate) const DECODER: &str = "zune-jpeg 0.5.15, png 0.18.1";
/// What resizes and encodes, for a set's manifest.
pub(crate) const RESIZER: &str = "fast_image_resize 6.1.0, jpeg-encoder 0.7.1";

/// The longest side taken: the largest that common JPEG libraries write.
pub const MAX_SIDE: usize = 65_500;
/// The most pixels taken: 100 megapixels, 300 MB decoded.
pub const MAX_PIXELS: usize = 100_000_000;

/// At best a bit for each 8x8 block, and half as many blocks as that under the oddest subsampling.
const JPEG_PIXELS_PER_BYTE: usize = 8 * 64 * 2;
/// DEFLATE shrinks at most 1032-fold, and a pixel takes a bit or more.
const PNG_PIXELS_PER_BYTE: usize = 8 * 1032;

/// An RGB image: height * width * 3 bytes, row-major.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rgb {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// R, G, B, R, G, B, ...
    pub pixels: Vec<u8>,
}

/// Why bytes are not an image we take.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// No bytes at all.
    #[error("empty file; expected a JPEG or PNG image")]
    Empty,
    /// Another kind of file: what it looks like.
    #[error("{0}; only JPEG and PNG are read")]
    Format(&'static str),
    /// Width and height beyond `MAX_SIDE` or `MAX_PIXELS`.
    #[error("declares {0}x{1} pixels; at most {MAX_SIDE} a side and {MAX_PIXELS} in all are read")]
    TooLarge(usize, usize),
    /// Width and height that a file of so many bytes cannot hold.
    #[error("declares {0}x{1} pixels, more than its {2} bytes can hold; cut short or damaged")]
    TooShort(usize, usize, usize),
    /// A JPEG without its last marker.
    #[error("the JPEG has no end-of-image marker; cut short")]
    NoEnd,
    /// A sequential JPEG with a scan for each component and subsampled chroma: the decoder would give wrong pixels.
    #[error(
        "a sequential JPEG whose colours are in scans of their own, which is not supported; `jpegtran` rewrites it \
         without loss"
    )]
    SeparateScans,
    /// What the JPEG decoder reports.
    #[error("damaged or unsupported JPEG: {0}")]
    Jpeg(String),
    /// What the PNG decoder reports.
    #[error("damaged or unsupported PNG: {0}")]
    Png(String),
    /// One of the decoders panicked, which it should not.
    #[error("damaged in a way that the decoder does not survive")]
    Panic,
}

/// Decodes a JPEG or PNG file.
///
/// # Errors
/// If the bytes are no JPEG or PNG file, or a damaged one.
pub fn decode(bytes: &[u8]) -> Result<Rgb, DecodeError> {
    let mut image = Rgb::default();
    decode_into(bytes, &mut image)?;
    Ok(image)
}

/// `decode` into the memory of an image that is no longer wanted; it grows to fit the largest image
/// so far. After an error, what `image` shows is neither the old picture nor the new one.
///
/// # Errors
/// If the bytes are no JPEG or PNG file, or a damaged one.
pub(crate) fn decode_into(bytes: &[u8], image: &mut Rgb) -> Result<(), DecodeError> {
    let decode: fn(&[u8], &mut Rgb) -> _ = match bytes {
        [] => return Err(DecodeError::Empty),
        [0xff, 0xd8, ..] => decode_jpeg,
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => decode_png,
        _ => return Err(DecodeError::Format(looks_like(bytes))),
    };
    // Fuzzing found files for which the decoders panic. A bad image is no reason to end a run. What
    // they leave behind in `image` is a vector of some length, as after any error.
    DECODING.set(true);
    let decoded = catch_unwind(AssertUnwindSafe(|| decode(bytes, image)));
    DECODING.set(false);
    decoded.unwrap_or(Err(DecodeError::Panic))
}

thread_local! {
    static DECODING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread decodes an image just now, so that a panic is the decoder's and will be an error: for a hook
/// that prints panics.
pub fn is_decoding() -> bool {
    DECODING.get()
}

impl Rgb {
    /// Black, in another size. The decoders leave out pixels of some damaged files; those must not
    /// show the picture before.
    fn reset(&mut self, width: usize, height: usize) {
        (self.width, self.height) = (width, height);
        self.pixels.clear();
        self.pixels.resize(width * height * 3, 0);
    }
}

fn decode_jpeg(bytes: &[u8], image: &mut Rgb) -> Result<(), DecodeError> {
    // The decoder's messages come with quotes and line ends of their own.
    let jpeg = |e: zune_jpeg::errors::DecodeErrors| {
        DecodeError::Jpeg(e.to_string().trim_matches(['"', '\n']).into())
    };
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::MAX) // our own limits, below, have the better message
        .set_max_height(usize::MAX)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(jpeg)?;
    let (width, height) = decoder.dimensions().unwrap_or_default();
    check_size(width, height, bytes.len(), JPEG_PIXELS_PER_BYTE)?;
    if !jpeg_has_end(bytes) {
        return Err(DecodeError::NoEnd);
    }
    if is_subsampled_in_separate_scans(bytes) {
        return Err(DecodeError::SeparateScans);
    }
    image.reset(width, height);
    decoder.decode_into(&mut image.pixels).map_err(jpeg)
}

/// Whether an end-of-image marker follows the start of the first scan. The decoder does not ask
/// for it, and so cannot tell a file that was cut in its last row of blocks. Segments before the
/// scan are skipped by their lengths, because a thumbnail in one of them has an end of its own; in
/// the scans, FF D9 is always the marker.
fn jpeg_has_end(bytes: &[u8]) -> bool {
    let mut rest = &bytes[2..];
    loop {
        let skip = match *rest {
            [0xff, 0xda, ..] => return rest.windows(2).rev().any(|pair| pair == [0xff, 0xd9]),
            [0xff, 0xff, ..] => 1, // a fill byte
            [0xff, 0x01..=0xfe, high, low, ..] => 2 + usize::from(u16::from_be_bytes([high, low])),
            [_, _, ..] => 1, // stray bytes between segments, which decoders pass over
            _ => return false,
        };
        rest = rest.get(skip..).unwrap_or_default();
    }
}

/// Whether a JPEG's frame is sequential, its components are sampled differently, and its first scan has not all of
/// them. zune-jpeg 0.5.15 gives wrong pixels for these if chroma has fewer rows, without an error; those with fewer
/// columns alone came out right where it was tried, and are as rare.
fn is_subsampled_in_separate_scans(bytes: &[u8]) -> bool {
    let mut components = 1;
    let mut rest = &bytes[2..];
    loop {
        let skip = match *rest {
            [0xff, 0xda, _, _, in_scan, ..] => return usize::from(in_scan) < components,
            [0xff, 0xff, ..] => 1,
            [0xff, kind @ 0x01..=0xfe, high, low, ref segment @ ..] => {
                if let (0xc0 | 0xc1, [_, _, _, _, _, count, samplings @ ..]) = (kind, segment) {
                    // For each an identifier, its samplings in both directions, and a table.
                    let mut samplings =
                        samplings.chunks_exact(3).take(usize::from(*count)).map(|c| c[1]);
                    let first = samplings.next();
                    if samplings.any(|sampling| Some(sampling) != first) {
                        components = usize::from(*count);
                    }
                }
                2 + usize::from(u16::from_be_bytes([high, low]))
            }
            [_, _, ..] => 1,
            _ => return false,
        };
        rest = rest.get(skip..).unwrap_or_default();
    }
}

fn decode_png(bytes: &[u8], image: &mut Rgb) -> Result<(), DecodeError> {
    let png = |e: png::DecodingError| DecodeError::Png(e.to_string());
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let header = decoder.read_header_info().map_err(png)?;
    let (width, height) = (header.width as usize, header.height as usize);
    check_size(width, height, bytes.len(), PNG_PIXELS_PER_BYTE)?;
    let mut reader = decoder.read_info().map_err(png)?;
    let channels = reader.output_color_type().0.samples();
    image.reset(width, height);
    if channels == 3 {
        reader.next_frame(&mut image.pixels).map_err(png)?;
    } else {
        let mut stored = vec![0; width * height * channels];
        reader.next_frame(&mut stored).map_err(png)?;
        to_rgb(&stored, channels, &mut image.pixels);
    }
    Ok(())
}

/// Grey (1 or 2 channels, the second alpha) replicated; the fourth channel, alpha, dropped.
fn to_rgb(stored: &[u8], channels: usize, pixels: &mut [u8]) {
    for (to, from) in pixels.chunks_exact_mut(3).zip(stored.chunks_exact(channels)) {
        match from {
            [grey] | [grey, _] => to.fill(*grey),
            colour => to.copy_from_slice(&colour[..3]),
        }
    }
}

fn check_size(w: usize, h: usize, bytes: usize, per_byte: usize) -> Result<(), DecodeError> {
    if w.max(h) > MAX_SIDE || w * h > MAX_PIXELS {
        Err(DecodeError::TooLarge(w, h))
    } else if w * h / per_byte > bytes {
        Err(DecodeError::TooShort(w, h, bytes))
    } else {
        Ok(())
    }
}

fn looks_like(bytes: &[u8]) -> &'static str {
    let text = |b: &u8| matches!(b, b'\t' | b'\n' | b'\r' | 0x20..=0x7e);
    match bytes {
        [b'B', b'M', ..] => "BMP image",
        [b'G', b'I', b'F', b'8', ..] => "GIF image",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "WebP image",
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => "TIFF image",
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => "HEIF or AVIF image, or a video",
        _ if bytes.iter().all(|&b| b == 0) => "nothing but zero bytes",
        _ if bytes.iter().take(16).all(text) => "text (an error page saved as an image?)",
        _ => "neither a JPEG nor a PNG image",
    }
}

/// The part of a source image that a canvas shows, in source pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    /// Its first column.
    pub x: f64,
    /// Its first row.
    pub y: f64,
    /// Its columns.
    pub width: f64,
    /// Its rows.
    pub height: f64,
}

impl Part {
    /// That of an image of `width` x `height` pixels. To cover a canvas, it is the largest of the canvas's
    /// shape, in the middle; an odd pixel over is left out on the right or below.
    pub fn shown(width: usize, height: usize, canvas: Canvas) -> Self {
        let whole = [width, height].map(|v| v as f64);
        let [columns, rows] = [canvas.columns, canvas.rows].map(|v| v as f64);
        let [width, height] = match canvas.fit {
            Fit::Squash => whole,
            Fit::Cover if width * canvas.rows > height * canvas.columns => {
                [whole[1] * columns / rows, whole[1]]
            }
            Fit::Cover => [whole[0], whole[0] * rows / columns],
        };
        let first = |whole: f64, part: f64| ((whole - part) / 2.0).floor();
        Part { x: first(whole[0], width), y: first(whole[1], height), width, height }
    }

    /// Source pixels that a pixel of the canvas is wide and high.
    fn scale(&self, canvas: Canvas) -> [f64; 2] {
        [self.width / canvas.columns as f64, self.height / canvas.rows as f64]
    }
}

/// The box of a `width` x `height` source that a box [x0, y0, x1, y1] of the canvas shows, in source
/// pixels.
pub fn source_box(
    width: usize,
    height: usize,
    canvas: Canvas,
    [x0, y0, x1, y1]: [f64; 4],
) -> [f64; 4] {
    let part = Part::shown(width, height, canvas);
    let [right, down] = part.scale(canvas);
    let x = |p: f64| part.x + p * right;
    let y = |p: f64| part.y + p * down;
    [x(x0), y(y0), x(x1), y(y1)]
}

/// The box of the canvas that shows a box [x0, y0, x1, y1] of a `width` x `height` source, both in their
/// own pixels: the inverse of [`source_box`]. It may reach beyond the canvas.
pub fn canvas_box(
    width: usize,
    height: usize,
    canvas: Canvas,
    [x0, y0, x1, y1]: [f64; 4],
) -> [f64; 4] {
    let part = Part::shown(width, height, canvas);
    let [right, down] = part.scale(canvas);
    let x = |v: f64| (v - part.x) / right;
    let y = |v: f64| (v - part.y) / down;
    [x(x0), y(y0), x(x1), y(y1)]
}

/// `prepare` with scratch memory that is kept from one image to the next.
#[derive(Clone, Debug, Default)]
pub struct Preparer {
    resizer: fir::Resizer,
}

impl Preparer {
    /// Writes the part of `image` that a canvas shows, resized to it, into `out`.
    ///
    /// # Panics
    /// If `out` is not as long as the canvas, `image` is empty or its buffer does not fit it.
    pub fn prepare(&mut self, image: &Rgb, canvas: impl Into<Canvas>, out: &mut [u8]) {
        self.prepare_pixels([image.width, image.height], &image.pixels, canvas.into(), out);
    }

    /// The same of pixels of `[width, height]` that the caller holds.
    fn prepare_pixels(
        &mut self,
        [width, height]: [usize; 2],
        pixels: &[u8],
        canvas: Canvas,
        out: &mut [u8],
    ) {
        let Canvas { rows, columns, .. } = canvas;
        assert_eq!(out.len(), canvas.bytes(), "out for RGB of {rows}x{columns}");
        assert!(
            width * height * rows * columns > 0,
            "an image of {width}x{height} to {columns}x{rows}"
        );
        let part = Part::shown(width, height, canvas);
        match method(canvas) {
            Some(method) => {
                let to = [columns, rows];
                self.resize_by(method, [width, height], pixels, part, to, out);
            }
            None => nearest([width, height], pixels, part, columns, out),
        }
    }

    /// The part `[x, y, width, height]` of an RGB picture of `[width, height]`, resized (antialiased
    /// bilinear) to another width and height.
    pub(crate) fn resize(
        &mut self,
        size: [usize; 2],
        pixels: &[u8],
        part: [usize; 4],
        to: [usize; 2],
        out: &mut [u8],
    ) {
        let [x, y, width, height] = part.map(|v| v as f64);
        let bilinear = fir::ResizeAlg::Convolution(fir::FilterType::Bilinear);
        self.resize_by(bilinear, size, pixels, Part { x, y, width, height }, to, out);
    }

    fn resize_by(
        &mut self,
        method: fir::ResizeAlg,
        [width, height]: [usize; 2],
        pixels: &[u8],
        part: Part,
        to: [usize; 2],
        out: &mut [u8],
    ) {
        let options = fir::ResizeOptions::new().resize_alg(method).crop(
            part.x,
            part.y,
            part.width,
            part.height,
        );
        // Of the one type of pixels: `Resizer::resize` would have the code for all of them compiled.
        let from = TypedImageRef::<U8x3>::from_buffer(width as u32, height as u32, pixels)
            .expect("width * height * 3 bytes");
        let mut to = TypedImage::<U8x3>::from_buffer(to[0] as u32, to[1] as u32, out)
            .expect("width * height * 3 bytes");
        self.resizer.resize_typed(&from, &mut to, &options).expect("a part that lies inside");
    }
}

/// How the resizer does what a canvas wants; none for nearest.
fn method(canvas: Canvas) -> Option<fir::ResizeAlg> {
    let filter = match canvas.interpolation {
        Interpolation::Nearest => return None,
        Interpolation::Box => fir::FilterType::Box,
        Interpolation::Bilinear => fir::FilterType::Bilinear,
        Interpolation::Bicubic => fir::FilterType::CatmullRom,
        Interpolation::Lanczos => fir::FilterType::Lanczos3,
    };
    Some(match canvas.antialias {
        true => fir::ResizeAlg::Convolution(filter),
        false => fir::ResizeAlg::Interpolation(filter),
    })
}

/// Pixel i of n takes that in which (i + 1/2) / n of the part lies; where that is between two, the one that
/// Pillow takes, which adds up steps.
fn nearest([width, height]: [usize; 2], pixels: &[u8], part: Part, columns: usize, out: &mut [u8]) {
    let rows = out.len() / 3 / columns;
    let places = |first: f64, part: f64, count: usize, whole: usize| {
        let step = part / count as f64;
        let at = std::iter::successors(Some(first + step / 2.0), move |at| Some(at + step));
        at.take(count).map(move |at| (at as usize).min(whole - 1))
    };
    let across: Vec<usize> = places(part.x, part.width, columns, width).collect();
    let down = places(part.y, part.height, rows, height);
    for (y, row) in down.zip(out.chunks_exact_mut(columns * 3)) {
        for (x, pixel) in across.iter().zip(row.chunks_exact_mut(3)) {
            pixel.copy_from_slice(&pixels[(y * width + x) * 3..][..3]);
        }
    }
}

/// The part of an image that a canvas shows, resized to it: see `Preparer::prepare`.
pub fn prepare(image: &Rgb, canvas: impl Into<Canvas>, out: &mut [u8]) {
    Preparer::default().prepare(image, canvas, out);
}

/// The same of pixels of `[width, height]` that the caller holds.
///
/// # Panics
/// If there are none, or `pixels` or `out` is not as long as the sizes say.
pub fn prepare_pixels(size: [usize; 2], pixels: &[u8], canvas: impl Into<Canvas>, out: &mut [u8]) {
    assert_eq!(pixels.len(), size[0] * size[1] * 3, "RGB of {}x{}", size[0], size[1]);
    Preparer::default().prepare_pixels(size, pixels, canvas.into(), out);
}

/// All of an RGB picture of `[width, height]` at another size, antialiased bilinear.
///
/// # Panics
/// If a size is 0, or `pixels` or `out` has not as many bytes as its size says.
pub fn resize(size: [usize; 2], pixels: &[u8], to: [usize; 2], out: &mut [u8]) {
    Preparer::default().resize(size, pixels, [0, 0, size[0], size[1]], to, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_are_those_of_this_build() {
        let lock = include_str!("../../../Cargo.lock");
        for part in DECODER.split(", ").chain(RESIZER.split(", ")) {
            let (name, version) = part.split_once(' ').unwrap();
            let entry = format!("name = \"{name}\"\nversion = \"{version}\"\n");
            assert!(lock.contains(&entry), "another version of {name} than {version} is built in");
        }
    }

    #[test]
    fn memory_is_reused_and_shows_nothing_of_the_picture_before() {
        let jpeg = |w: u16, h: u16, value: u8| {
            let mut bytes = Vec::new();
            let pixels = vec![value; usize::from(w) * usize::from(h) * 3];
            let encoder = jpeg_encoder::Encoder::new(&mut bytes, 95);
            encoder.encode(&pixels, w, h, jpeg_encoder::ColorType::Rgb).unwrap();
            bytes
        };
        let (large, small) = (jpeg(40, 30, 200), jpeg(17, 9, 50));
        let mut image = decode(&large).unwrap();
        let memory = image.pixels.as_ptr();
        // The scan is cut, then begins anew: the decoder stops there without an error.
        let scan = large.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap();
        let twice = [&large[..scan + 20], &large[scan..]].concat();
        for bytes in [&small, &large, &twice] {
            decode_into(bytes, &mut image).unwrap();
            assert_eq!(image, decode(bytes).unwrap());
            assert_eq!(image.pixels.as_ptr(), memory);
        }
    }
}
