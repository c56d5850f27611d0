//! What a graph does to pixels before its first layer.

use zfnet_core::{Error, Result};

use crate::Preprocessing;

/// How an input's values become the first layer's: `(x * scale - mean) / std`, one value a channel or one for all.
pub struct Affine {
    scale: f64,
    mean: Vec<f64>,
    /// A mean of each place, and its rows and columns; then `mean` is of zeros.
    image: Option<(Vec<f32>, [usize; 2])>,
    std: Vec<f64>,
    /// Whether a mean or a deviation has been met, behind which a factor is a deviation.
    begun: bool,
    bgr: bool,
    /// Whether there is anything of this in the file.
    pub found: bool,
    /// Whether the input is bytes.
    pub bytes: bool,
}

impl Default for Affine {
    fn default() -> Self {
        Affine {
            scale: 1.,
            mean: vec![0.],
            image: None,
            std: vec![1.],
            begun: false,
            bgr: false,
            found: false,
            bytes: false,
        }
    }
}

impl Affine {
    /// Applies what an operator does to the input's values.
    pub fn take(&mut self, operator: &str, values: &[f32]) -> Result<(), String> {
        let values: Vec<f64> = values.iter().map(|&value| value.into()).collect();
        self.found = true;
        let factors = |values: &[f64]| match operator {
            "Mul" => values.iter().map(|value| 1. / value).collect(),
            _ => values.to_vec(),
        };
        match (operator, &values[..]) {
            ("Mul", [one]) if !self.begun => self.scale *= one,
            ("Div", [one]) if !self.begun => self.scale /= one,
            ("Mul" | "Div", _) => {
                self.begun = true;
                self.std = both(&self.std, &factors(&values), |std, factor| std * factor)?;
            }
            (_, _) if self.image.is_some() => {
                return Err("expected nothing to be added to pixels less a mean image".into());
            }
            (_, _) => {
                self.begun = true;
                let sign = if operator == "Add" { -1. } else { 1. };
                let moved = both(&values, &self.std, |value, std| sign * value * std)?;
                self.mean = both(&self.mean, &moved, |mean, moved| mean + moved)?;
            }
        }
        // As they are kept: a factor that is finite here may be none there.
        let kept = |number: &f64| *number as f32;
        let numbers = [&[self.scale][..], &self.mean, &self.std].concat();
        match numbers.iter().all(|number| kept(number).is_finite())
            && self.std.iter().chain([&self.scale]).all(|number| kept(number) != 0.)
        {
            true => Ok(()),
            false => Err("expected preprocessing by finite numbers that are not zero".into()),
        }
    }

    /// Takes off a mean of each channel and place.
    pub fn take_image(
        &mut self,
        operator: &str,
        values: Vec<f32>,
        size: [usize; 2],
    ) -> Result<(), String> {
        if operator != "Sub" || self.begun || self.image.is_some() {
            return Err("expected values of places as a mean image, taken off pixels before all but a factor".into());
        }
        if values.iter().any(|value| !value.is_finite()) {
            return Err("expected a mean image of finite numbers".into());
        }
        (self.found, self.begun) = (true, true);
        self.image = Some((values, size));
        Ok(())
    }

    /// Turns blue, green, red into red, green, blue, or back.
    pub fn turn(&mut self) -> Result<(), String> {
        if self.image.is_some() {
            return Err(
                "expected channels to be turned around before a mean image is taken off".into()
            );
        }
        (self.found, self.bgr) = (true, !self.bgr);
        self.mean.reverse();
        self.std.reverse();
        Ok(())
    }

    /// What has been found, and notes on what was assumed.
    pub fn preprocessing(self, channels: usize, notes: &mut Vec<String>) -> Result<Preprocessing> {
        let each = |values: &[f64]| {
            let values = match values.len() {
                1 => vec![values[0] as f32; channels],
                _ => values.iter().map(|&value| value as f32).collect(),
            };
            match values.len() == channels {
                true => Ok(values),
                false => Err(Error::Network(format!(
                    "expected preprocessing of {channels} channels, found values of {}",
                    values.len()
                ))),
            }
        };
        let (mean, std) = (each(&self.mean)?, each(&self.std)?);
        let mut scale = self.scale;
        let largest = mean
            .iter()
            .zip(&std)
            .map(|(&mean, &std)| ((255. * scale - f64::from(mean)) / f64::from(std)).abs());
        if self.bytes {
            notes.push("the network takes bytes, and its preprocessing is in the graph".into());
        } else if largest.fold(0., f64::max) > MOST_OF_BYTES {
            scale /= 255.;
            if scale as f32 == 0. {
                return Err(Error::Network(
                    "expected preprocessing by numbers that are not zero".into(),
                ));
            }
            notes.push(
                "the graph's preprocessing is taken to be of pixels from 0 to 1, since those from 0 to 255 would become \
                 far larger than any network's input"
                    .into(),
            );
        } else {
            notes.push("the graph's preprocessing is taken to be of pixels from 0 to 255".into());
        }
        let (mean, mean_size) = match self.image {
            Some((image, size)) => (image, Some(size)),
            None => (mean, None),
        };
        let (scale, bgr) = (scale as f32, self.bgr);
        Ok(Preprocessing { scale, mean, mean_size, std, bgr, ..Preprocessing::default() })
    }
}

/// The largest size of a network's input that bytes become.
const MOST_OF_BYTES: f64 = 300.;

/// Two lists by elements, either of which may be one value for all.
fn both(a: &[f64], b: &[f64], of: impl Fn(f64, f64) -> f64) -> Result<Vec<f64>, String> {
    let count = a.len().max(b.len());
    let fits = |values: &[f64]| values.len() == 1 || values.len() == count;
    if !fits(a) || !fits(b) {
        return Err(format!(
            "expected as many values as before it, found {} and {}",
            a.len(),
            b.len()
        ));
    }
    let one = |values: &[f64], place: usize| values[if values.len() == 1 { 0 } else { place }];
    Ok((0..count).map(|place| of(one(a, place), one(b, place))).collect())
}
