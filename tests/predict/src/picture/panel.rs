//! Panels: an axis of labels, and series over it.

use anyhow::anyhow;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::Area;
use crate::table::Range;

const FONT: &str = "sans-serif";
const GRID: RGBColor = RGBColor(225, 225, 225);
/// How much of a band is see-through.
const BAND: f64 = 0.35;

/// An axis whose labels stand where they are told to.
#[derive(Clone, Debug)]
struct Axis {
    low: f64,
    high: f64,
    points: Vec<f64>,
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (value - self.low) / (self.high - self.low);
        (f64::from(to - from).mul_add(share, f64::from(from))).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.points.clone()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.low..self.high
    }
}

/// How the values run.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scale {
    /// From zero.
    Linear,
    /// By powers of ten.
    Logarithmic,
}

impl Scale {
    fn at(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Logarithmic => value.log10(),
        }
    }

    /// Bounds that hold all values, and where to put labels.
    fn axis(self, values: Range) -> Axis {
        let (low, high, points) = match self {
            Self::Linear => {
                let step = step(values.high);
                let count = (values.high * 1.05 / step).ceil();
                let points = (0..=count as u32).map(|n| f64::from(n) * step);
                (0.0, count * step, points.collect())
            }
            Self::Logarithmic => {
                let (low, high) = (values.low.log10().floor(), values.high.log10().ceil());
                let points = (low as i32..=high as i32).map(f64::from);
                (low, high, points.collect())
            }
        };
        Axis { low, high, points }
    }

    fn label(self, at: f64) -> String {
        match self {
            // Steps such as 0.2 do not add up exactly.
            Self::Linear => format!("{}", (at * 1e3).round() / 1e3),
            Self::Logarithmic => {
                let us = 10f64.powf(at);
                if us < 1e3 {
                    format!("{us:.0} us")
                } else if us < 1e6 {
                    format!("{:.0} ms", us / 1e3)
                } else {
                    format!("{:.0} s", us / 1e6)
                }
            }
        }
    }
}

/// A round step that gives four to eight labels.
fn step(high: f64) -> f64 {
    let base = 10f64.powf(high.max(1e-9).log10().floor());
    [0.2, 0.5, 1.0, 2.0]
        .map(|f| f * base)
        .into_iter()
        .find(|step| high / step <= 8.0)
        .unwrap_or(base)
}

/// How a series looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// A line through the lower ends.
    Line,
    /// The same, dashed.
    Dashed,
    /// All between lower and upper ends, both drawn.
    Band,
    /// A point in the middle of each, with a bar.
    Bars,
}

/// Values over the labels.
#[derive(Debug)]
pub(super) struct Series {
    colour: RGBColor,
    shape: Shape,
    values: Vec<Range>,
}

impl Series {
    pub(super) fn new(colour: RGBColor, shape: Shape, values: Vec<Range>) -> Self {
        Self {
            colour,
            shape,
            values,
        }
    }
}

/// One entry of a legend.
#[derive(Debug)]
pub(super) struct Legend<'a> {
    text: &'a str,
    colour: RGBColor,
    mark: Mark,
}

#[derive(Clone, Copy, Debug)]
enum Mark {
    Line,
    Dashed,
    Band,
    Point,
    Block,
}

impl<'a> Legend<'a> {
    const fn new(text: &'a str, colour: RGBColor, mark: Mark) -> Self {
        Self { text, colour, mark }
    }
    pub(super) const fn line(text: &'a str, colour: RGBColor) -> Self {
        Self::new(text, colour, Mark::Line)
    }
    pub(super) const fn dashed(text: &'a str, colour: RGBColor) -> Self {
        Self::new(text, colour, Mark::Dashed)
    }
    pub(super) const fn band(text: &'a str, colour: RGBColor) -> Self {
        Self::new(text, colour, Mark::Band)
    }
    pub(super) const fn point(text: &'a str, colour: RGBColor) -> Self {
        Self::new(text, colour, Mark::Point)
    }
    pub(super) const fn block(text: &'a str, colour: RGBColor) -> Self {
        Self::new(text, colour, Mark::Block)
    }
}

