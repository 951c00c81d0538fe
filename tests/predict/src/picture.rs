//! The predictions as pictures: SVG, whose text needs no font here.

mod panel;

use anyhow::anyhow;
use plotters::prelude::*;

use crate::latency::{self, Latency, Mover};
use crate::movers::{self, Mix};
use crate::prediction::Prediction;
use crate::published::{FolioSize, Source};
use crate::table::{Range, Row, column};
use panel::{Bar, Legend, Panel, Scale, Series, Shape, bars};

/// One picture.
#[derive(Debug)]
pub struct Picture {
    /// Its file's name.
    pub name: &'static str,
    /// The file.
    pub svg: String,
}

const CPU: RGBColor = RGBColor(110, 110, 110);
const PUBLISHED: RGBColor = RGBColor(0, 0, 0);
const MODEL: RGBColor = RGBColor(40, 110, 200);
const OURS: RGBColor = RGBColor(220, 90, 20);
const SHORT: RGBColor = RGBColor(20, 140, 90);
const LIMIT: RGBColor = RGBColor(170, 30, 110);

/// Height of title, explanation and legend.
const HEADER: u32 = 92;

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// Draws one picture: title, what it says, a legend, and the rest.
fn draw(
    name: &'static str,
    (width, height): (u32, u32),
    (title, text): (&str, &str),
    legend: &[Legend<'_>],
    rest: impl FnOnce(&Area<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<Picture> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area();
        let failed = |e| anyhow!("{name}: {e:?}");
        root.fill(&WHITE).map_err(failed)?;
        let (head, body) = root.split_vertically(HEADER);
        panel::header(&head, title, text, legend)?;
        rest(&body)?;
        root.present().map_err(failed)?;
    }
    Ok(Picture { name, svg })
}

/// All pictures.
///
/// # Errors
///
/// If one cannot be drawn.
pub fn all(all: &Prediction) -> anyhow::Result<Vec<Picture>> {
    Ok(vec![
        channels(all)?,
        folio_count(all)?,
        latencies(all)?,
        several(all)?,
        compaction(all)?,
    ])
}

fn sources(all: &Prediction) -> String {
    match &all.assumptions.machine {
        Some(machine) => {
            format!("predicted from published tables and values measured on {machine}")
        }
        None => {
            "predicted from published tables and assumptions (tables.txt), not measured".to_owned()
        }
    }
}

fn cells_legend(all: &Prediction) -> Vec<Legend<'static>> {
    let mut legend = vec![
        Legend::line("CPU, published", CPU),
        Legend::point("dcbm, published (bar: 10 % or spread)", PUBLISHED),
        Legend::dashed("dcbm, modelled", MODEL),
        Legend::band("ours, predicted", OURS),
    ];
    if !all.assumptions.measured.is_empty() {
        legend.push(Legend::point("ours, measured", SHORT));
    }
    legend
}

/// Cells over an axis: published and modelled, and ours.
fn cells(rows: &[&Row]) -> Vec<Series> {
    let values = |of: &dyn Fn(&Row) -> f64| -> Vec<Range> {
        rows.iter().map(|r| Range::of([of(r)])).collect()
    };
    let tolerance = |r: &&Row| {
        let (at, off) = (r.published.gb_per_s, r.published.tolerance());
        Range::of([at - off, at + off])
    };
    let mut series = vec![
        Series::new(OURS, Shape::Band, rows.iter().map(|r| r.range()).collect()),
        Series::new(CPU, Shape::Line, values(&|r| r.cpu)),
        Series::new(MODEL, Shape::Dashed, values(&|r| r.modelled)),
        Series::new(PUBLISHED, Shape::Bars, rows.iter().map(tolerance).collect()),
    ];
    if rows.iter().any(|r| r.measured.1.is_some()) {
        let measured = values(&|r| r.measured.1.unwrap_or(f64::NAN));
        series.push(Series::new(SHORT, Shape::Bars, measured));
    }
    series
}

