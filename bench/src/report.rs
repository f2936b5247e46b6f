//! The results as Markdown: the ratios and figures beside what is required, then the rates that they come from.

use std::fmt::Write as _;
use std::process::Command;

use crate::contenders::{Program, version};
use crate::plan::{Group, Part};
use crate::process::{ANYWHERE, output};
use crate::rounds::{Figures, Measured};
use crate::stats::{Spread, ratios};
use crate::{Bench, picture};

/// One result beside what it should be.
pub(crate) struct Row {
    pub(crate) label: &'static str,
    pub(crate) value: Result<Spread, Why>,
    pub(crate) unit: Unit,
    pub(crate) required: f64,
    pub(crate) aim: f64,
}

/// Why there is no result.
#[derive(Clone, Debug)]
pub(crate) enum Why {
    /// Something that it takes is not there.
    Skipped(String),
    /// It was tried.
    Failed(String),
}

impl Why {
    /// In one line: it stands in a table.
    pub(crate) fn failed(error: &anyhow::Error) -> Self {
        let text = format!("{error:#}");
        Self::Failed(text.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

impl From<&str> for Why {
    fn from(why: &str) -> Self {
        Self::Failed(why.into())
    }
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Skipped(why) => write!(f, "skipped: {why}"),
            Self::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Unit {
    /// A ratio; more is better.
    Times,
    /// Less is better.
    Microseconds,
    /// Less is better.
    Milliseconds,
    /// Less is better.
    Mebibytes,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::Times => format!("{value:.2}"),
            Self::Microseconds => format!("{value:.1} µs"),
            Self::Milliseconds => format!("{value:.1} ms"),
            Self::Mebibytes => format!("{value:.1} MiB"),
        }
    }

    fn is_reached(self, value: f64, limit: f64) -> bool {
        match self {
            Self::Times => value >= limit,
            Self::Microseconds | Self::Milliseconds | Self::Mebibytes => value <= limit,
        }
    }
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let (median, spread, verdict) = match &self.value {
            Ok(value) => {
                let spread = format!("{} … {}", self.unit.show(value.min), self.unit.show(value.max));
                (self.unit.show(value.median), spread, self.verdict(value.median).into())
            }
            Err(why) => ("".into(), "".into(), why.to_string()),
        };
        vec![self.label.into(), median, spread, self.unit.show(self.required), self.unit.show(self.aim), verdict]
    }

    fn verdict(&self, value: f64) -> &'static str {
        if self.unit.is_reached(value, self.aim) {
            "aim reached"
        } else if self.unit.is_reached(value, self.required) {
            "as required"
        } else {
            "**missed**"
        }
    }
}

/// A table of things that are held against the first of them.
pub(crate) struct Series {
    pub(crate) title: &'static str,
    pub(crate) about: String,
    /// The first is what is compared.
    pub(crate) columns: &'static [&'static str],
    pub(crate) rows: Vec<Measured>,
}

impl Series {
    fn markdown(&self) -> String {
        let head = [&["", self.columns[0], "spread", "times the first"], &self.columns[1..]].concat();
        let rows = self.rows.iter().map(|row| self.cells(row)).collect();
        format!("\n### {}\n\n{}\n\n{}", self.title, self.about, table(&head, rows))
    }

    fn cells(&self, row: &Measured) -> Vec<String> {
        let mut cells = vec![row.label.clone()];
        match (&row.rounds, Spread::of(&column(row, 0))) {
            (Ok(_), Some(first)) => {
                let against = Spread::of(&ratios(&column(row, 0), &column(&self.rows[0], 0)));
                let against = against.map(|ratio| format!("{:.2}", ratio.median)).unwrap_or_default();
                cells.extend([show(first.median), format!("{} … {}", show(first.min), show(first.max)), against]);
                let further = (1..self.columns.len()).map(|index| Spread::of(&column(row, index)));
                cells.extend(further.map(|spread| spread.map_or_else(|| "–".into(), |spread| show(spread.median))));
            }
            (Ok(_), None) => cells.extend(["".into(), "not measured".into()]),
            (Err(why), _) => cells.extend(["".into(), why.to_string()]),
        }
        cells.resize(self.columns.len() + 3, String::new());
        cells
    }
}

