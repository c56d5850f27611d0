//! What becomes of one image: its bytes as they will lie in the shard, and the square that the mean
//! image takes from it. Every image is decoded, also where its bytes are kept: so bad ones are found
//! when a set is made, not in the night it is trained on.

use std::io::ErrorKind;

use jpeg_encoder::{ColorType, Encoder, SamplingFactor};

use crate::checksum::crc32c;
use crate::decode::{DecodeError, Preparer, Rgb, decode};
use crate::shard::manifest::Form;
use crate::source::{Item, Source};
use zfnet_core::{Error, Result};

/// A picture longer than this many times its shorter side is cut to that before it is resized: a
/// 3000x2 one would otherwise become 384,000x256.
const LONGEST: usize = 8;

/// An image ready to be written.
pub struct Stored {
    /// What is written.
    pub bytes: Vec<u8>,
    /// Its CRC-32C.
    pub crc32c: u32,
    /// What kind of file it is, by content.
    pub extension: &'static str,
}

impl Stored {
    fn new(bytes: Vec<u8>, extension: &'static str) -> Self {
        Stored { crc32c: crc32c(&bytes), bytes, extension }
    }
}

/// Makes images, with memory that is kept from one to the next.
#[derive(Default)]
pub struct Maker {
    preparer: Preparer,
}

impl Maker {
    /// Reads and makes an image, and gives the pixels that training will see of it. The inner error
    /// says why it is no usable one.
    ///
    /// # Errors
    /// If the source cannot be read.
    pub fn make(
        &mut self,
        source: &Source,
        item: &Item,
        form: Form,
    ) -> Result<Result<(Stored, Rgb), String>> {
        let mut bytes = Vec::new();
        match source.read(item, &mut bytes) {
            Ok(()) => {}
            Err(Error::File { reason, .. }) => return Ok(Err(reason)),
            // There when it was listed: as a changed length, below.
            Err(Error::Io { error, .. })
                if error.kind() == ErrorKind::NotFound && item.bytes > 0 =>
            {
                let reason =
                    "has vanished since it was listed; run this again when the source is at rest";
                return Err(Error::file(&item.name, reason));
            }
            // Those two are properties of the file; others, of a disk or network that may recover.
            Err(Error::Io { error, .. })
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) =>
            {
                return Ok(Err(format!("cannot be read: {error}")));
            }
            Err(error) => return Err(error),
        }
        if bytes.len() as u64 != item.bytes {
            let reason = format!(
                "has changed since it was listed: expected {} bytes, found {}; run this again when \
                 the source is at rest",
                item.bytes,
                bytes.len()
            );
            return Err(Error::file(&item.name, reason));
        }
        Ok(self.convert(bytes, form).map_err(|error| error.to_string()))
    }

    fn convert(&mut self, bytes: Vec<u8>, form: Form) -> Result<(Stored, Rgb), DecodeError> {
        let image = decode(&bytes)?;
        Ok(match form {
            Form::Kept => {
                let extension = if bytes.starts_with(b"\x89PNG") { "png" } else { "jpg" };
                (Stored::new(bytes, extension), image)
            }
            Form::Resized { side, quality } => {
                let bytes = encode(&self.resize_shortest(&image, side as usize), quality);
                // What training will see: not what was encoded, but what comes out again.
                let pixels = decode(&bytes)?;
                (Stored::new(bytes, "jpg"), pixels)
            }
            Form::Raw { side } => {
                let side = side as usize;
                let mut square = vec![0; 3 * side * side];
                self.preparer.prepare(&image, side, &mut square);
                let pixels = Rgb { width: side, height: side, pixels: square.clone() };
                (Stored::new(square, "raw"), pixels)
            }
        })
    }

    /// Adds the centre square of an image, at `side`, to sums of bytes.
    pub fn add_to(&mut self, sums: &mut [u64], image: &Rgb, side: usize, square: &mut Vec<u8>) {
        square.resize(sums.len(), 0);
        self.preparer.prepare(image, side, square);
        sums.iter_mut().zip(square).for_each(|(sum, pixel)| *sum += u64::from(*pixel));
    }

    /// The image with its shortest side resized to `side`, the other in proportion, rounded down
    /// (as torchvision's `Resize`); antialiased bilinear. Up as well as down.
    fn resize_shortest(&mut self, image: &Rgb, side: usize) -> Rgb {
        let (width, height) = (image.width, image.height);
        let shortest = width.min(height);
        let [w, h] = [width, height].map(|length| length.min(LONGEST * shortest));
        let [new_w, new_h] = [w, h].map(|length| side * length / shortest);
        let mut pixels = vec![0; 3 * new_w * new_h];
        let (x, y) = ((width - w) / 2, (height - h) / 2);
        let size = [width, height];
        self.preparer.resize(size, &image.pixels, [x, y, w, h], [new_w, new_h], &mut pixels);
        Rgb { width: new_w, height: new_h, pixels }
    }
}

/// As JPEG with halved chroma (4:2:0), as photographs mostly are.
fn encode(image: &Rgb, quality: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, quality);
    encoder.set_sampling_factor(SamplingFactor::R_4_2_0);
    encoder
        .encode(&image.pixels, image.width as u16, image.height as u16, ColorType::Rgb)
        .expect("at most 2048 * 8 pixels a side, into memory");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_side_is_resized_and_strips_are_cut() {
        let size = |width: usize, height: usize| {
            let image = Rgb { width, height, pixels: vec![7; 3 * width * height] };
            let resized = Maker::default().resize_shortest(&image, 16);
            assert!(resized.pixels.iter().all(|p| *p == 7));
            (resized.width, resized.height)
        };
        assert_eq!(size(50, 37), (21, 16));
        assert_eq!(size(4, 8), (16, 32));
        assert_eq!(size(3000, 2), (128, 16));
        assert_eq!(size(1, 1000), (16, 128));
    }
}
