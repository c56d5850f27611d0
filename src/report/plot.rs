//! Curves as SVG, and numbers as colours.

use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::element::DashedPathElement;
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

/// Curves over a common axis, and what is drawn beside them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plot<'a> {
    /// What is to the right, and its unit.
    pub x: &'a str,
    /// What is up, and its unit.
    pub y: &'a str,
    /// The curves. A curve keeps its colour and dashes by its place among them; one without points is not in the
    /// legend.
    pub lines: &'a [Line],
    /// What a step upwards means.
    pub scale: Scale,
    /// Where the names of several lines are.
    pub names: Names,
    /// Vertical lines, from left to right.
    pub marks: &'a [Mark],
    /// A range of y that is shaded.
    pub band: Option<[f64; 2]>,
}

/// What a step upwards means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scale {
    /// So much more.
    #[default]
    Linear,
    /// So many times as much. Zero lies on the lower edge, a decade or more below all else; what is below zero is
    /// left out.
    Logarithmic,
}

/// Where names of lines are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Names {
    /// Above the plot, two in a row.
    #[default]
    Above,
    /// At the right end of each line, for many lines with short names.
    AtEnds,
}

/// A vertical line.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// Where.
    pub x: f64,
    /// What it says above the plot, in a word or two.
    pub label: String,
}

/// Dashes of the lines that have the same colour as an earlier one: their length, and that of the gaps.
const DASHES: [(u32, u32); 2] = [(9, 4), (2, 4)];
/// Of fewer points than this each is drawn, too.
const FEW_POINTS: usize = 40;
/// Width of the names at the ends of lines, and the most letters of one.
const ENDS: u32 = 124;
const END_LETTERS: usize = 13;
/// Height of a row of marks' labels, the most of them, and the width of a letter.
const LABEL_ROW: i32 = 18;
const LABEL_ROWS: usize = 4;
const LABEL_LETTER: i32 = 8;
/// The plot within its SVG: what is to its left, and what is around it.
const LEFT: u32 = 70;
const MARGIN: u32 = 14;