fn channels(all: &Prediction) -> anyhow::Result<Picture> {
    let title = "move_pages by number of channels, 1 GB in all";
    let text = format!("GB/s; {}", sources(all));
    draw(
        "channels.svg",
        (1080, 720),
        (title, &text),
        &cells_legend(all),
        |body| {
            let sizes = FolioSize::ALL;
            let columns = sizes.map(|s| column(&all.channels, s).collect::<Vec<_>>());
            let columns = sizes.iter().zip(columns).filter(|(_, c)| !c.is_empty());
            for (area, (size, rows)) in body.split_evenly((2, 3)).iter().zip(columns) {
                let labels = rows.iter().map(|r| r.published.channels.to_string());
                let outlier = if rows.iter().any(|r| r.published.is_outlier()) {
                    ", 1 channel is a known outlier"
                } else {
                    ""
                };
                Panel {
                    title: format!("folios of {size}{outlier}"),
                    axis: "channels",
                    labels: labels.collect(),
                    scale: Scale::Linear,
                }
                .draw(area, &cells(&rows))?;
            }
            Ok(())
        },
    )
}

fn folio_count(all: &Prediction) -> anyhow::Result<Picture> {
    let title = "move_pages by number of folios of 2 MiB, one channel";
    let text = format!("GB/s; {}", sources(all));
    draw(
        "folio-count.svg",
        (900, 480),
        (title, &text),
        &cells_legend(all),
        |body| {
            let rows: Vec<_> = all.folio_count.iter().collect();
            debug_assert!(
                rows.iter()
                    .all(|r| r.published.source == Source::FolioCount)
            );
            let labels = rows.iter().map(|r| r.published.folios.to_string());
            Panel {
                title: String::new(),
                axis: "folios",
                labels: labels.collect(),
                scale: Scale::Linear,
            }
            .draw(body, &cells(&rows))
        },
    )
}

fn latencies(all: &Prediction) -> anyhow::Result<Picture> {
    let title = "Latency of one call, 16 channels";
    let text = format!("us, cold call; {}", sources(all));
    let colours = [CPU, MODEL, OURS, SHORT];
    let legend = [
        Legend::line("CPU", CPU),
        Legend::dashed("dcbm, modelled", MODEL),
        Legend::band("ours", OURS),
        Legend::band("ours, batches of 32 MiB", SHORT),
    ];
    draw(
        "latency.svg",
        (1080, 1060),
        (title, &text),
        &legend,
        |body| {
            let each = Times::ALL.into_iter();
            let each = each.flat_map(|times| latency::FOLIOS.map(|folio| (times, folio)));
            for (area, (times, folio)) in body.split_evenly((3, 3)).iter().zip(each) {
                let here = |l: &&Latency| l.folio == folio && l.channels == 16;
                let here: Vec<_> = all.latency.iter().filter(here).collect();
                let mut series = Vec::new();
                for (mover, colour) in Mover::ALL.into_iter().zip(colours) {
                    let values = latency::counts().map(|count| times.of(&here, mover, count));
                    let shape = match mover {
                        Mover::Cpu => Shape::Line,
                        Mover::Published => Shape::Dashed,
                        Mover::Ours | Mover::OursShort => Shape::Band,
                    };
                    series.push(Series::new(colour, shape, values.collect()));
                }
                // The published driver on top: ours often lies right on it.
                series.swap(1, 3);
                Panel {
                    title: format!("{folio}: {}", times.title()),
                    axis: "folios",
                    labels: latency::counts().map(|n| n.to_string()).collect(),
                    scale: match times {
                        Times::OfCpu => Scale::Linear,
                        _ => Scale::Logarithmic,
                    },
                }
                .draw(area, &series)?;
            }
            Ok(())
        },
    )
}

/// The rows of the picture of latencies.
#[derive(Clone, Copy)]
enum Times {
    All,
    First,
    OfCpu,
}

impl Times {
    const ALL: [Self; 3] = [Self::All, Self::First, Self::OfCpu];