/// What the rounds have in this column; nothing of what failed.
fn column(row: &Measured, index: usize) -> Vec<f64> {
    row.rounds.iter().flatten().filter_map(|values| values.get(index).copied()).collect()
}

/// What is less than a hundred has a decimal.
fn show(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { thousands(value.round() as u64) }
}

/// All results of a run.
pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
    pub(crate) panels: Vec<(&'static Group, Vec<Figures>)>,
    pub(crate) parts: Vec<(&'static Part, Vec<Series>)>,
    facts: Vec<(&'static str, String)>,
}

impl Report {
    /// Takes note of where and how the run is made, before it begins.
    pub(crate) fn new(bench: &Bench) -> Self {
        Self { rows: Vec::new(), panels: Vec::new(), parts: Vec::new(), facts: facts(bench) }
    }

    pub(crate) fn has_failures(&self) -> bool {
        let rates = self.panels.iter().flat_map(|(_, figures)| figures);
        let whys = rates.filter_map(|figures| figures.rates.as_ref().err());
        let measured = self.parts.iter().flat_map(|(_, tables)| tables).flat_map(|table| &table.rows);
        let mut whys = whys.chain(measured.filter_map(|row| row.rounds.as_ref().err()));
        whys.any(|why| matches!(why, Why::Failed(_)))
            || self.rows.iter().any(|row| matches!(row.value, Err(Why::Failed(_))))
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = String::from(
            "# Benchmark\n\nWritten by `make bench`, which can be run again; nothing here is edited by hand.\n\n",
        );
        text += "![Requests per second](benchmark.svg)\n\n";
        for (what, fact) in &self.facts {
            let _ = writeln!(text, "- {what}: {fact}");
        }
        if !self.rows.is_empty() {
            text += "\n## Against what is required\n\nRatios are taken round by round; here are their median, least and greatest.\n\n";
            let head = ["what", "median", "spread", "required", "aim", "result"];
            text += &table(&head, self.rows.iter().map(Row::cells).collect());
        }
        if !self.panels.is_empty() {
            text += "\n## Requests per second\n";
        }
        for (group, figures) in &self.panels {
            let _ = write!(text, "\n### {}\n\n", group.title);
            text += &table(&["server", "median", "spread"], figures.iter().map(cells).collect());
            text += "\n<!-- not run: `make bench` runs these, pinned to a core and under load -->\n```sh\n";
            for figures in figures {
                let _ = writeln!(text, "{}", figures.contender.command_line(group.load.workers()));
            }
            text += "```\n";
            for (figures, odd) in figures.iter().filter_map(|figures| Some((figures, figures.odd_headers.as_ref()?))) {
                let _ = write!(text, "\nUnlike the others, {} answers with: {odd}.\n", figures.contender.name);
            }
        }
        for (part, tables) in &self.parts {
            let _ = write!(text, "\n## {}\n", part.title);
            text.extend(tables.iter().map(Series::markdown));
        }
        text
    }

    /// What the picture shows.
    pub(crate) fn panels(&self) -> Vec<picture::Panel<'_>> {
        let bar = |figures: &Figures| {
            let spread = Spread::of(figures.rates.as_ref().ok()?)?;
            let is_ours = matches!(figures.contender.program, Program::Ours(_));
            Some(picture::Bar { name: figures.contender.name, spread, is_ours })
        };
        let panel = |(group, figures): &'_ (&'static Group, Vec<Figures>)| picture::Panel {
            title: group.title,
            bars: figures.iter().filter_map(bar).collect(),
        };
        self.panels.iter().map(panel).filter(|panel| !panel.bars.is_empty()).collect()
    }
}

fn cells(figures: &Figures) -> Vec<String> {
    let show = |value: f64| thousands(value.round() as u64);
    let (median, spread) = match figures.rates.as_ref().map(|rates| Spread::of(rates)) {
        Ok(Some(rates)) => (show(rates.median), format!("{} … {}", show(rates.min), show(rates.max))),
        Ok(None) => ("".into(), "not measured".into()),
        Err(why) => ("".into(), why.to_string()),
    };
    vec![figures.contender.name.into(), median, spread]
}