impl Plot<'_> {
    /// The text of an SVG.
    pub fn svg(&self) -> String {
        let mut svg = String::new();
        // Drawing into a string does not fail.
        self.draw(&mut svg).expect("a plot in memory");
        svg
    }

    fn draw(&self, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let size = (SIZE[0] as u32, SIZE[1] as u32);
        let whole = SVGBackend::with_string(svg, size).into_drawing_area();
        whole.fill(&WHITE)?;
        let root = match self.names {
            Names::Above => legend(&whole, self.lines)?,
            Names::AtEnds => whole.clone(),
        };
        let y_axis = Axis::of(self);
        // Far below the largest number, so that a difference of two is one, too.
        let finite = |(x, y): &(f64, f64)| x.abs() < 1e300 && y.abs() < 1e300;
        let placed = |line: &Line| -> Vec<(f64, f64)> {
            let place = |(x, y): &(f64, f64)| Some((*x, y_axis.place(*y)?));
            line.points.iter().filter(|point| finite(point)).filter_map(place).collect()
        };
        let lines: Vec<Vec<(f64, f64)>> = self.lines.iter().map(placed).collect();
        let marks = || self.marks.iter().filter(|mark| mark.x.abs() < 1e300);
        let xs = lines.iter().flatten().map(|point| point.0).chain(marks().map(|mark| mark.x));
        let x_range = range(xs);
        let right = if self.names == Names::AtEnds { ENDS } else { 0 };
        let rows = self.rows_of_labels(&x_range, right);
        let used = rows.iter().flatten().max().map_or(0, |last| last + 1);
        let mut chart = ChartBuilder::on(&root)
            .margin(MARGIN)
            .margin_top(MARGIN + used as u32 * LABEL_ROW as u32)
            .margin_right(MARGIN + right)
            .x_label_area_size(50)
            .y_label_area_size(LEFT)
            .build_cartesian_2d(x_range.clone(), y_axis.clone())?;
        if let Some([low, high]) = self.band.map(|band| band.map(|edge| y_axis.place(edge))) {
            let [low, high] = [low.unwrap_or(y_axis.range.start), high.unwrap_or(y_axis.range.end)];
            let corners = [(x_range.start, low), (x_range.end, high)];
            chart.draw_series([Rectangle::new(corners, RGBColor(232, 232, 226).filled())])?;
        }
        let in_decades = |exponent: &f64| power_of_ten(*exponent);
        let mut mesh = chart.configure_mesh();
        mesh.x_desc(plain(self.x))
            .y_desc(plain(self.y))
            .label_style(("sans-serif", 17))
            .axis_desc_style(("sans-serif", 17))
            .light_line_style(WHITE)
            .x_labels(7)
            .y_labels(7);
        if self.scale == Scale::Logarithmic {
            mesh.y_label_formatter(&in_decades);
        }
        mesh.draw()?;
        for (mark, row) in marks().zip(&rows) {
            let ends = [(mark.x, y_axis.range.start), (mark.x, y_axis.range.end)];
            chart.draw_series(DashedLineSeries::new(ends, 5, 4, BLACK.stroke_width(1)))?;
            let Some(row) = row else { continue };
            let (x, y) = chart.backend_coord(&ends[1]);
            let at = (label_start(mark, x), y - LABEL_ROW * (*row as i32 + 1));
            whole.draw(&Text::new(plain(&mark.label), at, ("sans-serif", 15)))?;
        }
        for (number, points) in lines.iter().enumerate() {
            let (colour, dashes) = look(number);
            let style = colour.stroke_width(2);
            match dashes {
                None => {
                    chart.draw_series(LineSeries::new(points.iter().copied(), style))?;
                }
                Some((length, gap)) => {
                    let points = points.iter().copied();
                    chart.draw_series(DashedLineSeries::new(points, length, gap, style))?;
                }
            }
            if points.len() < FEW_POINTS {
                chart.draw_series(points.iter().map(|at| Circle::new(*at, 3, colour.filled())))?;
            }
        }
        if self.names == Names::AtEnds {
            let ends = lines.iter().enumerate().filter_map(|(number, points)| {
                let (x, y) = chart.backend_coord(points.last()?);
                Some(End { number, x, y })
            });
            let edge = SIZE[0] as i32 - (MARGIN + right) as i32;
            self.name_ends(&whole, ends.collect(), edge)?;
        }
        root.present()?;
        Ok(())
    }

    /// For each mark the row in which its label touches none to its left, the lowest first; none if all are full.
    fn rows_of_labels(&self, x: &std::ops::Range<f64>, right: u32) -> Vec<Option<usize>> {
        let [left, right] = [(LEFT + MARGIN) as f64, SIZE[0] as f64 - f64::from(MARGIN + right)];
        let mut ends = [i32::MIN; LABEL_ROWS];
        let row = |mark: &Mark| {
            let at = left + (mark.x - x.start) / (x.end - x.start) * (right - left);
            let start = label_start(mark, at as i32);
            let row = ends.iter().position(|end| *end < start)?;
            ends[row] = start + LABEL_LETTER * (mark.label.chars().count() as i32 + 1);
            Some(row)
        };
        self.marks.iter().filter(|mark| mark.x.abs() < 1e300).map(row).collect()
    }

    /// Writes names to the right of `edge`, each as near to the end of its line as the others let it.
    fn name_ends(
        &self,
        whole: &Area<'_>,
        mut ends: Vec<End>,
        edge: i32,
    ) -> Result<(), Box<dyn std::error::Error>> {
        ends.sort_by_key(|end| end.y);
        let height = SIZE[1] as i32 - 2 * MARGIN as i32;
        let apart = (height / ends.len().max(1) as i32).clamp(1, 17);
        let mut places: Vec<i32> = Vec::new();
        for end in &ends {
            let above = places.last().map_or(MARGIN as i32, |place| place + apart);
            places.push(end.y.max(above));
        }
        let mut below = SIZE[1] as i32 - MARGIN as i32;
        for place in places.iter_mut().rev() {
            *place = (*place).min(below);
            below = *place - apart;
        }
        for (End { number, x, y }, place) in ends.into_iter().zip(places) {
            let (colour, dashes) = look(number);
            // The line that leads to the name is thin, the sample beside the name is as the line itself.
            let lead = [(x, y), (edge + 4, y), (edge + 14, place)];
            whole.draw(&PathElement::new(lead, colour.mix(0.5).stroke_width(1)))?;
            let sample = [(edge + 14, place), (edge + 32, place)];
            let style = colour.stroke_width(3);
            match dashes {
                None => whole.draw(&PathElement::new(sample, style))?,
                Some((length, gap)) => {
                    whole.draw(&DashedPathElement::new(sample, length, gap, style))?;
                }
            }
            let name = plain(&self.lines[number].name);
            let name = match name.chars().count() > END_LETTERS {
                true => name.chars().take(END_LETTERS - 1).chain(['…']).collect(),
                false => name,
            };
            whole.draw(&Text::new(name, (edge + 36, place - 8), ("sans-serif", 15)))?;
        }
        Ok(())
    }
}

/// The end of a line with a number, in pixels.
struct End {
    number: usize,
    x: i32,
    y: i32,
}

