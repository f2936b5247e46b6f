//! What `top` looks like: lines of a terminal, from what is known. Rows and columns that have no room are left out, the least
//! important first.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::keys::KEYS;
use super::monitor::{Figures, LATENCY_SAMPLES, Monitor, Trend, WorkerOrder};
use super::occurrence::Occurrence;
use crate::cli::output::duration;
use crate::cli::status::{describe, short};
use crate::control::protocol::{Status, WorkerStatus};
use crate::settings::short_digest;

const MIN_WIDTH: u16 = 60;
const MIN_HEIGHT: u16 = 12;
/// Less than this has no room for empty lines.
const AIRY_HEIGHT: u16 = 20;
/// Lines that events have, if there are more workers than lines.
const MIN_EVENTS: usize = 4;
/// Lines above the workers: state, addresses, two trends, two of sums.
const ABOVE: usize = 6;
/// Titles of workers and events, the message and the keys.
const FIXED: usize = 4;
/// What stands before a trend.
const LABEL: usize = 20;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// How things are marked, with colours or without.
#[derive(Clone, Copy, Debug)]
pub(super) struct Palette {
    pub(super) has_colours: bool,
}

impl Palette {
    fn coloured(self, colour: Color, otherwise: Modifier) -> Style {
        if self.has_colours { Style::new().fg(colour) } else { Style::new().add_modifier(otherwise) }
    }

    fn good(self) -> Style {
        self.coloured(Color::Green, Modifier::empty())
    }

    fn busy(self) -> Style {
        self.coloured(Color::Yellow, Modifier::BOLD)
    }

    fn bad(self) -> Style {
        self.coloured(Color::Red, Modifier::empty()).add_modifier(Modifier::BOLD)
    }

    fn trend(self) -> Style {
        self.coloured(Color::Cyan, Modifier::empty())
    }

    fn of_state(self, state: &str) -> Style {
        match state {
            "running" | "ready" => self.good(),
            "degraded" | "stopping" | "backoff" | "unkillable" => self.bad(),
            _ => self.busy(),
        }
    }
}

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const TITLE: Style = Style::new().add_modifier(Modifier::REVERSED);

/// Draws everything. Corrects which worker comes first, if there are fewer now.
pub(super) fn draw(frame: &mut Frame<'_>, monitor: &mut Monitor, palette: Palette) {
    let area = frame.area();
    if area.width < MIN_WIDTH || area.height < MIN_HEIGHT {
        let needed =
            format!("terminal too small: {MIN_WIDTH}×{MIN_HEIGHT} is needed,\nthis is {}×{}", area.width, area.height);
        return frame.render_widget(Paragraph::new(needed), area);
    }
    if monitor.is_help_shown {
        return frame.render_widget(Paragraph::new(help()), area);
    }
    let (width, height) = (usize::from(area.width), usize::from(area.height));
    let blank = usize::from(area.height >= AIRY_HEIGHT);
    let room = height - ABOVE - FIXED - 2 * blank;
    let workers = monitor.shown().status.as_ref().map_or(0, |status| status.workers.len());
    let shown = workers.min(room - MIN_EVENTS.min(room / 2)).max(1);
    monitor.first_worker = monitor.first_worker.min(workers.saturating_sub(shown));
    let mut lines = above(monitor, width, palette);
    lines.extend(vec![Line::default(); blank]);
    lines.extend(of_workers(monitor, shown, width, palette));
    lines.extend(vec![Line::default(); blank]);
    lines.extend(of_events(monitor, room - shown, workers.saturating_sub(shown) > 0, shown, width, palette));
    let [body, message, footer] =
        Layout::vertical([Constraint::Fill(1), Constraint::Length(1), Constraint::Length(1)]).areas(area);
    frame.render_widget(Paragraph::new(lines), body);
    frame.render_widget(said(monitor, palette), message);
    frame.render_widget(footer_line(), footer);
}

/// State, version, addresses, trends and sums.
fn above(monitor: &Monitor, width: usize, palette: Palette) -> Vec<Line<'static>> {
    let figures = monitor.shown();
    let mut lines = Vec::new();
    let pause = if monitor.is_paused() { "PAUSED  " } else { "" };
    match (&figures.status, figures.lost_for()) {
        (Some(status), _) => {
            let generation = &status.generation;
            let version = format!("{pause}generation {} ({})", generation.current, short_digest(&generation.digest));
            lines.push(ends(state(status, palette), version, width));
            lines.push(progress(status, width, palette));
        }
        (None, Some((time, why))) => {
            let time = duration(time.as_millis() as u64);
            lines.push(ends(
                vec![Span::styled(format!("not reachable for {time}"), palette.bad())],
                pause.into(),
                width,
            ));
            lines.push(Line::raw(why.to_owned()));
        }
        (None, None) => lines.extend([Line::default(), Line::default()]),
    }
    lines.push(trend("requests/s", &figures.requests, width, palette.trend()));
    lines.push(trend("errors/s", &figures.errors, width, palette.bad()));
    lines.push(latencies(figures));
    lines.push(sums(figures));
    lines
}

