//! Awkward files: each is made here, so that it is known what is wrong with it. The last two tests
//! run over folders of real files where there are any.

use std::f64::consts::PI;
use std::fs;
use std::io::{Write, stderr};
use std::path::{Path, PathBuf};

use jpeg_encoder::{ChromaSubsamplingMethod, ColorType, Encoder, SamplingFactor};
use zfnet_core::{Canvas, Fit, Interpolation};
use zfnet_data::decode::{
    DecodeError, MAX_SIDE, Part, Preparer, Rgb, canvas_box, decode, prepare, source_box,
};

const W: usize = 37;
const H: usize = 21;

/// A smooth picture, so that JPEG changes it little.
fn picture(x: usize, y: usize) -> [u8; 3] {
    [(x * 6) as u8, (y * 11) as u8, (255 - x * 3 - y * 4) as u8]
}

fn pixels(channels: impl Fn([u8; 3]) -> Vec<u8>) -> Vec<u8> {
    (0..W * H).flat_map(|i| channels(picture(i % W, i / W))).collect()
}

fn rgb() -> Vec<u8> {
    pixels(|p| p.to_vec())
}

fn jpeg(data: &[u8], colour: ColorType, set: impl Fn(&mut Encoder<&mut Vec<u8>>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, 95);
    encoder.set_chroma_subsampling_method(ChromaSubsamplingMethod::Average);
    set(&mut encoder);
    encoder.encode(data, W as u16, H as u16, colour).unwrap();
    bytes
}

/// zune-jpeg 0.5.15 gives wrong pixels for these without a word (its issue tracker has reports of scans that are not
/// interleaved): they are refused. Optimized tables are what makes this encoder write a scan for each component.
#[test]
fn subsampled_scans_of_single_components_are_refused() {
    let separate = |sampling| {
        jpeg(&rgb(), ColorType::Rgb, |encoder| {
            encoder.set_optimized_huffman_tables(true);
            encoder.set_sampling_factor(sampling);
        })
    };
    for sampling in [SamplingFactor::F_2_2, SamplingFactor::F_1_2, SamplingFactor::F_2_1] {
        let error = decode(&separate(sampling)).unwrap_err();
        assert!(matches!(error, DecodeError::SeparateScans), "{sampling:?}: {error}");
    }
    assert!(decode(&separate(SamplingFactor::F_1_1)).is_ok());
}

fn baseline() -> Vec<u8> {
    jpeg(&rgb(), ColorType::Rgb, |_| ())
}

/// A PNG file with its scanlines (a filter byte each) in one stored DEFLATE block.
fn png(size: [u32; 2], depth_colour_interlace: [u8; 3], chunks: &[(&str, &[u8])]) -> Vec<u8> {
    fn crc32(bytes: &[u8]) -> u32 {
        let step = |crc: u32, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1));
        !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
    }
    let [depth, colour, interlace] = depth_colour_interlace;
    let [w, h] = size.map(u32::to_be_bytes);
    let header = [&w[..], &h[..], &[depth, colour, 0, 0, interlace]].concat();
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    for &(name, data) in [&[("IHDR", &header[..])], chunks, &[("IEND", &[])]].concat().iter() {
        let data = if name == "IDAT" { stored(data) } else { data.to_vec() };
        let body = [name.as_bytes(), &data].concat();
        file.extend((data.len() as u32).to_be_bytes());
        file.extend(&body);
        file.extend(crc32(&body).to_be_bytes());
    }
    file
}

fn stored(data: &[u8]) -> Vec<u8> {
    let n = data.len() as u16;
    let (a, b) = data.iter().fold((1u32, 0u32), |(a, b), &byte| {
        let a = (a + u32::from(byte)) % 65_521;
        (a, (b + a) % 65_521)
    });
    [&[0x78, 1, 1], &n.to_le_bytes()[..], &(!n).to_le_bytes(), data, &(b << 16 | a).to_be_bytes()]
        .concat()
}

fn png_rgb() -> Vec<u8> {
    let rows: Vec<u8> = rgb().chunks(W * 3).flat_map(|row| [&[0], row].concat()).collect();
    png([W as u32, H as u32], [8, 2, 0], &[("IDAT", &rows)])
}

