//! The loss curve of a run, as SVG.

use std::fmt::Write;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 36.0;
const BOTTOM: f64 = 44.0;

/// Points of a curve: step and loss.
pub type Points = Vec<(u64, f64)>;

/// Colours for light and dark surroundings; of the latter a viewer makes use where it looks for them.
const STYLE: &str = "<style>
svg { background: #fff; font: 12px sans-serif; fill: #333 }
.grid { stroke: #ddd } .axis { stroke: #888 }
.each { stroke: #a9c1e4; fill: #a9c1e4 } .mean { stroke: #1f5fae; fill: #1f5fae } .validation { stroke: #c8501e; fill: #c8501e }
@media (prefers-color-scheme: dark) {
svg { background: #16181c; fill: #ccc }
.grid { stroke: #333 } .axis { stroke: #777 }
.each { stroke: #3c5577; fill: #3c5577 } .mean { stroke: #7db0f0; fill: #7db0f0 } .validation { stroke: #f0915f; fill: #f0915f }
}
</style>
";

/// Draws training losses, their running mean, and validation losses.
pub fn svg(train: &Points, validation: &Points) -> String {
    let mean = running_mean(train);
    let all = || train.iter().chain(validation);
    let last = all().map(|p| p.0).max().unwrap_or(1).max(1) as f64;
    let (low, high) = all().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), p| (low.min(p.1), high.max(p.1)));
    let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
    let tick = tick(high - low);
    let low = (low / tick).floor() * tick;
    let high = ((high / tick).ceil() * tick).max(low + tick);
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let x = |step: f64| LEFT + step / last * (right - LEFT);
    let y = |loss: f64| bottom - (loss - low) / (high - low) * (bottom - TOP);

    let mut svg = format!("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\">\n{STYLE}");
    let text = |x: f64, y: f64, anchor: &str, text: &str| {
        format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>\n")
    };
    for i in 0..=((high - low) / tick).round() as u32 {
        let loss = low + f64::from(i) * tick;
        let _ = writeln!(svg, "<path class=\"grid\" d=\"M{LEFT} {:.1}H{right}\"/>", y(loss));
        svg.push_str(&text(LEFT - 8.0, y(loss) + 4.0, "end", &rounded(loss, tick)));
    }
    let step_tick = self::tick(last).max(1.0);
    for i in 0..=(last / step_tick) as u32 {
        let step = f64::from(i) * step_tick;
        let _ = writeln!(svg, "<path class=\"axis\" d=\"M{:.1} {bottom}v5\"/>", x(step));
        svg.push_str(&text(x(step), bottom + 18.0, "middle", &step.to_string()));
    }
    let _ = writeln!(svg, "<path class=\"axis\" fill=\"none\" d=\"M{LEFT} {TOP}V{bottom}H{right}\"/>");
    svg.push_str(&text((LEFT + right) / 2.0, HEIGHT - 8.0, "middle", "step"));
    let middle = (TOP + bottom) / 2.0;
    let _ = writeln!(
        svg,
        "<text transform=\"translate(14 {middle}) rotate(-90)\" text-anchor=\"middle\">loss per target token</text>"
    );
    let curves: [(&Points, &str, f64, &str); 3] = [
        (train, "each", 1.0, "each step"),
        (&mean, "mean", 2.0, "running mean"),
        (validation, "validation", 2.0, "validation"),
    ];
    let mut legend = LEFT;
    for (points, class, width, name) in curves {
        let Some((_, end)) = points.last() else { continue };
        let thin = thinned(points);
        let line: Vec<String> = thin.iter().map(|p| format!("{:.1},{:.1}", x(p.0 as f64), y(p.1))).collect();
        let _ = writeln!(
            svg,
            "<polyline class=\"{class}\" style=\"fill: none\" stroke-width=\"{width}\" points=\"{}\"/>",
            line.join(" ")
        );
        // Validations are few, and a single one is no line.
        for (step, loss) in thin.iter().filter(|_| class == "validation") {
            let (x, y) = (x(*step as f64), y(*loss));
            let _ = writeln!(
                svg,
                "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"><title>step {step}: {loss:.4}</title></circle>"
            );
        }
        let name = format!("{name} ({end:.3} at last)");
        let _ = writeln!(svg, "<path class=\"{class}\" stroke-width=\"3\" d=\"M{legend} 16h22\"/>");
        svg.push_str(&text(legend + 28.0, 20.0, "start", &name));
        legend += 60.0 + 6.5 * name.len() as f64;
    }
    svg.push_str("</svg>\n");
    svg
}

/// Most points of a line: about one a pixel, with the ups and downs between.
const MOST: usize = 1600;

/// As many points as can be told apart: of each stretch its lowest and its highest, in their order.
fn thinned(points: &Points) -> Points {
    let stretch = (2 * points.len()).div_ceil(MOST).max(1);
    if stretch <= 2 {
        return points.clone();
    }
    let ends = |stretch: &[(u64, f64)]| {
        let by_loss = |a: &&(u64, f64), b: &&(u64, f64)| a.1.total_cmp(&b.1);
        let mut ends: Points =
            [stretch.iter().min_by(by_loss), stretch.iter().max_by(by_loss)].into_iter().flatten().copied().collect();
        ends.sort_by_key(|end| end.0);
        ends
    };
    points.chunks(stretch).flat_map(ends).collect()
}

/// Each point with the mean of those before it, recent ones counting more.
fn running_mean(points: &Points) -> Points {
    let keep = 1.0 - 1.0 / (points.len() as f64 / 15.0).clamp(5.0, 100.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    let mean = |&(step, loss): &(u64, f64)| {
        (sum, weight) = (keep * sum + loss, keep * weight + 1.0);
        (step, sum / weight)
    };
    points.iter().map(mean).collect()
}

/// A round distance that divides `range` into about six.
fn tick(range: f64) -> f64 {
    let rough = (range / 6.0).max(1e-6);
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|t| *t >= rough).unwrap_or(power)
}

fn rounded(value: f64, tick: f64) -> String {
    let digits = (-tick.log10().floor()).max(0.0) as usize;
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_drawn_of_anything() {
        for train in [vec![], vec![(1, 3.0)], (1..400).map(|s| (s, 7.0 / s as f64)).collect()] {
            let drawn = svg(&train, &train);
            assert!(drawn.ends_with("</svg>\n") && !drawn.contains("NaN") && !drawn.contains("inf"), "{drawn}");
        }
    }

    #[test]
    fn long_runs_are_thinned_but_keep_what_stands_out() {
        let points: Points = (0..100_000).map(|s| (s, if s == 77_777 { 9.0 } else { 2.0 - s as f64 * 1e-5 })).collect();
        let thin = thinned(&points);
        assert!(thin.len() <= MOST && thin.contains(&(77_777, 9.0)) && thin.is_sorted_by_key(|p| p.0));
    }
}