fn state(status: &Status, palette: Palette) -> Vec<Span<'static>> {
    let mut spans = vec![
        Span::styled(status.name.clone(), BOLD),
        Span::raw(": "),
        Span::styled(status.state.clone(), palette.of_state(&status.state)),
        Span::raw(format!(" for {}, pid {}", duration(status.uptime_ms), status.pid)),
    ];
    if status.degraded && status.state != "degraded" {
        spans.push(Span::styled(", degraded", palette.bad()));
    }
    spans
}

/// How far a start or a reload has come; where the cluster listens if there is none.
fn progress(status: &Status, width: usize, palette: Palette) -> Line<'static> {
    if let Some(starting) = &status.starting {
        let said = format!("{} for {}", starting.doing, duration(starting.for_ms));
        return Line::styled(said, palette.busy());
    }
    if let Some(reload) = &status.reload {
        let generation = reload.generation.map_or_else(String::new, |generation| format!(" generation {generation}"));
        let said = format!(
            "deploying{generation} for {}: {}, {} of {} slots",
            duration(reload.elapsed_ms),
            reload.phase.replace('_', " "),
            reload.rolled,
            reload.of
        );
        return Line::styled(said, palette.busy());
    }
    let source = status.generation.described();
    ends(vec![Span::raw(status.listen.join(", "))], source, width)
}

/// Something at each end of a line. Of what is too long at its right end, the beginning is left out.
fn ends(left: Vec<Span<'static>>, right: String, width: usize) -> Line<'static> {
    let mut line = Line::from(left);
    let room = width.saturating_sub(line.width() + 2);
    let length = right.chars().count();
    let right = match length.checked_sub(room) {
        None | Some(0) => right,
        Some(_) if room == 0 => String::new(),
        Some(over) => format!("…{}", right.chars().skip(over + 1).collect::<String>()),
    };
    let gap = width.saturating_sub(line.width() + right.chars().count());
    line.push_span(Span::raw(" ".repeat(gap)));
    line.push_span(Span::raw(right));
    line
}

/// The latest value, and a bar for each second of the last minute, as far as there is room.
fn trend(label: &str, values: &Trend, width: usize, style: Style) -> Line<'static> {
    let now = values.back().copied().flatten().map_or("-".into(), rate);
    let peak = values.iter().flatten().copied().fold(0.0, f64::max);
    let skipped = values.len().saturating_sub(width - LABEL);
    let bars: String = values.iter().skip(skipped).map(|value| bar(*value, peak)).collect();
    let mut line = Line::raw(format!("{label:<10}{now:>9} "));
    line.push_span(Span::styled(bars.clone(), style));
    if width > LABEL + super::monitor::MAX_SAMPLES {
        line.push_span(Span::raw(format!("  peak {}", rate(peak))));
    }
    line
}

fn bar(value: Option<f64>, peak: f64) -> char {
    match value {
        None => ' ',
        // What is not nothing is seen, however small.
        Some(value) if value > 0.0 && peak > 0.0 => {
            let height = (value / peak * BARS.len() as f64).ceil() as usize;
            BARS[height.clamp(1, BARS.len()) - 1]
        }
        Some(_) => '_',
    }
}

fn latencies(figures: &Figures) -> Line<'static> {
    let time = |part| match figures.latency(part) {
        Some(ms) if ms < 100.0 => format!("{ms:.2} ms"),
        Some(ms) => format!("{ms:.0} ms"),
        None => "-".into(),
    };
    let of =
        if figures.status.is_some() { format!("  (requests of the last {LATENCY_SAMPLES} s)") } else { String::new() };
    Line::raw(format!("latency   p50 {}  p99 {}{of}", time(0.5), time(0.99)))
}

fn sums(figures: &Figures) -> Line<'static> {
    let Some(status) = &figures.status else { return Line::default() };
    let sum = |read: fn(&WorkerStatus) -> u64| status.workers.iter().map(read).fold(0, u64::saturating_add);
    let used: f64 = figures.processors.values().sum();
    let used = if figures.processors.is_empty() { "-".into() } else { percent(used) };
    Line::raw(format!(
        "in flight {}  connections {}  CPU {used}  memory {}  crashes {}  traps {}",
        short(sum(|worker| worker.in_flight)),
        short(sum(|worker| worker.connections)),
        size(sum(|worker| worker.rss_bytes)),
        short(status.totals.crashes),
        short(status.totals.traps),
    ))
}