fn position(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).position(|found| found == what).unwrap()
}

/// The file with other dimensions declared in its baseline frame header.
fn with_size(mut bytes: Vec<u8>, width: u16, height: u16) -> Vec<u8> {
    let at = position(&bytes, &[0xff, 0xc0]) + 5;
    bytes[at..at + 2].copy_from_slice(&height.to_be_bytes());
    bytes[at + 2..at + 4].copy_from_slice(&width.to_be_bytes());
    bytes
}

fn message(bytes: &[u8]) -> String {
    decode(bytes).expect_err("an error").to_string()
}

fn assert_near(image: &Rgb, wanted: &[u8], mean_limit: f64) {
    assert_eq!((image.width, image.height, image.pixels.len()), (W, H, W * H * 3));
    let sum: f64 = image.pixels.iter().zip(wanted).map(|(&a, &b)| f64::from(a.abs_diff(b))).sum();
    let mean = sum / wanted.len() as f64;
    assert!(mean < mean_limit, "mean difference {mean}");
}

#[test]
fn codings_of_jpeg_give_the_same_picture() {
    let files = [
        jpeg(&rgb(), ColorType::Rgb, |e| e.set_sampling_factor(SamplingFactor::F_1_1)),
        jpeg(&rgb(), ColorType::Rgb, |e| e.set_sampling_factor(SamplingFactor::F_2_1)),
        jpeg(&rgb(), ColorType::Rgb, |e| e.set_sampling_factor(SamplingFactor::F_2_2)),
        jpeg(&rgb(), ColorType::Rgb, |e| e.set_progressive(true)),
        jpeg(&rgb(), ColorType::Rgb, |e| e.set_restart_interval(2)),
        jpeg(&rgb(), ColorType::Rgb, |e| e.set_optimized_huffman_tables(true)),
    ];
    for file in files {
        assert_near(&decode(&file).unwrap(), &rgb(), 2.0); // quality 95; a shift would give 4
    }
}

#[test]
fn grey_is_replicated() {
    let grey = jpeg(&pixels(|p| vec![p[2]]), ColorType::Luma, |_| ());
    assert_near(&decode(&grey).unwrap(), &pixels(|p| vec![p[2]; 3]), 1.0);
}

/// Without black, ink is the complement of light; with black it is darker by K / 255.
#[test]
fn cmyk_and_ycck_are_inverted_ink() {
    for colour in [ColorType::Cmyk, ColorType::CmykAsYcck] {
        let ink = jpeg(&pixels(|[r, g, b]| vec![255 - r, 255 - g, 255 - b, 0]), colour, |_| ());
        assert_near(&decode(&ink).unwrap(), &rgb(), 2.0);
        let ink = jpeg(&pixels(|[r, g, b]| vec![255 - r, 255 - g, 255 - b, 51]), colour, |_| ());
        let darker = pixels(|p| p.map(|v| (f64::from(v) * 0.8).round() as u8).to_vec());
        assert_near(&decode(&ink).unwrap(), &darker, 2.0);
    }
}

#[test]
fn kinds_of_png_become_rgb8() {
    let rgb = |bytes: Vec<u8>| decode(&bytes).unwrap().pixels;
    assert_eq!(rgb(png_rgb()), self::rgb());
    let one = |kind, chunks: &[_]| rgb(png([1, 1], kind, chunks));
    assert_eq!(one([8, 0, 0], &[("IDAT", &[0, 200])]), [200; 3], "grey");
    assert_eq!(one([1, 0, 0], &[("IDAT", &[0, 0x80])]), [255; 3], "one bit");
    assert_eq!(one([16, 0, 0], &[("IDAT", &[0, 200, 255])]), [200; 3], "grey, 16 bits");
    assert_eq!(one([8, 4, 0], &[("IDAT", &[0, 200, 3])]), [200; 3], "grey and alpha");
    assert_eq!(one([8, 6, 0], &[("IDAT", &[0, 1, 2, 3, 0])]), [1, 2, 3], "RGB and alpha");
    assert_eq!(one([16, 2, 0], &[("IDAT", &[0, 1, 9, 2, 9, 3, 9])]), [1, 2, 3], "RGB, 16 bits");
    let palette = ("PLTE", &[9, 9, 9, 1, 2, 3][..]);
    assert_eq!(one([8, 3, 0], &[palette, ("IDAT", &[0, 1])]), [1, 2, 3], "palette");
    let clear = ("tRNS", &[255, 0][..]);
    assert_eq!(one([8, 3, 0], &[palette, clear, ("IDAT", &[0, 1])]), [1, 2, 3], "transparent");
    // Adam7: pass 1 holds the first pixel, pass 6 the second, pass 7 the second row.
    let passes = [0, 1, 0, 2, 0, 3, 4];
    let interlaced = rgb(png([2, 2], [8, 0, 1], &[("IDAT", &passes)]));
    assert_eq!(interlaced, [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4], "interlaced");
}

