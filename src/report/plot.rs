//! Curves as SVG, and numbers as colours.

use plotters::coord::Shift;
use plotters::prelude::*;

/// What is drawn on.
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Width and height of a plot, in the units of its SVG.
pub const SIZE: [usize; 2] = [600, 440];

/// One curve.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Line {
    /// Its name in the legend.
    pub name: String,
    /// (x, y), from left to right; what is not finite, or beyond 1e300, is left out.
    pub points: Vec<(f64, f64)>,
}

/// Colours that people of any colour vision tell apart, red, green, blue, with their names (Okabe and
/// Ito 2008).
pub const COLOURS: [([u8; 3], &str); 7] = [
    ([0, 114, 178], "blue"),
    ([213, 94, 0], "vermilion"),
    ([0, 158, 115], "green"),
    ([204, 121, 167], "pink"),
    ([230, 159, 0], "orange"),
    ([86, 180, 233], "sky blue"),
    ([90, 90, 90], "grey"),
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
    let root = legend(&root, lines)?;
    // Far below the largest number, so that a difference of two is one, too.
    let finite = |(x, y): &(f64, f64)| x.abs() < 1e300 && y.abs() < 1e300;
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
    for (line, ([r, g, b], _)) in lines.iter().zip(COLOURS.iter().cycle()) {
        let points = line.points.iter().copied().filter(finite);
        let style = RGBColor(*r, *g, *b).stroke_width(2);
        chart.draw_series(LineSeries::new(points, style))?;
    }
    root.present()?;
    Ok(())
}

/// Draws the names of several lines above the plot, where they cover none, two in a row; returns what is
/// left for the plot.
fn legend<'a>(root: &Area<'a>, lines: &[Line]) -> Result<Area<'a>, Box<dyn std::error::Error>> {
    if lines.len() < 2 {
        return Ok(root.clone());
    }
    const ROW: usize = 22;
    let lines = &lines[..lines.len().min(2 * COLOURS.len())]; // what is left must be a plot
    let (top, rest) = root.split_vertically((8 + lines.len().div_ceil(2) * ROW) as u32);
    for (i, (line, ([r, g, b], _))) in lines.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let (x, y) = ((74 + i % 2 * 262) as i32, (18 + i / 2 * ROW) as i32);
        let style = RGBColor(*r, *g, *b).stroke_width(3);
        top.draw(&PathElement::new([(x, y), (x + 22, y)], style))?;
        let name: String = line.name.chars().take(30).collect();
        top.draw(&Text::new(name, (x + 30, y - 8), ("sans-serif", 16)))?;
    }
    Ok(rest)
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

/// A number as a colour of the scale viridis, dark for `low` and yellow for `high`; what is not finite is
/// grey.
pub fn heat(value: f64, low: f64, high: f64) -> [u8; 3] {
    if !value.is_finite() {
        return [crate::picture::GREY; 3];
    }
    let place = if high > low { (value - low) / (high - low) } else { 0.0 };
    let RGBColor(r, g, b) = ViridisRGB::get_color(place.clamp(0.0, 1.0));
    [r, g, b]
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
        let huge = [(0.0, 1.7e308), (1.0, -1.7e308)];
        for points in [&[][..], &[(1.0, 1.0)], &[(f64::NAN, 1.0), (2.0, f64::INFINITY)], &huge] {
            assert!(curves("x", "y", &[line("l", points)]).contains("</svg>"));
        }
        assert!(curves("x", "y", &[]).contains("</svg>"));
    }

    #[test]
    fn heat_has_its_ends_and_no_number_is_grey() {
        let brightness = |[r, g, b]: [u8; 3]| u32::from(r) + u32::from(g) + u32::from(b);
        let [low, middle, high] = [0.0, 1.0, 2.0].map(|value| brightness(heat(value, 0.0, 2.0)));
        assert!(low < middle && middle < high, "{low} {middle} {high}");
        assert_eq!(heat(-9.0, 0.0, 2.0), heat(0.0, 0.0, 2.0));
        assert_eq!(heat(7.0, 7.0, 7.0), heat(0.0, 0.0, 2.0));
        assert_eq!(heat(f64::NAN, 0.0, 2.0), [128; 3]);
    }
}
