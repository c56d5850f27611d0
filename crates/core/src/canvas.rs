//! How an image of any shape becomes the canvas that crops are cut from, and sizes as descriptions
//! write them.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Largest number of rows, and of columns, of a canvas.
pub const MAX_CANVAS: usize = 4096;

/// What an image is resized to before crops are cut from it.
///
/// Written as a number where it is a square and all else is as [`Canvas::square`] has it, as `[rows,
/// columns]` where only the square is missing, and as a table `{ size, fit, interpolation, antialias }`
/// otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Canvas {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Which part of the image it shows.
    pub fit: Fit,
    /// How values between pixels are found.
    pub interpolation: Interpolation,
    /// Whether the filter is widened where an image is made smaller, so that every pixel has a say.
    /// Nearest has no filter.
    pub antialias: bool,
}

/// Which part of an image a canvas shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// The largest part in the middle that has the canvas's shape: the image is resized until it just
    /// covers the canvas, and its centre cut out.
    #[default]
    Cover,
    /// All of it, whatever its shape.
    Squash,
}

/// How values between pixels are found: the filters of Pillow, by its names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// The pixel that the centre falls on.
    Nearest,
    /// The mean of the pixels that one of the canvas covers.
    Box,
    /// A triangle, 1 pixel to each side.
    #[default]
    Bilinear,
    /// Keys' cubic with a = -0.5, 2 pixels to each side.
    Bicubic,
    /// A windowed sinc, 3 pixels to each side.
    Lanczos,
}

impl Canvas {
    /// The paper's: the shortest side resized to `side`, the centre cut out; antialiased bilinear.
    pub const fn square(side: usize) -> Self {
        Self::of([side, side])
    }

    /// The same for any number of rows and columns.
    pub const fn of([rows, columns]: [usize; 2]) -> Self {
        let (fit, interpolation) = (Fit::Cover, Interpolation::Bilinear);
        Canvas { rows, columns, fit, interpolation, antialias: true }
    }

    /// Its side, if it is [`Canvas::square`] of one.
    pub fn plain_side(&self) -> Option<usize> {
        (*self == Self::square(self.rows)).then_some(self.rows)
    }

    /// Rows and columns.
    pub fn size(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// Bytes of one in RGB.
    pub fn bytes(&self) -> usize {
        self.rows.saturating_mul(self.columns).saturating_mul(3)
    }

    /// Whether crops of so many rows and columns fit, and it is small enough to be made.
    pub fn holds(&self, [rows, columns]: [usize; 2]) -> bool {
        let fits = |crop: usize, all: usize| 0 < crop && crop <= all && all <= MAX_CANVAS;
        fits(rows, self.rows) && fits(columns, self.columns)
    }
}

impl From<usize> for Canvas {
    fn from(side: usize) -> Self {
        Self::square(side)
    }
}

impl From<[usize; 2]> for Canvas {
    fn from(size: [usize; 2]) -> Self {
        Self::of(size)
    }
}

/// Rows and columns as text: "224x224".
pub fn size_text([rows, columns]: [usize; 2]) -> String {
    format!("{rows}x{columns}")
}

impl std::fmt::Display for Canvas {
    /// "256x256", and what is not as [`Canvas::square`] has it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&size_text(self.size()))?;
        if self.fit == Fit::Squash {
            f.write_str(" of the whole image")?;
        }
        if self.interpolation != Interpolation::default() {
            write!(f, ", {}", format!("{:?}", self.interpolation).to_lowercase())?;
        }
        if !self.antialias && self.interpolation != Interpolation::Nearest {
            f.write_str(", not antialiased")?;
        }
        Ok(())
    }
}

/// One number for both, or `[rows, columns]`.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a number of pixels, or [height, width]")]
enum Size {
    Side(usize),
    Both([usize; 2]),
}

impl From<[usize; 2]> for Size {
    fn from([rows, columns]: [usize; 2]) -> Self {
        if rows == columns { Size::Side(rows) } else { Size::Both([rows, columns]) }
    }
}