#[test]
fn other_formats_are_named() {
    let looks = |bytes: &[u8], like: &str| {
        let message = message(bytes);
        assert!(message.contains(like) && message.contains("only JPEG and PNG"), "{message}");
    };
    assert!(matches!(decode(&[]), Err(DecodeError::Empty)));
    looks(b"BM\x36\0\0\0", "BMP image");
    looks(b"GIF89a\x01\0", "GIF image");
    looks(b"RIFF\x10\0\0\0WEBPVP8 ", "WebP image");
    looks(b"II*\0\x08\0\0\0", "TIFF image");
    looks(b"\0\0\0\x1cftypheic", "HEIF");
    looks(b"<!DOCTYPE html><title>404</title>", "text");
    looks(&[0; 64], "zero bytes");
    looks(&[1, 250, 3, 0, 77], "neither");
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let progressive = jpeg(&rgb(), ColorType::Rgb, |e| e.set_progressive(true));
    // A PNG ends with a chunk without content, whose checksum of four bytes is not missed.
    for (whole, unneeded) in [(baseline(), 0), (progressive, 0), (png_rgb(), 4)] {
        assert!(decode(&whole).is_ok());
        for length in 0..whole.len() - unneeded {
            assert!(decode(&whole[..length]).is_err(), "{length} of {} bytes", whole.len());
        }
    }
}

#[test]
fn bytes_after_the_end_and_fill_bytes_are_ignored() {
    for whole in [baseline(), png_rgb()] {
        let more = [&whole[..], b"trailing garbage \xff\xd8\xff"].concat();
        assert_eq!(decode(&more).unwrap(), decode(&whole).unwrap());
    }
    let (whole, at) = (baseline(), position(&baseline(), &[0xff, 0xdb]));
    let filled = [&whole[..at], &[0xff, 0xff], &whole[at..]].concat();
    assert_eq!(decode(&filled).unwrap(), decode(&whole).unwrap());
}

#[test]
fn the_end_of_a_thumbnail_is_not_the_end() {
    let whole = baseline();
    let thumbnail =
        [&whole[..2], &[0xff, 0xe1, 0, 6, 0xff, 0xd8, 0xff, 0xd9], &whole[2..]].concat();
    assert_eq!(decode(&thumbnail).unwrap(), decode(&whole).unwrap());
    let cut = &thumbnail[..thumbnail.len() - 2];
    assert!(matches!(decode(cut), Err(DecodeError::NoEnd)));
}

#[test]
fn declared_sizes_are_checked_before_allocating() {
    let size = |w, h| decode(&with_size(baseline(), w, h));
    assert!(matches!(size(65_500, 65_500), Err(DecodeError::TooLarge(65_500, 65_500))));
    assert!(matches!(size(65_501, 1), Err(DecodeError::TooLarge(65_501, 1))));
    assert!(matches!(size(9_000, 9_000), Err(DecodeError::TooShort(9_000, 9_000, _))));
    assert!(size(0, 5).is_err() && size(5, 0).is_err());
    let png_of = |w, h| decode(&png([w, h], [16, 6, 0], &[("IDAT", &[0; 9])]));
    assert!(matches!(png_of(10_001, 10_000), Err(DecodeError::TooLarge(..))));
    assert!(matches!(png_of(u32::MAX >> 1, 1), Err(DecodeError::TooLarge(..))));
    assert!(matches!(png_of(10_000, 10_000), Err(DecodeError::TooShort(..))));
    assert!(matches!(png_of(0, 1), Err(DecodeError::Png(_))));
    let most = format!("declares {0}x{0} pixels; at most {MAX_SIDE} a side", 65_500);
    assert!(message(&with_size(baseline(), 65_500, 65_500)).starts_with(&most));
}