/// What is up in a plot.
#[derive(Clone)]
struct Axis {
    /// Of logarithms to base 10, if the scale is logarithmic.
    range: std::ops::Range<f64>,
    /// Of a logarithmic scale.
    ticks: Option<Vec<f64>>,
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        RangedCoordf64::from(self.range.clone()).map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        match &self.ticks {
            Some(_) if hint.weight().allow_light_points() => Vec::new(),
            Some(ticks) => ticks.clone(),
            None => RangedCoordf64::from(self.range.clone()).key_points(hint),
        }
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Axis {
    fn format(value: &f64) -> String {
        let text = RangedCoordf64::format(value);
        text.strip_suffix(".0").unwrap_or(&text).into()
    }
}

impl Axis {
    fn of(plot: &Plot<'_>) -> Self {
        let points = plot.lines.iter().flat_map(|line| &line.points);
        let values = points.filter(|(x, _)| x.abs() < 1e300).map(|(_, y)| *y);
        let values = values.chain(plot.band.into_iter().flatten()).filter(|y| y.abs() < 1e300);
        match plot.scale {
            Scale::Linear => Axis { range: range(values), ticks: None },
            Scale::Logarithmic => {
                let (mut low, mut high, mut zero) = (f64::INFINITY, f64::NEG_INFINITY, false);
                for value in values {
                    zero |= value == 0.0;
                    if value > 0.0 {
                        (low, high) = (low.min(value.log10()), high.max(value.log10()));
                    }
                }
                if high < low {
                    (low, high) = (0.0, 0.0);
                }
                let ticks = decades(if zero { low.floor() - 1.0 } else { low }, high);
                Axis { range: ticks[0]..ticks[ticks.len() - 1], ticks: Some(ticks) }
            }
        }
    }