/// A column of the workers: its title, its least width, and how important it is; 0 is never left out.
struct WorkerColumn {
    title: &'static str,
    width: usize,
    rank: u8,
    cell: fn(&WorkerStatus, &Figures) -> String,
}

const COLUMNS: &[WorkerColumn] = &[
    WorkerColumn { title: "SLOT", width: 4, rank: 0, cell: |worker, _| worker.slot.to_string() },
    WorkerColumn { title: "GEN", width: 3, rank: 0, cell: |worker, _| worker.generation.to_string() },
    WorkerColumn { title: "WORKER", width: 6, rank: 1, cell: |worker, _| or_dash(worker.id) },
    WorkerColumn { title: "PID", width: 6, rank: 4, cell: |worker, _| or_dash(worker.pid) },
    WorkerColumn { title: "STATE", width: 8, rank: 0, cell: |worker, _| describe(worker) },
    WorkerColumn { title: "UPTIME", width: 6, rank: 3, cell: |worker, _| duration(worker.uptime_ms) },
    WorkerColumn {
        title: "REQ/S",
        width: 7,
        rank: 0,
        cell: |worker, known| or_dash(of(worker, &known.rates).map(rate)),
    },
    WorkerColumn {
        title: "MS/REQ",
        width: 6,
        rank: 6,
        cell: |worker, known| or_dash(of(worker, &known.costs).map(milliseconds)),
    },
    WorkerColumn { title: "ACTIVE", width: 6, rank: 0, cell: |worker, _| short(worker.in_flight) },
    WorkerColumn { title: "CONNS", width: 5, rank: 5, cell: |worker, _| short(worker.connections) },
    WorkerColumn {
        title: "CPU",
        width: 4,
        rank: 0,
        cell: |worker, known| or_dash(of(worker, &known.processors).map(percent)),
    },
    WorkerColumn { title: "MEMORY", width: 6, rank: 0, cell: |worker, _| size(worker.rss_bytes) },
    WorkerColumn { title: "RESTARTS", width: 8, rank: 2, cell: |worker, _| short(worker.restarts) },
];

fn of<T: Copy>(worker: &WorkerStatus, values: &std::collections::BTreeMap<u64, T>) -> Option<T> {
    values.get(&worker.id?).copied()
}

fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or("-".into(), |value| value.to_string())
}

/// A title, and `shown` workers from the first that is to be seen.
fn of_workers(monitor: &Monitor, shown: usize, width: usize, palette: Palette) -> Vec<Line<'static>> {
    let figures = monitor.shown();
    let workers = figures.status.as_ref().map_or(&[][..], |status| &status.workers);
    let mut workers: Vec<&WorkerStatus> = workers.iter().collect();
    put_in_order(&mut workers, monitor.order, figures);
    let workers: Vec<&WorkerStatus> = workers.into_iter().skip(monitor.first_worker).take(shown).collect();
    let columns: Vec<(&WorkerColumn, usize, Vec<String>)> = COLUMNS
        .iter()
        .map(|column| {
            let cells: Vec<String> = workers.iter().map(|worker| (column.cell)(worker, figures)).collect();
            let widest = cells.iter().map(|cell| cell.chars().count()).max().unwrap_or(0);
            (column, widest.max(column.width).max(title(column, monitor.order).chars().count()), cells)
        })
        .collect();
    let columns = fitting(columns, width, monitor.order);
    let title: Vec<String> =
        columns.iter().map(|(column, width, _)| pad(column, &title(column, monitor.order), *width)).collect();
    let mut lines = vec![Line::styled(format!("{:<width$}", title.join(" ")), TITLE)];
    for (row, worker) in workers.iter().enumerate() {
        let mut line = Line::default();
        for (column, width, cells) in &columns {
            let is_state = column.title == "STATE";
            let style = if is_state { palette.of_state(&worker.state) } else { Style::new() };
            line.push_span(Span::styled(pad(column, &cells[row], *width), style));
            line.push_span(Span::raw(" "));
        }
        lines.push(line);
    }
    lines.resize(shown + 1, Line::default());
    lines
}

/// The most first; those that are alike, and all where nobody asked for another order, by slot.
fn put_in_order(workers: &mut [&WorkerStatus], order: WorkerOrder, known: &Figures) {
    let value = |worker: &WorkerStatus| match order {
        WorkerOrder::Slot => None,
        WorkerOrder::Requests => of(worker, &known.rates),
        WorkerOrder::Computing => of(worker, &known.costs),
        WorkerOrder::Processor => of(worker, &known.processors),
        WorkerOrder::Memory => Some(worker.rss_bytes as f64),
    };
    workers.sort_by(|one, other| value(other).unwrap_or(-1.0).total_cmp(&value(one).unwrap_or(-1.0)));
}