#[test]
fn missing_tables_are_errors() {
    let whole = baseline();
    for marker in [0xdb, 0xc4] {
        let mut file = whole.clone();
        while let Some(at) = file.windows(2).position(|found| found == [0xff, marker]) {
            let length = usize::from(u16::from_be_bytes([file[at + 2], file[at + 3]]));
            file.drain(at..at + 2 + length);
        }
        assert!(matches!(decode(&file), Err(DecodeError::Jpeg(_))), "without FF {marker:X}");
    }
    let no_data = png([4, 4], [8, 2, 0], &[]);
    assert!(matches!(decode(&no_data), Err(DecodeError::Png(_))));
}

/// Whatever the bytes are, `decode` returns, and a picture fits its size.
#[test]
fn damage_never_panics() {
    let mut state = 1u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as usize % below
    };
    let progressive = jpeg(&rgb(), ColorType::Rgb, |e| e.set_progressive(true));
    let cmyk = jpeg(&pixels(|p| [&p[..], &[9]].concat()), ColorType::Cmyk, |_| ());
    let files = [baseline(), progressive, cmyk, png_rgb()];
    let mut decoded = 0;
    for _ in 0..4_000 {
        let mut file = files[random(files.len())].clone();
        for _ in 0..1 + random(4) {
            let at = random(file.len());
            file[at] = random(256) as u8;
        }
        if let Ok(image) = decode(&file) {
            assert_eq!(image.pixels.len(), image.width * image.height * 3);
            decoded += 1;
        }
    }
    assert!((100..3_900).contains(&decoded), "both outcomes occur: {decoded} decoded");
}

/// The naive twin of `prepare`: a filter as wide as a result pixel, or its own width if that is more or there
/// is no antialiasing.
fn prepare_naive(image: &Rgb, canvas: Canvas) -> Vec<f64> {
    let [rows, columns] = canvas.size();
    let shape = columns as f64 / rows as f64;
    let [whole_width, whole_height] = [image.width, image.height].map(|v| v as f64);
    let (width, height) = match canvas.fit {
        Fit::Squash => (whole_width, whole_height),
        Fit::Cover => {
            (whole_width.min(whole_height * shape), whole_height.min(whole_width / shape))
        }
    };
    let first = |whole: f64, part: f64| ((whole - part) / 2.0 + 1e-9).floor();
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { (PI * x).sin() / (PI * x) };
    let filter = |x: f64| match (canvas.interpolation, x.abs()) {
        (Interpolation::Bilinear, x) => (1.0 - x).max(0.0),
        (Interpolation::Box, _) => f64::from(x > -0.5 && x <= 0.5),
        // Keys, 1981, equation 15, with a = -1/2.
        (Interpolation::Bicubic, x) if x < 1.0 => 1.5 * x.powi(3) - 2.5 * x.powi(2) + 1.0,
        (Interpolation::Bicubic, x) if x < 2.0 => {
            -0.5 * x.powi(3) + 2.5 * x.powi(2) - 4.0 * x + 2.0
        }
        (Interpolation::Lanczos, x) if x < 3.0 => sinc(x) * sinc(x / 3.0),
        _ => 0.0,
    };
    let weights = |p: usize, offset: f64, part: f64, count: usize, length: usize| -> Vec<f64> {
        let scale = part / count as f64;
        let centre = offset + (p as f64 + 0.5) * scale;
        if canvas.interpolation == Interpolation::Nearest {
            return (0..length).map(|i| f64::from(i == centre as usize)).collect();
        }
        let wide = if canvas.antialias { scale.max(1.0) } else { 1.0 };
        let weight = |i| filter((i as f64 + 0.5 - centre) / wide);
        let sum: f64 = (0..length).map(weight).sum();
        (0..length).map(|i| weight(i) / sum).collect()
    };
    let mut out = Vec::new();
    for py in 0..rows {
        let wy = weights(py, first(whole_height, height), height, rows, image.height);
        for px in 0..columns {
            let wx = weights(px, first(whole_width, width), width, columns, image.width);
            for c in 0..3 {
                let pixel = |i: usize| f64::from(image.pixels[i * 3 + c]);
                let row = |y: usize| -> f64 {
                    (0..image.width).map(|x| wx[x] * pixel(y * image.width + x)).sum()
                };
                out.push((0..image.height).map(|y| wy[y] * row(y)).sum());
            }
        }
    }
    out
}

