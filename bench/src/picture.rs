//! The rates as a picture: bars on a logarithmic scale, in SVG that is readable on light and on dark pages.

use std::fmt::Write as _;

use crate::report::thousands;
use crate::stats::Spread;

pub(crate) struct Panel<'a> {
    pub(crate) title: &'a str,
    pub(crate) bars: Vec<Bar<'a>>,
}

pub(crate) struct Bar<'a> {
    pub(crate) name: &'a str,
    /// Requests per second.
    pub(crate) spread: Spread,
    pub(crate) is_ours: bool,
}

const WIDTH: f64 = 900.0;
/// Where names end and bars begin, and where these end at the most.
const LEFT: f64 = 300.0;
const RIGHT: f64 = 820.0;
const LINE: f64 = 22.0;
const TITLE: f64 = 34.0;
const TOP: f64 = 44.0;

/// Its own background: a page may be dark where the system is light.
const STYLE: &str = "\
text { font: 13px system-ui, sans-serif; fill: #1f2328 } .title { font-weight: 600 } .soft { fill: #59636e }
.ground { fill: #ffffff } .ours { fill: #0969da } .other { fill: #a5afb9 } .grid { stroke: #d1d9e0 } .spread { stroke: #1f2328 }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc } .soft { fill: #9198a1 } .ground { fill: #0d1117 } .ours { fill: #4493f8 } .other { fill: #656c76 }
.grid { stroke: #3d444d } .spread { stroke: #f0f6fc } }";

pub(crate) fn draw(panels: &[Panel<'_>]) -> String {
    let scale = Scale::of(panels);
    let lines: usize = panels.iter().map(|panel| panel.bars.len()).sum();
    let bottom = TOP + TITLE * panels.len() as f64 + LINE * lines as f64;
    let height = bottom + 16.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"Requests per second\">\n\
         <style>{STYLE}</style>\n<rect class=\"ground\" width=\"{WIDTH}\" height=\"{height}\" rx=\"6\"/>\n\
         <text class=\"soft\" x=\"16\" y=\"24\">requests per second, logarithmic; the thin line goes from least to most</text>\n"
    );
    for decade in scale.decades() {
        let x = scale.x(decade);
        let label = thousands(decade as u64);
        let _ = writeln!(svg, "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>");
        let _ = writeln!(
            svg,
            "<text class=\"soft\" x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
            TOP - 5.0
        );
    }
    let mut y = TOP;
    for panel in panels {
        y += TITLE;
        let _ = writeln!(svg, "<text class=\"title\" x=\"16\" y=\"{}\">{}</text>", y - 9.0, escape(panel.title));
        for bar in &panel.bars {
            bar.draw(&mut svg, &scale, y);
            y += LINE;
        }
    }
    svg + "</svg>\n"
}

impl Bar<'_> {
    fn draw(&self, svg: &mut String, scale: &Scale, y: f64) {
        let Spread { median, min, max } = self.spread;
        let (class, end, middle) = (if self.is_ours { "ours" } else { "other" }, scale.x(median), y + LINE / 2.0 - 2.0);
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n\
             <rect class=\"{class}\" x=\"{LEFT}\" y=\"{y}\" width=\"{:.1}\" height=\"{}\" rx=\"2\"/>\n\
             <line class=\"spread\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle}\" y2=\"{middle}\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            LEFT - 8.0,
            middle + 4.5,
            escape(self.name),
            end - LEFT,
            LINE - 5.0,
            scale.x(min),
            scale.x(max),
            scale.x(max) + 6.0,
            middle + 4.5,
            thousands(median.round() as u64),
        );
    }
}

/// Whole decades around all values.
struct Scale {
    low: i32,
    high: i32,
}

impl Scale {
    fn of(panels: &[Panel<'_>]) -> Self {
        let all = || panels.iter().flat_map(|panel| &panel.bars).map(|bar| bar.spread);
        let low = all().map(|spread| spread.min).fold(f64::INFINITY, f64::min).clamp(1.0, 1e9).log10().floor() as i32;
        let high = all().map(|spread| spread.max).fold(1.0, f64::max).log10().ceil() as i32;
        Self { low, high: high.max(low + 1) }
    }

    fn decades(&self) -> impl Iterator<Item = f64> {
        (self.low..=self.high).map(|power| 10_f64.powi(power))
    }

    fn x(&self, value: f64) -> f64 {
        let share = (value.max(1.0).log10() - f64::from(self.low)) / f64::from(self.high - self.low);
        LEFT + (RIGHT - LEFT) * share.clamp(0.0, 1.0)
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(name: &str, median: f64) -> Bar<'_> {
        Bar { name, spread: Spread { median, min: median * 0.9, max: median * 1.1 }, is_ours: true }
    }

    #[test]
    fn whole_decades_hold_all_values() {
        let scale = Scale::of(&[Panel { title: "", bars: vec![bar("", 500.0), bar("", 90_000.0)] }]);
        assert_eq!(scale.decades().collect::<Vec<_>>(), [100.0, 1000.0, 10_000.0, 100_000.0]);
        assert_eq!((scale.x(100.0), scale.x(100_000.0)), (LEFT, RIGHT));
    }

    #[test]
    fn every_bar_is_drawn_and_text_is_escaped() {
        let svg = draw(&[Panel { title: "a < b & c", bars: vec![bar("one", 1234.0), bar("two", 2.0)] }]);
        assert_eq!(svg.matches("class=\"ours\"").count(), 2);
        assert!(svg.contains("a &lt; b &amp; c") && svg.contains(">1,234<"), "{svg}");
        // With nothing to show it is still a picture.
        assert!(draw(&[]).ends_with("</svg>\n"));
    }
}