    /// Where a value is; none if it is left out.
    fn place(&self, value: f64) -> Option<f64> {
        match self.ticks {
            None => Some(value),
            Some(_) if value == 0.0 => Some(self.range.start),
            Some(_) => (value > 0.0).then(|| value.log10()),
        }
    }
}

/// Ticks from the last one not above `low` to the first one not below `high`, two at least; all are logarithms to
/// base 10.
fn decades(low: f64, high: f64) -> Vec<f64> {
    let mantissas: &[f64] = match high - low {
        far if far > 3.0 => &[1.0],
        middle if middle > 1.5 => &[1.0, 3.0],
        _ => &[1.0, 2.0, 5.0],
    };
    let stride = ((high - low) / 7.0).ceil().max(1.0);
    let first = (low / stride).floor() * stride;
    let many = ((high - first) / stride).ceil() as usize + 1;
    let ticks: Vec<f64> = (0..=many)
        .flat_map(|i| mantissas.iter().map(move |m| first + i as f64 * stride + m.log10()))
        .collect();
    const ROUNDING: f64 = 1e-9;
    let from = ticks.iter().rposition(|tick| *tick <= low + ROUNDING).unwrap_or(0);
    let to = ticks.iter().position(|tick| *tick >= high - ROUNDING).unwrap_or(ticks.len() - 1);
    ticks[from..=to.max(from + 1)].to_vec()
}

/// A tick's number, by its logarithm to base 10.
fn power_of_ten(exponent: f64) -> String {
    let whole = (exponent + 1e-9).floor();
    let mantissa = 10f64.powf(exponent - whole).round();
    match whole {
        -3.0..=3.0 => format!("{:.*}", (-whole).max(0.0) as usize, mantissa * 10f64.powf(whole)),
        _ => format!("{mantissa}e{whole}"),
    }
}

/// Where a mark's label begins: right of the line, or left of it where it would leave the picture.
fn label_start(mark: &Mark, x: i32) -> i32 {
    let width = LABEL_LETTER * mark.label.chars().count() as i32;
    x.min(SIZE[0] as i32 - width - 2).max(0)
}

/// A line's colour and dashes, by its place among the lines.
fn look(number: usize) -> (RGBColor, Option<(u32, u32)>) {
    let ([r, g, b], _) = COLOURS[number % COLOURS.len()];
    let round = number / COLOURS.len() % (1 + DASHES.len());
    (RGBColor(r, g, b), round.checked_sub(1).map(|dashes| DASHES[dashes]))
}

/// Text without characters that no SVG may hold, whatever a file calls its layers.
fn plain(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
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
    for (i, line) in lines.iter().enumerate() {
        let (x, y) = ((74 + i % 2 * 262) as i32, (18 + i / 2 * ROW) as i32);
        let (colour, dashes) = look(i);
        let (sample, style) = ([(x, y), (x + 22, y)], colour.stroke_width(3));
        match dashes {
            None => top.draw(&PathElement::new(sample, style))?,
            Some((length, gap)) => {
                top.draw(&DashedPathElement::new(sample, length, gap, style))?;
            }
        }
        let name: String = plain(&line.name).chars().take(30).collect();
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

    fn curves(x: &str, y: &str, lines: &[Line]) -> String {
        Plot { x, y, lines, ..Plot::default() }.svg()
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

    /// The y of each circle of an SVG, in its order.
    fn heights(svg: &str) -> Vec<i32> {
        let circles = svg.split("<circle ").skip(1);
        let y = |circle: &str| circle.split("cy=\"").nth(1)?.split('"').next()?.parse().ok();
        circles.map(|circle| y(circle).expect("a circle has a centre")).collect()
    }

    #[test]
    fn a_logarithmic_axis_has_equal_steps_for_equal_factors_and_zero_below_all() {
        let points =
            [(0.0, 1e-4), (1.0, 1e-2), (2.0, 1.0), (3.0, 0.0), (4.0, -1.0), (5.0, f64::NAN)];
        let lines = [line("l", &points)];
        let plot = Plot { x: "epoch", y: "std", lines: &lines, ..Plot::default() };
        let svg = Plot { scale: Scale::Logarithmic, ..plot }.svg();
        let [low, middle, high, zero] = heights(&svg)[..] else { panic!("{svg}") };
        assert!((low - middle - (middle - high)).abs() <= 1 && middle - high > 50, "{svg}");
        assert!(zero > low + 20, "{svg}");
        let linear = heights(&plot.svg());
        assert_eq!(linear.len(), 5, "all but what is no number: {linear:?}");
    }

    #[test]
    fn ticks_reach_around_all_values_and_are_few() {
        let numbers =
            |low, high| decades(low, high).into_iter().map(power_of_ten).collect::<Vec<_>>();
        assert_eq!(numbers(0.021f64.log10(), 0.18f64.log10()), ["0.02", "0.05", "0.1", "0.2"]);
        assert_eq!(numbers(-1.0, -1.0), ["0.1", "0.2"]);
        assert_eq!(numbers(-2.0, 0.0), ["0.01", "0.03", "0.1", "0.3", "1"]);
        assert_eq!(numbers(-5.2, -1.9), ["1e-6", "1e-5", "1e-4", "0.001", "0.01", "0.1"]);
        for (low, high) in [(-300.0, 299.5), (-0.3, 7.7), (0.0, 0.0), (-299.9, -299.9)] {
            let ticks = decades(low, high);
            assert!((2..=10).contains(&ticks.len()), "{ticks:?}");
            assert!(ticks[0] <= low + 1e-9 && ticks[ticks.len() - 1] >= high - 1e-9, "{ticks:?}");
        }
    }

    #[test]
    fn marks_and_bands_are_drawn_and_labels_do_not_touch() {
        let lines = [line("l", &[(0.0, 1.0), (10.0, 2.0)])];
        let mark = |x: f64, label: &str| Mark { x, label: label.into() };
        let marks =
            [mark(5.0, "1 stuck"), mark(5.1, "2 <dead>"), mark(9.9, "3 diverged"), mark(12.0, "4")];
        let plot = Plot { x: "x", y: "y", lines: &lines, marks: &marks, ..Plot::default() };
        let plot = Plot { band: Some([0.5, 4.0]), ..plot };
        assert_eq!(plot.rows_of_labels(&(0.0..12.0), 0), [Some(0), Some(1), Some(0), Some(1)]);
        let svg = plot.svg();
        for word in ["1 stuck", "2 &lt;dead&gt;", "3 diverged"] {
            assert!(svg.contains(word), "{word}: {svg}");
        }
        assert!(svg.contains("#E8E8E2"), "the band: {svg}");
        assert!(Plot { marks: &[mark(f64::NAN, "n")], ..plot }.svg().contains("</svg>"));
    }

    #[test]
    fn many_lines_are_named_at_their_ends_apart_from_each_other() {
        let lines: Vec<Line> =
            (0..16).map(|i| line(&format!("conv{i}\u{1}"), &[(1.0, 1.0), (2.0, 1.0)])).collect();
        let empty = line("nothing", &[]);
        let all = [&lines[..], &[empty]].concat();
        let svg =
            Plot { x: "x", y: "y", lines: &all, names: Names::AtEnds, ..Plot::default() }.svg();
        let height = |name: &str| -> i32 {
            let before = svg.split(name).next().unwrap();
            let text = before.rsplit("<text ").next().unwrap();
            text.split(" y=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap()
        };
        let mut heights: Vec<i32> = (0..16).map(|i| height(&format!("conv{i}\u{fffd}"))).collect();
        heights.sort_unstable();
        assert!(heights.windows(2).all(|two| two[1] - two[0] >= 14), "{heights:?}");
        assert!(heights[0] > 0 && heights[15] < SIZE[1] as i32, "{heights:?}");
        assert!(!svg.contains("nothing") && !svg.contains('\u{1}'));
        let looks: std::collections::HashSet<_> =
            (0..16).map(|i| (look(i).0.rgb(), look(i).1)).collect();
        assert_eq!(looks.len(), 16);
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
