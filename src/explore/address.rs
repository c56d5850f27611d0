//! Which picture an address names, and what of it the network is shown.

use crate::data::Split;
use crate::study::occluder::Fill;

/// Where a picture comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// An image of the data set.
    Data(Split, usize),
    /// One that was uploaded, by its name.
    Upload(String),
}

/// A square part of a picture, in shares of its shorter side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View {
    /// Its left edge.
    pub x: f64,
    /// Its upper edge.
    pub y: f64,
    /// Its side.
    pub side: f64,
}

/// A picture, what of it is shown, and what is covered of that.
#[derive(Clone, Debug, PartialEq)]
pub struct Address {
    /// The picture.
    pub source: Source,
    /// What of it; `None` for what the network's own preparation takes.
    pub view: Option<View>,
    /// A box in pixels of the network's input, x1 and y1 excluded, and what is in it instead.
    pub cover: Option<([i64; 4], Fill)>,
}

/// Largest coordinate of a box, far outside any input.
const FAR: i64 = 100_000;

impl Address {
    /// From `val/123` or `upload/NAME` and the queries `view`, `cover` and `fill`; what is wrong with them, in a
    /// sentence.
    pub fn parse(
        kind: &str,
        name: &str,
        view: Option<&str>,
        cover: Option<&str>,
        fill: Option<&str>,
    ) -> Result<Self, String> {
        let source = match (kind, name.parse()) {
            ("train", Ok(index)) => Source::Data(Split::Train, index),
            ("val", Ok(index)) => Source::Data(Split::Val, index),
            ("upload", _) if is_upload(name) => Source::Upload(name.into()),
            _ => return Err("no image: expected train/N, val/N or upload/NAME".into()),
        };
        let view = view.map(parse_view).transpose()?;
        let fill = match fill {
            None | Some("mean") => Fill::Mean,
            Some("grey") => Fill::Grey,
            Some("blur") => Fill::Blur,
            Some(_) => return Err("fill: expected mean, grey or blur".into()),
        };
        let cover = cover.map(parse_cover).transpose()?.map(|area| (area, fill));
        Ok(Address { source, view, cover })
    }

    /// The same for all addresses that show the network the same.
    pub fn key(&self) -> String {
        format!("{self:?}")
    }
}

/// Whether it may be the name of an upload: letters and digits alone.
fn is_upload(name: &str) -> bool {
    (1..=32).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn numbers<const N: usize, T: std::str::FromStr>(text: &str) -> Option<[T; N]> {
    let parsed: Option<Vec<T>> = text.split(',').map(|part| part.parse().ok()).collect();
    parsed?.try_into().ok()
}

fn parse_view(text: &str) -> Result<View, String> {
    let expected = || "view: expected x,y,side in shares of the shorter side".to_owned();
    let [x, y, side] = numbers::<3, f64>(text).ok_or_else(expected)?;
    // The longer side has some shares.
    let is_fit = side > 0.001 && side <= 1.0 && [x, y].iter().all(|v| (-1.0..=1000.0).contains(v));
    is_fit.then_some(View { x, y, side }).ok_or_else(expected)
}

fn parse_cover(text: &str) -> Result<[i64; 4], String> {
    let area = numbers::<4, i64>(text)
        .ok_or_else(|| "cover: expected x0,y0,x1,y1 in pixels of the network's input".to_owned())?;
    Ok(area.map(|v| v.clamp(-FAR, FAR)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_or_refused() {
        let parse = |kind, name| Address::parse(kind, name, None, None, None);
        assert_eq!(parse("val", "12").unwrap().source, Source::Data(Split::Val, 12));
        assert_eq!(parse("upload", "00ff").unwrap().source, Source::Upload("00ff".into()));
        for (kind, name) in
            [("val", "-1"), ("val", "../x"), ("test", "1"), ("upload", "../a"), ("upload", "")]
        {
            assert!(parse(kind, name).is_err(), "{kind}/{name}");
        }
        let with = |view, cover, fill| Address::parse("train", "0", view, cover, fill);
        let address = with(Some("0.25,0,0.5"), Some("-4,0,8,9"), Some("blur")).unwrap();
        assert_eq!(address.view, Some(View { x: 0.25, y: 0.0, side: 0.5 }));
        assert_eq!(address.cover, Some(([-4, 0, 8, 9], Fill::Blur)));
        let far = with(None, Some("-9223372036854775808,0,9223372036854775807,1"), None).unwrap();
        assert_eq!(far.cover, Some(([-FAR, 0, FAR, 1], Fill::Mean)));
        for view in ["", "1,2", "0,0,0", "0,0,1.5", "NaN,0,1", "0,0,NaN", "inf,0,1", "0,0,1,1"] {
            assert!(with(Some(view), None, None).is_err(), "{view}");
        }
        for cover in ["", "1,2,3", "a,b,c,d", "1.5,0,1,1"] {
            assert!(with(None, Some(cover), None).is_err(), "{cover}");
        }
        assert!(with(None, None, Some("red")).is_err());
    }
}