    const fn title(self) -> &'static str {
        match self {
            Self::All => "all folios can be used",
            Self::First => "the first folio can be used",
            Self::OfCpu => "all, in parts of the CPU's time",
        }
    }

    fn of(self, rows: &[&Latency], mover: Mover, count: u64) -> Range {
        let of = |mover| {
            let same = move |l: &&&Latency| l.mover == mover && l.folios == count;
            rows.iter().filter(same)
        };
        match self {
            Self::All => Range::of(of(mover).map(|l| l.all_us)),
            Self::First => Range::of(of(mover).map(|l| l.first_us)),
            Self::OfCpu => {
                let cpu = of(Mover::Cpu).next().map_or(f64::NAN, |l| l.all_us);
                Range::of(of(mover).map(|l| l.all_us)).times(1.0 / cpu)
            }
        }
    }
}

fn several(all: &Prediction) -> anyhow::Result<Picture> {
    let title = "Several movers, 16 channels";
    let text = format!("GB/s of all together; {}", sources(all));
    let legend = [
        Legend::line("CPUs alone", CPU),
        Legend::dashed("dcbm, modelled", MODEL),
        Legend::band("ours", OURS),
        Legend::dashed("engines and ports", LIMIT),
    ];
    draw("movers.svg", (900, 460), (title, &text), &legend, |body| {
        for (area, mix) in body.split_evenly((1, 2)).iter().zip(Mix::BOTH) {
            let rows: Vec<_> = all.movers.iter().filter(|r| r.mix == mix).collect();
            let of = |f: &dyn Fn(&movers::Row) -> Range| rows.iter().map(|r| f(r)).collect();
            let series = [
                Series::new(OURS, Shape::Band, of(&|r| r.range(|r| r.gb_per_s))),
                Series::new(CPU, Shape::Line, of(&|r| Range::of([r.cpu_gb_per_s]))),
                Series::new(
                    MODEL,
                    Shape::Dashed,
                    of(&|r| r.range(|r| r.published_gb_per_s)),
                ),
                Series::new(LIMIT, Shape::Dashed, of(&|r| r.range(|r| r.limit_gb_per_s))),
            ];
            Panel {
                title: match mix {
                    Mix::Huge => "batches of 16 folios of 2M".to_owned(),
                    Mix::Mixed => {
                        "mixed: 32 MiB to 128 KiB, 2M to 4K (CPUs take what is too small)"
                            .to_owned()
                    }
                },
                axis: "movers",
                labels: rows.iter().map(|r| r.movers.to_string()).collect(),
                scale: Scale::Linear,
            }
            .draw(area, &series)?;
        }
        Ok(())
    })
}

fn compaction(all: &Prediction) -> anyhow::Result<Picture> {
    let title = "Compaction on one CPU, batches of 32 pages";
    let text = sources(all);
    let legend = [
        Legend::block("published", PUBLISHED),
        Legend::block("predicted", OURS),
    ];
    draw(
        "compaction.svg",
        (900, 680),
        (title, &text),
        &legend,
        |body| {
            let areas = body.split_evenly((2, 2));
            let each = [false, true]
                .into_iter()
                .flat_map(|busy| [(busy, true), (busy, false)]);
            for (area, (busy, wall)) in areas.iter().zip(each) {
                let runs = all.compaction.iter().filter(|r| r.busy == busy);
                let list: Vec<_> = runs
                    .map(|r| Bar {
                        label: r.who.name().to_owned(),
                        published: if wall {
                            r.published_wall_ms.map(|ms| ms / 1e3)
                        } else {
                            r.published_freed_pct
                        },
                        predicted: if wall {
                            r.wall_ms.times(1e-3)
                        } else {
                            r.freed_pct
                        },
                    })
                    .collect();
                let title = format!(
                    "{}: {}",
                    if busy { "busy machine" } else { "idle machine" },
                    match (wall, busy) {
                        (true, _) => "wall time, s",
                        (false, false) => "CPU left idle, %",
                        (false, true) => "CPU left to the hog, %",
                    }
                );
                bars(area, &title, (PUBLISHED, OURS), &list)?;
            }
            Ok(())
        },
    )
}