/// `12,345`
pub(crate) fn thousands(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A table of Markdown that can also be read as it is.
pub(crate) fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut rows = rows;
    rows.insert(0, head.iter().map(ToString::to_string).collect());
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!(" {cell:<width$} |"));
        let _ = writeln!(text, "|{}", cells.collect::<String>());
        if index == 0 {
            let rule = widths.iter().map(|width| format!(" {} |", "-".repeat((*width).max(3))));
            let _ = writeln!(text, "|{}", rule.collect::<String>());
        }
    }
    text
}

fn facts(bench: &Bench) -> Vec<(&'static str, String)> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let run = |command: &mut Command| output(command, ANYWHERE).map(|text| text.trim().to_owned()).unwrap_or_default();
    let model = read("/proc/cpuinfo");
    let model =
        model.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, model)| model);
    let kernel = read("/proc/sys/kernel/osrelease");
    let kernel = kernel.split(|letter: char| !letter.is_ascii_digit() && letter != '.').next().unwrap_or_default();
    let load = read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ");
    let wrk = Command::new("wrk").arg("--version").output().map(|output| [output.stdout, output.stderr].concat());
    let wrk = String::from_utf8(wrk.unwrap_or_default()).unwrap_or_default();
    let wrk = wrk.split_whitespace().take(2).collect::<Vec<_>>().join(" ");

    let mut servers = vec![version(&bench.programs.ours)];
    servers.extend(bench.programs.wasmtime.iter().map(|program| version(program)));
    servers.extend(bench.programs.workerd.iter().map(|program| version(program)));
    servers.extend(bench.programs.node.iter().map(|version| format!("Node {}", version.trim())));
    vec![
        ("date", run(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]))),
        (
            "machine",
            format!("{}, {} CPUs, Linux {kernel}", model.unwrap_or("a CPU without a name").trim(), bench.cpus.count()),
        ),
        ("load of the machine before the run (1, 5, 15 min)", load),
        ("servers", servers.join(", ")),
        (
            "load",
            format!("{wrk}, one thread and 32 connections a core, on a core of its own but where it says otherwise"),
        ),
        (
            "length",
            format!(
                "{} rounds, {} s for each server in each, one server after the other; {} s of warm-up",
                bench.rounds,
                bench.time.as_secs(),
                bench.warm_up.as_secs()
            ),
        ),
        (
            "answers",
            "checked before and after, byte by byte, large ones by their length; while measured, all must have status 2xx"
                .into(),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        let row = |unit, required, aim| Row { label: "", value: Err("".into()), unit, required, aim };
        let more = row(Unit::Times, 1.0, 2.0);
        assert_eq!([0.9, 1.0, 2.0].map(|value| more.verdict(value)), ["**missed**", "as required", "aim reached"]);
        let less = row(Unit::Milliseconds, 30.0, 10.0);
        assert_eq!([31.0, 30.0, 10.0].map(|value| less.verdict(value)), ["**missed**", "as required", "aim reached"]);
    }

    #[test]
    fn rows_are_held_against_the_first() {
        let row = |label: &str, rounds| Measured { label: label.into(), rounds };
        let rows = vec![
            row("one", Ok(vec![vec![10.0], vec![20.0]])),
            row("many", Ok(vec![vec![500.0, 7.0], vec![1000.0, 9.0]])),
            row("broken", Err("it broke".into())),
        ];
        let series = Series { title: "", about: String::new(), columns: &["rate", "MiB"], rows };
        let cells: Vec<_> = series.rows.iter().map(|row| series.cells(row)).collect();
        assert_eq!(cells[0], ["one", "15.0", "10.0 … 20.0", "1.00", "–"]);
        assert_eq!(cells[1], ["many", "750", "500 … 1,000", "50.00", "8.0"]);
        assert_eq!(cells[2], ["broken", "", "failed: it broke", "", ""]);
    }

    #[test]
    fn tables_are_padded() {
        let text = table(&["a", "b"], vec![vec!["long".into(), "…".into()]]);
        assert_eq!(text, "| a    | b |\n| ---- | --- |\n| long | … |\n");
    }

    #[test]
    fn thousands_are_separated() {
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }
}
