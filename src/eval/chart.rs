//! Scores as a bar chart, in SVG: a panel for each cluster, a group of bars for each task, whiskers for intervals.
//!
//! Bars lie, so that names have room and a chart may have any number of tasks. Colours follow the reader's setting,
//! light or dark, and differ in lightness as well as in hue.

use std::fmt::Write;

use super::interval::Score;

/// What is drawn: scores from 0 to 1.
pub struct Chart {
    pub title: String,
    /// Names of the bars of a group.
    pub series: Vec<&'static str>,
    pub panels: Vec<Panel>,
}

pub struct Panel {
    pub name: String,
    pub groups: Vec<Group>,
}

pub struct Group {
    pub name: String,
    /// What the scores are.
    pub metric: &'static str,
    /// By series; there may be none.
    pub scores: Vec<Option<Score>>,
}

impl Group {
    /// The mean over the tasks of a panel, if it has several.
    pub fn mean(tasks: usize, scores: Vec<Option<Score>>) -> Option<Group> {
        (tasks > 1).then(|| Group { name: format!("mean of {tasks} tasks"), metric: "", scores })
    }
}

const WIDTH: f64 = 860.0;
/// Where bars begin and where a score of 1 ends.
const LEFT: f64 = 250.0;
const RIGHT: f64 = 790.0;
const BAR: f64 = 13.0;
/// Between groups, and above a panel.
const GAP: f64 = 12.0;
const HEADING: f64 = 40.0;
const TOP: f64 = 84.0;
const BOTTOM: f64 = 40.0;

const STYLE: &str = "<style>
svg { font: 13px system-ui, sans-serif; --ground: #fff; --ink: #222; --quiet: #666; --line: #ddd;
  --s0: #ecd3ba; --s1: #cf8f56; --s2: #bdd6f3; --s3: #5c96d6; }
@media (prefers-color-scheme: dark) { svg { --ground: #16181c; --ink: #e8e8e8; --quiet: #a0a4ab; --line: #383c43;
  --s0: #5c4330; --s1: #a56c3d; --s2: #2c4a70; --s3: #4a7fbe; } }
text { fill: var(--ink) } .quiet { fill: var(--quiet) } .end { text-anchor: end } .mid { text-anchor: middle }
.title { font-size: 16px; font-weight: 600 } .panel { font-weight: 600 } .grid { stroke: var(--line) }
.whisker { stroke: var(--ink); stroke-width: 1.2; fill: none } .value { font-size: 11px }
.s0 { fill: var(--s0) } .s1 { fill: var(--s1) } .s2 { fill: var(--s2) } .s3 { fill: var(--s3) }
</style>
";

/// Draws a chart of up to four series.
pub fn svg(chart: &Chart) -> String {
    let group_height = BAR * chart.series.len() as f64 + GAP;
    let panel_height = |panel: &Panel| HEADING + group_height * panel.groups.len() as f64;
    let height = TOP + chart.panels.iter().map(panel_height).sum::<f64>() + BOTTOM;
    let x = |score: f64| LEFT + score.clamp(0.0, 1.0) * (RIGHT - LEFT);

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n\
         <title>{0}</title>\n{STYLE}<rect width=\"100%\" height=\"100%\" style=\"fill: var(--ground)\"/>\n\
         <text class=\"title\" x=\"20\" y=\"30\">{0}</text>\n",
        escaped(&chart.title)
    );
    let mut legend = 20.0;
    for (number, name) in chart.series.iter().enumerate() {
        let _ = writeln!(
            svg,
            "<rect class=\"s{number}\" x=\"{legend}\" y=\"47\" width=\"14\" height=\"14\"/>\
             <text x=\"{:.0}\" y=\"59\">{}</text>",
            legend + 20.0,
            escaped(name)
        );
        legend += 48.0 + 7.0 * name.chars().count() as f64;
    }
    for percent in (0..=100).step_by(20) {
        let at = x(f64::from(percent) / 100.0);
        let _ = writeln!(
            svg,
            "<path class=\"grid\" d=\"M{at:.1} {TOP}V{:.1}\"/><text class=\"quiet mid\" x=\"{at:.1}\" y=\"{:.1}\">{percent}</text>",
            height - BOTTOM,
            height - BOTTOM + 18.0
        );
    }
    let mut y = TOP;
    for panel in &chart.panels {
        let _ = writeln!(svg, "<text class=\"panel\" x=\"20\" y=\"{:.1}\">{}</text>", y + 26.0, escaped(&panel.name));
        y += HEADING;
        for group in &panel.groups {
            let middle = y + BAR * chart.series.len() as f64 / 2.0;
            let _ = writeln!(
                svg,
                "<text class=\"end\" x=\"{0:.1}\" y=\"{1:.1}\">{2}</text><text class=\"quiet end value\" x=\"{0:.1}\" y=\"{3:.1}\">{4}</text>",
                LEFT - 10.0,
                middle - 1.0,
                escaped(&group.name),
                middle + 12.0,
                escaped(group.metric)
            );
            for (number, score) in group.scores.iter().enumerate() {
                bar(&mut svg, y + BAR * number as f64, number, *score, x);
            }
            y += group_height;
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// A bar with its whisker, and its number behind both.
fn bar(svg: &mut String, y: f64, number: usize, score: Option<Score>, x: impl Fn(f64) -> f64) {
    let middle = y + BAR / 2.0;
    let Some(Score { value, low, high, .. }) = score else {
        let _ = writeln!(svg, "<text class=\"quiet value\" x=\"{:.1}\" y=\"{:.1}\">–</text>", LEFT + 6.0, middle + 4.0);
        return;
    };
    let (low, high) = (x(low), x(high));
    let _ = writeln!(
        svg,
        "<rect class=\"s{number}\" x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>\
         <path class=\"whisker\" d=\"M{low:.1} {middle:.1}H{high:.1}M{low:.1} {cap:.1}v6M{high:.1} {cap:.1}v6\"/>\
         <text class=\"value\" x=\"{:.1}\" y=\"{:.1}\">{:.1}</text>",
        y + 1.0,
        x(value) - LEFT,
        BAR - 2.0,
        high.max(x(value)) + 6.0,
        middle + 4.0,
        100.0 * value,
        cap = middle - 3.0,
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