/// With a mark, if it is what workers are in the order of.
fn title(column: &WorkerColumn, order: WorkerOrder) -> String {
    let is_marked = order != WorkerOrder::Slot && order.title() == column.title;
    format!("{}{}", column.title, if is_marked { "▼" } else { "" })
}

/// Without the columns that have no room, the least important first.
fn fitting<C>(
    mut columns: Vec<(&WorkerColumn, usize, C)>,
    width: usize,
    order: WorkerOrder,
) -> Vec<(&WorkerColumn, usize, C)> {
    let rank = |column: &WorkerColumn| if column.title == order.title() { 0 } else { column.rank };
    while columns.iter().map(|(_, width, _)| width + 1).sum::<usize>() > width + 1 {
        let least = columns.iter().enumerate().max_by_key(|(_, (column, ..))| rank(column));
        match least {
            Some((place, (column, ..))) if rank(column) > 0 => drop(columns.remove(place)),
            _ => break,
        }
    }
    columns
}

/// Numbers are at the right end of their column, words at the left.
fn pad(column: &WorkerColumn, text: &str, width: usize) -> String {
    if column.title == "STATE" { format!("{text:<width$}") } else { format!("{text:>width$}") }
}

/// A title, and the latest events and warnings of the log, as many as there are lines, the newest last.
fn of_events(
    monitor: &Monitor,
    lines: usize,
    are_there_more_workers: bool,
    shown: usize,
    width: usize,
    palette: Palette,
) -> Vec<Line<'static>> {
    let figures = monitor.shown();
    let workers = figures.status.as_ref().map_or(0, |status| status.workers.len());
    let (first, last) = (monitor.first_worker + 1, monitor.first_worker + shown);
    let which =
        if are_there_more_workers { format!("workers {first} to {last} of {workers} ↑↓") } else { String::new() };
    let mut all = vec![ends(vec![Span::raw("EVENTS (UTC)")], which, width).style(TITLE)];
    let warnings = figures.status.iter().flat_map(|status| &status.problems).map(Occurrence::warning);
    let mut told: Vec<Occurrence> = figures.events.iter().cloned().chain(warnings).collect();
    told.sort_by(|one, other| one.at().cmp(other.at()));
    let skipped = told.len().saturating_sub(lines);
    all.extend(told.into_iter().skip(skipped).map(|event| {
        let style = if event.is_bad { palette.bad() } else { Style::new() };
        Line::from(vec![Span::raw(format!("{} ", event.time())), Span::styled(event.text, style)])
    }));
    all
}

/// What is asked, or was said last.
fn said(monitor: &Monitor, palette: Palette) -> Line<'_> {
    match &monitor.question {
        Some(question) => Line::styled(question.text.as_str(), palette.busy().add_modifier(Modifier::REVERSED)),
        None => Line::styled(monitor.message.as_str(), BOLD),
    }
}

fn footer_line() -> Line<'static> {
    let mut spans = Vec::new();
    for row in KEYS {
        let Some(short) = row.short else { continue };
        spans.push(Span::styled(row.shown, BOLD));
        spans.push(Span::raw(format!(" {short}  ")));
    }
    Line::from(spans)
}

fn help() -> Vec<Line<'static>> {
    let mut lines = vec![Line::styled("Keys; what changes the cluster asks first. Any key goes back.", BOLD)];
    lines.extend(KEYS.iter().filter(|row| !row.long.is_empty()).map(|row| {
        let key = Span::styled(format!("{:<8}", row.shown), BOLD);
        Line::from(vec![key, Span::raw(row.long)])
    }));
    lines.extend(
        [
            "",
            "errors/s  answers of 500 and above, and requests that were cut",
            "latency   from a request's head to the end of its answer, at most a fourth",
            "          too long",
            "GEN       the generation that the worker runs",
            "MS/REQ    how long its guests computed for a request, in the last second",
            "ACTIVE    its requests in flight",
            "CPU       100% is one processor; - for workers of another machine or",
            "          container",
            "MEMORY    resident; pages shared with other workers count in each",
        ]
        .map(Line::raw),
    );
    lines
}

/// A number in a second, in at most seven characters.
fn rate(value: f64) -> String {
    match value {
        value if value < 1000.0 => format!("{value:.1}"),
        value if value < 100_000.0 => format!("{value:.0}"),
        value => short(value as u64),
    }
}

/// In at most six characters.
fn milliseconds(value: f64) -> String {
    match value {
        value if value < 100.0 => format!("{value:.2}"),
        value if value < 100_000.0 => format!("{value:.0}"),
        value => short(value as u64),
    }
}

fn percent(processors: f64) -> String {
    format!("{:.0}%", processors * 100.0)
}

fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec_short().to_string()
}