#[test]
fn prepare_matches_its_naive_twin() {
    let noise = |i: usize| (i.wrapping_mul(2_654_435_761) >> 7) as u8;
    let mut preparer = Preparer::default();
    for (width, height, side) in [(37, 21, 16), (21, 37, 16), (9, 9, 20), (1, 1, 4), (50, 2, 7)] {
        let image = Rgb { width, height, pixels: (0..width * height * 3).map(noise).collect() };
        let mut out = vec![0; side * side * 3];
        preparer.prepare(&image, side, &mut out);
        let mut fresh = out.clone();
        prepare(&image, side, &mut fresh);
        assert_eq!(out, fresh, "scratch kept from the image before changes nothing");
        for (i, wanted) in prepare_naive(&image, side.into()).into_iter().enumerate() {
            // Half a level for each of the two passes, which round to 8 bits.
            let off = (f64::from(out[i]) - wanted).abs();
            assert!(off <= 1.01, "{width}x{height} to {side}, byte {i}: off by {off}");
        }
    }
}

/// All fits and filters, enlarging and making smaller, of shapes that differ from the image's. No pixel lies just
/// between two.
#[test]
fn every_canvas_matches_the_naive_twin() {
    use Interpolation::{Bicubic, Bilinear, Box, Lanczos, Nearest};
    // Of half the range, so that filters with negative parts never leave it.
    let noise = |i: usize| 64 + (i.wrapping_mul(2_654_435_761) >> 7) as u8 / 2;
    let mut preparer = Preparer::default();
    for (width, height) in [(37, 21), (21, 37), (9, 9), (50, 3)] {
        let image = Rgb { width, height, pixels: (0..width * height * 3).map(noise).collect() };
        for size in [[16, 16], [8, 24], [23, 6], [40, 44]] {
            for (fit, antialias) in
                [(Fit::Cover, true), (Fit::Cover, false), (Fit::Squash, true), (Fit::Squash, false)]
            {
                for interpolation in [Nearest, Box, Bilinear, Bicubic, Lanczos] {
                    let canvas = Canvas { fit, interpolation, antialias, ..Canvas::of(size) };
                    let mut out = vec![0; canvas.bytes()];
                    preparer.prepare(&image, canvas, &mut out);
                    for (i, wanted) in prepare_naive(&image, canvas).into_iter().enumerate() {
                        // Half a level for the second pass, and for the first, weighed by up to 1.4 in all.
                        let off = (f64::from(out[i]) - wanted).abs();
                        let limit = if interpolation == Nearest { 0.0 } else { 1.21 };
                        assert!(off <= limit, "{width}x{height} to {canvas:?}, {i}: off by {off}");
                    }
                }
            }
        }
    }
}