/// Title, explanation and legend.
pub(super) fn header(
    area: &Area<'_>,
    title: &str,
    text: &str,
    legend: &[Legend<'_>],
) -> anyhow::Result<()> {
    let failed = |e| anyhow!("header: {e:?}");
    let write = |text: &str, at: (i32, i32), size: u32, colour: RGBColor| {
        let style = (FONT, size).into_font().color(&colour);
        area.draw(&Text::new(text.to_owned(), at, style))
            .map_err(failed)
    };
    write(title, (16, 12), 20, BLACK)?;
    write(text, (16, 40), 13, RGBColor(90, 90, 90))?;
    let mut x = 16;
    for entry in legend {
        let (colour, y) = (entry.colour, 73);
        let line = |from: i32, to: i32| {
            area.draw(&PathElement::new(
                vec![(x + from, y), (x + to, y)],
                colour.stroke_width(2),
            ))
            .map_err(failed)
        };
        let block = |colour: RGBAColor| {
            let corners = [(x, y - 6), (x + 24, y + 6)];
            area.draw(&Rectangle::new(corners, colour.filled()))
                .map_err(failed)
        };
        match entry.mark {
            Mark::Line => line(0, 24)?,
            Mark::Dashed => {
                line(0, 10)?;
                line(14, 24)?;
            }
            Mark::Band => {
                block(colour.mix(BAND))?;
                line(0, 24)?;
            }
            Mark::Point => area
                .draw(&Circle::new((x + 12, y), 4, colour.filled()))
                .map_err(failed)?,
            Mark::Block => block(colour.mix(0.8))?,
        }
        write(entry.text, (x + 30, y - 8), 14, BLACK)?;
        // No font is at hand to measure with: seven units hold a letter of this size.
        x += 30 + 7 * i32::try_from(entry.text.len()).unwrap_or(0) + 24;
    }
    Ok(())
}

/// A panel of series.
#[derive(Debug)]
pub(super) struct Panel {
    pub(super) title: String,
    pub(super) axis: &'static str,
    pub(super) labels: Vec<String>,
    pub(super) scale: Scale,
}

impl Panel {
    pub(super) fn draw(&self, area: &Area<'_>, series: &[Series]) -> anyhow::Result<()> {
        let failed = |e| anyhow!("{}: {e:?}", self.title);
        let scale = self.scale;
        let ends = series.iter().flat_map(|s| &s.values);
        let all = Range::of(ends.flat_map(|r| [r.low, r.high]).filter(|v| v.is_finite()));
        let values = scale.axis(all);
        let last = self.labels.len().saturating_sub(1) as f64;
        let labels = Axis {
            low: -0.3,
            high: last + 0.3,
            points: (0..self.labels.len()).map(|n| n as f64).collect(),
        };
        // More than a dozen labels would touch each other in a third of a picture.
        let every = self.labels.len().div_ceil(12);
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .margin_right(18)
            .caption(&self.title, (FONT, 15))
            .x_label_area_size(42)
            .y_label_area_size(52)
            .build_cartesian_2d(labels, values)
            .map_err(failed)?;
        let label = |at: &f64| {
            let n = at.round().max(0.0) as usize;
            if n.is_multiple_of(every) {
                self.labels.get(n).cloned().unwrap_or_default()
            } else {
                String::new()
            }
        };
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .x_labels(self.labels.len())
            .x_label_formatter(&label)
            .y_label_formatter(&|at| scale.label(*at))
            .x_desc(self.axis)
            .label_style((FONT, 12))
            .axis_desc_style((FONT, 13))
            .draw()
            .map_err(failed)?;
        for one in series {
            let at = |of: fn(&Range) -> f64| -> Vec<(f64, f64)> {
                let values = one.values.iter().enumerate();
                values
                    .map(|(n, range)| (n as f64, scale.at(of(range))))
                    .filter(|(_, v)| v.is_finite())
                    .collect()
            };
            let (lower, upper) = (at(|r| r.low), at(|r| r.high));
            let line =
                |points: Vec<(f64, f64)>| LineSeries::new(points, one.colour.stroke_width(2));
            match one.shape {
                Shape::Line => {
                    chart.draw_series(line(lower)).map_err(failed)?;
                }
                Shape::Dashed => {
                    let style = one.colour.stroke_width(2);
                    chart
                        .draw_series(DashedLineSeries::new(lower, 7, 5, style))
                        .map_err(failed)?;
                }
                Shape::Band => {
                    let mut outline = lower.clone();
                    outline.extend(upper.iter().rev());
                    let fill = one.colour.mix(BAND).filled();
                    chart
                        .draw_series([Polygon::new(outline, fill)])
                        .map_err(failed)?;
                    chart.draw_series(line(lower)).map_err(failed)?;
                    chart.draw_series(line(upper)).map_err(failed)?;
                }
                Shape::Bars => {
                    let bars = lower.into_iter().zip(upper).map(|((x, low), (_, high))| {
                        let middle = f64::midpoint(low, high);
                        ErrorBar::new_vertical(x, low, middle, high, one.colour.filled(), 8)
                    });
                    chart.draw_series(bars).map_err(failed)?;
                }
            }
        }
        Ok(())
    }
}

/// Published and predicted side by side.
#[derive(Debug)]
pub(super) struct Bar {
    pub(super) label: String,
    pub(super) published: Option<f64>,
    pub(super) predicted: Range,
}

/// A panel of bars.
pub(super) fn bars(
    area: &Area<'_>,
    title: &str,
    (published, predicted): (RGBColor, RGBColor),
    list: &[Bar],
) -> anyhow::Result<()> {
    let failed = |e| anyhow!("{title}: {e:?}");
    let ends = list
        .iter()
        .flat_map(|b| [b.published.unwrap_or(0.0), b.predicted.high]);
    let values = Scale::Linear.axis(Range::of(ends));
    let top = values.high;
    let labels = Axis {
        low: 0.0,
        high: list.len() as f64,
        points: (0..list.len()).map(|n| n as f64 + 0.5).collect(),
    };
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .caption(title, (FONT, 15))
        .x_label_area_size(30)
        .y_label_area_size(46)
        .build_cartesian_2d(labels, values)
        .map_err(failed)?;
    let label = |at: &f64| {
        list.get(*at as usize)
            .map_or_else(String::new, |b| b.label.clone())
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .x_label_formatter(&label)
        .label_style((FONT, 13))
        .draw()
        .map_err(failed)?;
    let block = |from: f64, to: f64, to_value: f64, style: ShapeStyle| {
        Rectangle::new([(from, 0.0), (to, to_value)], style)
    };
    for (n, bar) in list.iter().enumerate() {
        let x = n as f64;
        if let Some(value) = bar.published {
            let style = published.mix(0.8).filled();
            chart
                .draw_series([block(x + 0.15, x + 0.48, value, style)])
                .map_err(failed)?;
        }
        let Range { low, high } = bar.predicted;
        let (from, to) = (x + 0.52, x + 0.85);
        chart
            .draw_series([
                block(from, to, high, predicted.mix(BAND).filled()),
                block(from, to, low, predicted.mix(0.8).filled()),
            ])
            .map_err(failed)?;
        let text = bar.predicted.show(1);
        let style = (FONT, 12).into_font().color(&BLACK);
        let place = Pos::new(HPos::Center, VPos::Bottom);
        // A hair above the bar.
        let at = (f64::midpoint(from, to), bar.predicted.high + 0.01 * top);
        chart
            .draw_series([Text::new(text, at, style.pos(place))])
            .map_err(failed)?;
    }
    Ok(())
}
