//! From samples to tables.

use crate::contender::Sample;

/// Everything one contender did in one variant.
#[derive(Debug, Default)]
pub struct Series {
    /// By contender.
    pub name: String,
    /// Of the rounds that went well.
    pub samples: Vec<Sample>,
    /// How many did not.
    pub failures: usize,
}

impl Series {
    fn sorted(&self, of: impl Fn(&Sample) -> f64) -> Vec<f64> {
        let mut values: Vec<f64> = self.samples.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values
    }

    fn wall(&self, quantile: f64) -> f64 {
        at(&self.sorted(|s| s.wall_ms), quantile)
    }
}

fn at(sorted: &[f64], quantile: f64) -> f64 {
    let index = (sorted.len().saturating_sub(1)) as f64 * quantile;
    sorted.get(index.round() as usize).copied().unwrap_or(f64::NAN)
}

/// A table of whole runs; ratios to the first row, which is the floor, and to the fastest crun.
pub fn runs(title: &str, series: &[Series]) {
    let floor = series.first();
    let crun = series
        .iter()
        .filter(|s| s.name.starts_with("crun") && !s.samples.is_empty())
        .min_by(|a, b| a.wall(0.5).total_cmp(&b.wall(0.5)));
    println!("\n### {title}\n");
    println!(
        "| ms | median | p10 | p90 | min | cpu | peak RSS MB | ÷ floor, median / min | ÷ crun, median / min | failed |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for s in series {
        let ratio = |other: Option<&Series>| {
            other.map_or("–".to_string(), |o| {
                format!("{:.2} / {:.2}", s.wall(0.5) / o.wall(0.5), s.wall(0.0) / o.wall(0.0))
            })
        };
        let rss = s.samples.iter().map(|s| s.rss_kb).max().unwrap_or(0) as f64 / 1024.0;
        println!(
            "| {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {rss:.1} | {} | {} | {} |",
            s.name,
            s.wall(0.5),
            s.wall(0.1),
            s.wall(0.9),
            s.wall(0.0),
            at(&s.sorted(|s| s.cpu_ms), 0.5),
            ratio(floor),
            ratio(crun),
            s.failures,
        );
    }
}

/// A table of single commands: a list of series for each contender, in the order of `verbs`.
pub fn commands(verbs: &[&str], rows: &[Vec<Series>]) {
    println!("\n### split: median / p10 / min / cpu ms / peak RSS MB\n");
    println!("| | {} |", verbs.join(" | "));
    println!("|---|{}", "---|".repeat(verbs.len()));
    for row in rows {
        let cell = |s: &Series| {
            let rss = s.samples.iter().map(|s| s.rss_kb).max().unwrap_or(0) as f64 / 1024.0;
            let failed = if s.failures > 0 { format!(" ({} failed)", s.failures) } else { String::new() };
            format!(
                "{:.2} / {:.2} / {:.2} / {:.2} / {rss:.1}{failed}",
                s.wall(0.5),
                s.wall(0.1),
                s.wall(0.0),
                at(&s.sorted(|s| s.cpu_ms), 0.5)
            )
        };
        let cells: Vec<String> = row.iter().map(cell).collect();
        println!("| {} | {} |", row[0].name, cells.join(" | "));
    }
}