/// Nothing of a gradient is lost when it is squashed, and the middle of it is kept when it covers.
#[test]
fn a_gradient_is_squashed_whole() {
    let (width, height) = (256, 8);
    let pixels = (0..width * height).flat_map(|i| [(i % width) as u8; 3]).collect();
    let image = Rgb { width, height, pixels };
    let squash = Canvas { fit: Fit::Squash, ..Canvas::square(32) };
    let mut out = vec![0; squash.bytes()];
    prepare(&image, squash, &mut out);
    for (i, pixel) in out.chunks(3).enumerate() {
        // Pixel p is the mean around (p + 1/2) * 8 - 1/2; at the ends the filter loses its outer half.
        let (column, middle) = (i % 32, (i % 32) as f64 * 8.0 + 3.5);
        let off = if column == 0 || column == 31 { 1.5 } else { 0.51 };
        assert!((f64::from(pixel[0]) - middle).abs() <= off, "{column}: {}", pixel[0]);
    }
    let mut covered = vec![0; 16 * 32 * 3];
    prepare(&image, [16, 32], &mut covered);
    // 16 of the 256 columns, from 120 on, twice as large.
    for (i, pixel) in covered.chunks(3).enumerate() {
        let middle = 120.0 + ((i % 32) as f64 + 0.5) / 2.0 - 0.5;
        assert!((f64::from(pixel[0]) - middle).abs() <= 0.51, "{i}: {}", pixel[0]);
    }
    let nearest =
        Canvas { fit: Fit::Squash, interpolation: Interpolation::Nearest, ..Canvas::of([2, 4]) };
    let mut four = vec![0; 2 * 4 * 3];
    prepare(&image, nearest, &mut four);
    let columns: Vec<u8> = four.chunks(3).map(|pixel| pixel[0]).collect();
    assert_eq!(columns, [32, 96, 160, 224, 32, 96, 160, 224]);
}

/// The most that a file may declare and a canvas may be, in both directions.
#[test]
fn extreme_shapes_are_prepared() {
    for (width, height) in [(65_500, 1), (1, 65_500)] {
        let image = Rgb { width, height, pixels: vec![99; width * height * 3] };
        for size in [[1, 4096], [4096, 1], [3, 5], [1, 1]] {
            for fit in [Fit::Cover, Fit::Squash] {
                for interpolation in [Interpolation::Nearest, Interpolation::Lanczos] {
                    let canvas = Canvas { fit, interpolation, ..Canvas::of(size) };
                    let mut out = vec![0; canvas.bytes()];
                    prepare(&image, canvas, &mut out);
                    assert!(out.iter().all(|&v| v == 99), "{width}x{height} to {canvas:?}");
                }
            }
        }
    }
}

#[test]
fn prepare_of_the_same_size_is_the_crop() {
    let image = Rgb { width: W, height: H, pixels: rgb() };
    let mut out = vec![0; H * H * 3];
    prepare(&image, H, &mut out);
    let x = (W - H) / 2;
    let crop: Vec<u8> = (0..H * H).flat_map(|i| picture(x + i % H, i / H)).collect();
    assert_eq!(out, crop);
}

#[test]
fn prepare_of_a_strip_stays_small() {
    let image = Rgb { width: 3000, height: 2, pixels: vec![77; 3000 * 2 * 3] };
    let mut out = vec![0; 256 * 256 * 3];
    prepare(&image, 256, &mut out);
    assert!(out.iter().all(|&v| v == 77));
}

#[test]
fn boxes_of_the_square_are_found_in_the_source() {
    let square = Part { x: 62., y: 0., width: 375., height: 375. };
    assert_eq!(Part::shown(500, 375, 256.into()), square);
    assert_eq!(source_box(500, 375, 256.into(), [0., 0., 256., 256.]), [62., 0., 437., 375.]);
    assert_eq!(source_box(100, 512, 50.into(), [10., 20., 11., 22.]), [20., 246., 22., 250.]);
    // Twice as wide as high: 500 x 250 of the source, from row 62 on, or all of it.
    let wide = Canvas::of([64, 128]);
    assert_eq!(source_box(500, 375, wide, [0., 0., 128., 64.]), [0., 62., 500., 312.]);
    assert_eq!(source_box(500, 100, wide, [0., 0., 128., 64.]), [150., 0., 350., 100.]);
    let squash = Canvas { fit: Fit::Squash, ..wide };
    assert_eq!(source_box(500, 375, squash, [0., 0., 128., 64.]), [0., 0., 500., 375.]);
    assert_eq!(source_box(512, 256, squash, [32., 16., 64., 48.]), [128., 64., 256., 192.]);
}