impl From<Size> for [usize; 2] {
    fn from(size: Size) -> Self {
        match size {
            Size::Side(side) => [side; 2],
            Size::Both(both) => both,
        }
    }
}

/// A canvas as it is written.
#[derive(Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a number of pixels, [height, width], or { size, fit = \"cover\" or \"squash\", \
                 interpolation = \"nearest\", \"box\", \"bilinear\", \"bicubic\" or \"lanczos\", antialias = true \
                 or false }"
)]
enum Written {
    Plain(Size),
    Table(Table),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    size: Size,
    #[serde(default)]
    fit: Fit,
    #[serde(default)]
    interpolation: Interpolation,
    #[serde(default = "yes")]
    antialias: bool,
}

fn yes() -> bool {
    true
}

impl Serialize for Canvas {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Canvas { fit, interpolation, antialias, .. } = *self;
        let size = Size::from(self.size());
        let written = match *self == Self::of(self.size()) {
            true => Written::Plain(size),
            false => Written::Table(Table { size, fit, interpolation, antialias }),
        };
        written.serialize(to)
    }
}

impl<'de> Deserialize<'de> for Canvas {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(match Written::deserialize(from)? {
            Written::Plain(size) => Canvas::of(size.into()),
            Written::Table(Table { size, fit, interpolation, antialias }) => {
                Canvas { fit, interpolation, antialias, ..Canvas::of(size.into()) }
            }
        })
    }
}

/// For `#[serde(with = "zfnet_core::size")]`: rows and columns as one number where they are equal, else as
/// `[rows, columns]`.
pub mod size {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// Writes them.
    ///
    /// # Errors
    /// As the serializer's.
    pub fn serialize<S: Serializer>(size: &[usize; 2], to: S) -> Result<S::Ok, S::Error> {
        super::Size::from(*size).serialize(to)
    }

    /// Reads them.
    ///
    /// # Errors
    /// If there is something else.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[usize; 2], D::Error> {
        super::Size::deserialize(from).map(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_canvas_is_written_as_shortly_as_it_can_be() {
        let squash = Canvas { fit: Fit::Squash, ..Canvas::square(9) };
        let cubic = Canvas {
            interpolation: Interpolation::Bicubic,
            antialias: false,
            ..Canvas::of([4, 7])
        };
        for (canvas, json) in [
            (Canvas::square(256), "256"),
            (Canvas::of([64, 128]), "[64,128]"),
            (squash, r#"{"size":9,"fit":"squash","interpolation":"bilinear","antialias":true}"#),
            (cubic, r#"{"size":[4,7],"fit":"cover","interpolation":"bicubic","antialias":false}"#),
        ] {
            assert_eq!(serde_json::to_string(&canvas).unwrap(), json);
            assert_eq!(serde_json::from_str::<Canvas>(json).unwrap(), canvas);
        }
        let read = |json: &str| serde_json::from_str::<Canvas>(json);
        assert_eq!(read(r#"{"size":9,"fit":"squash"}"#).unwrap(), squash);
        assert_eq!(read("[8,8]").unwrap(), Canvas::square(8));
        for wrong in ["-1", "\"256\"", "[1,2,3]", r#"{"size":9,"fit":"stretch"}"#, "1.5"] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.contains("expected a number of pixels"), "{wrong}: {error}");
        }
    }

    #[test]
    fn plain_squares_are_told_apart() {
        assert_eq!(Canvas::square(5).plain_side(), Some(5));
        assert_eq!(Canvas::of([5, 6]).plain_side(), None);
        assert_eq!(Canvas { antialias: false, ..Canvas::square(5) }.plain_side(), None);
        assert_eq!(Canvas::of([5, 6]).to_string(), "5x6");
        let canvas = Canvas { fit: Fit::Squash, antialias: false, ..Canvas::square(5) };
        assert_eq!(canvas.to_string(), "5x5 of the whole image, not antialiased");
    }
}
