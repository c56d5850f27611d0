//! Curves as SVG, and maps of numbers as coloured pixels.

use plotters::prelude::*;

use crate::picture::Image;

/// Width and height of a plot, in the units of its SVG.
pub const SIZE: [usize; 2] = [600, 400];

/// One curve.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Line {
    /// Its name in the legend.
    pub name: String,
    /// (x, y), from left to right; what is not finite is left out.
    pub points: Vec<(f64, f64)>,
}

/// Colours that people of any colour vision tell apart (Okabe and Ito 2008).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];

/// Curves over a common axis, as the text of an SVG.
pub fn curves(x: &str, y: &str, lines: &[Line]) -> String {
    let mut svg = String::new();
    // Drawing into a string does not fail.
    draw(&mut svg, x, y, lines).expect("a plot in memory");
    svg
}

fn draw(
    svg: &mut String,
    x: &str,
    y: &str,
    lines: &[Line],
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, (SIZE[0] as u32, SIZE[1] as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let finite = |(x, y): &(f64, f64)| x.is_finite() && y.is_finite();
    let points = || lines.iter().flat_map(|line| &line.points).copied().filter(finite);
    let mut chart = ChartBuilder::on(&root)
        .margin(14)
        .x_label_area_size(50)
        .y_label_area_size(70)
        .build_cartesian_2d(range(points().map(|p| p.0)), range(points().map(|p| p.1)))?;
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .label_style(("sans-serif", 17))
        .axis_desc_style(("sans-serif", 17))
        .light_line_style(WHITE)
        .x_labels(7)
        .y_labels(7)
        .draw()?;
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let points = line.points.iter().copied().filter(finite);
        let style = colour.stroke_width(2);
        chart
            .draw_series(LineSeries::new(points, style))?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    if lines.len() > 1 {
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(200, 200, 200))
            .label_font(("sans-serif", 17))
            .draw()?;
    }
    root.present()?;
    Ok(())
}

/// From the least to the largest value, never empty.
fn range(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    match (low.is_finite(), high > low) {
        (false, _) => 0.0..1.0,
        (true, false) => low - 0.5..low + 0.5,
        (true, true) => low..high,
    }
}

/// Numbers as colours of the scale viridis, dark for `low` and yellow for `high`; each number is
/// `cell` pixels wide and high. What is not finite is grey.
///
/// # Panics
/// Unless `values` has `width` values in each of its rows.
pub fn heat(values: &[f32], width: usize, cell: usize, low: f32, high: f32) -> Image {
    assert!(width > 0 && values.len().is_multiple_of(width), "whole rows");
    let pixel = |value: &f32| {
        if !value.is_finite() {
            return [crate::picture::GREY; 3];
        }
        let place = if high > low { (value - low) / (high - low) } else { 0.0 };
        let RGBColor(r, g, b) = ViridisRGB::get_color(place.clamp(0.0, 1.0));
        [r, g, b]
    };
    let height = values.len() / width;
    let small = Image::new(width, height, values.iter().flat_map(pixel).collect());
    small.resize(width * cell, height * cell)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, points: &[(f64, f64)]) -> Line {
        Line { name: name.into(), points: points.to_vec() }
    }

    #[test]
    fn curves_are_named_and_escaped() {
        let lines = [line("a < b", &[(0.0, 1.0), (1.0, 2.0)]), line("c", &[(0.0, 0.5)])];
        let svg = curves("epoch", "loss & error", &lines);
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert!(svg.contains("a &lt; b") && svg.contains("loss &amp; error"), "{svg}");
        assert!(!svg.contains("a < b"));
    }

    #[test]
    fn nothing_one_point_and_nan_are_drawn_too() {
        for points in [&[][..], &[(1.0, 1.0)], &[(f64::NAN, 1.0), (2.0, f64::INFINITY)]] {
            assert!(curves("x", "y", &[line("l", points)]).contains("</svg>"));
        }
        assert!(curves("x", "y", &[]).contains("</svg>"));
    }

    #[test]
    fn heat_has_its_ends_and_no_number_is_grey() {
        let image = heat(&[0.0, 1.0, 2.0, f32::NAN], 2, 3, 0.0, 2.0);
        assert_eq!((image.width, image.height), (6, 6));
        let pixel = |x: i64, y: i64| image.crop([x, y, x + 1, y + 1]).pixels;
        assert!(pixel(0, 0).iter().map(|v| u32::from(*v)).sum::<u32>() < 200); // dark
        assert!(pixel(0, 5)[1] > 200); // yellow
        assert_eq!(pixel(5, 5), [128; 3]);
        assert_eq!(pixel(2, 2), pixel(0, 0));
        // A constant map is all of one colour.
        assert!(heat(&[7.0; 4], 2, 1, 7.0, 7.0).pixels.chunks(3).all(|p| p == pixel(0, 0)));
    }
}