#[test]
fn boxes_go_to_the_source_and_back() {
    for (width, height) in [(500, 375), (3, 900), (1, 1), (640, 640)] {
        for fit in [Fit::Cover, Fit::Squash] {
            for size in [[64, 128], [100, 9], [32, 32]] {
                let canvas = Canvas { fit, ..Canvas::of(size) };
                let all = [0., 0., canvas.columns as f64, canvas.rows as f64];
                let [x0, y0, x1, y1] = source_box(width, height, canvas, all);
                assert!(x0 >= 0. && y0 >= 0. && x1 > x0 && y1 > y0, "{width}x{height} {canvas:?}");
                assert!(x1 <= width as f64 && y1 <= height as f64, "{width}x{height} {canvas:?}");
                // What covers is not stretched, and is as large as it can be.
                let scales = [(x1 - x0) / canvas.columns as f64, (y1 - y0) / canvas.rows as f64];
                let stretched = (scales[0] / scales[1] - 1.0).abs() > 1e-9;
                let touches = (x1 - x0 - width as f64).abs().min((y1 - y0 - height as f64).abs());
                assert!(touches < 1e-9 && (fit == Fit::Squash || !stretched));
                let area = [1.5, 2.0, 7.25, 6.0];
                let there = source_box(width, height, canvas, area);
                let back = canvas_box(width, height, canvas, there);
                assert!(back.iter().zip(area).all(|(a, b)| (a - b).abs() < 1e-9), "{back:?}");
            }
        }
    }
}

/// A folder of the shared data, beside the crate or where ZFNET_SHARED says.
fn shared(folder: &str) -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let root = std::env::var_os("ZFNET_SHARED").map_or_else(beside, PathBuf::from);
    let folder = root.join("data").join(folder);
    if !folder.is_dir() {
        // Not `eprintln!`, which nobody sees of a test that passes.
        writeln!(stderr(), "skipped: {} is not there", folder.display()).expect("stderr");
        return None;
    }
    Some(folder)
}

/// The lines of `expected.tsv` after its header, and the columns asked for by name.
fn expected<const N: usize>(folder: &Path, columns: [&str; N]) -> Vec<[String; N]> {
    let table = fs::read_to_string(folder.join("expected.tsv")).unwrap();
    let mut lines = table.lines().map(|line| line.split('\t').collect::<Vec<_>>());
    let header = lines.next().unwrap();
    let columns = columns.map(|name| header.iter().position(|&found| found == name).unwrap());
    lines.map(|line| columns.map(|column| line[column].to_owned())).collect()
}

fn assert_means(file: &str, image: &Rgb, wanted: [&String; 3]) {
    for (c, wanted) in wanted.into_iter().enumerate() {
        let sum: f64 = image.pixels.iter().skip(c).step_by(3).map(|&v| f64::from(v)).sum();
        let (mean, wanted): (_, f64) =
            (sum / (image.pixels.len() / 3) as f64, wanted.parse().unwrap());
        assert!((mean - wanted).abs() <= 1.0, "{file}: mean {mean} of channel {c}, not {wanted}");
    }
}

#[test]
fn shared_nasty_files_decode_or_fail_as_wanted() {
    let Some(folder) = shared("nasty") else { return };
    let columns = ["file", "pil_size", "wanted", "meanR", "meanG", "meanB"];
    let lines = expected(&folder, columns);
    assert!(lines.len() > 40);
    for [file, size, wanted, r, g, b] in &lines {
        let result = decode(&fs::read(folder.join(file)).unwrap());
        if wanted.starts_with("decode") || wanted == "listed and decoded" {
            let image = result.unwrap_or_else(|error| panic!("{file}: {error}"));
            assert_eq!(&format!("{}x{}", image.width, image.height), size, "{file}");
            assert_means(file, &image, [r, g, b]);
        } else if file == "corrupt_scan.JPEG" {
            println!("{file}: {:?}", result.map(|image| image.pixels.len())); // either will do
        } else {
            println!("{file}: {}", result.expect_err(file));
        }
    }
}

#[test]
fn shared_photographs_decode_to_their_means() {
    let Some(folder) = shared("loader-mix") else { return };
    let lines = expected(&folder, ["file", "width", "height", "meanR", "meanG", "meanB"]);
    assert!(lines.len() >= 60);
    for [file, width, height, r, g, b] in &lines {
        let image = decode(&fs::read(folder.join(file)).unwrap()).unwrap();
        assert_eq!([image.width.to_string(), image.height.to_string()], [&width[..], height]);
        assert_means(file, &image, [r, g, b]);
    }
}
