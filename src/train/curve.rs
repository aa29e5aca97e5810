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

/// Draws training losses, their running mean, and validation losses.
pub fn svg(train: &Points, validation: &Points) -> String {
    let smooth = running_mean(train);
    let all = || train.iter().chain(validation);
    let last = all().map(|p| p.0).max().unwrap_or(1).max(1) as f64;
    let (low, high) = all().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), p| (low.min(p.1), high.max(p.1)));
    let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
    let tick = tick(high - low);
    let low = (low / tick).floor() * tick;
    let high = ((high / tick).ceil() * tick).max(low + tick);
    let x = |step: f64| LEFT + step / last * (WIDTH - LEFT - RIGHT);
    let y = |loss: f64| HEIGHT - BOTTOM - (loss - low) / (high - low) * (HEIGHT - TOP - BOTTOM);

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\" fill=\"#333\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    for i in 0..=((high - low) / tick).round() as u32 {
        let loss = low + f64::from(i) * tick;
        let at = y(loss);
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {at:.1}H{:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            at + 4.0,
            rounded(loss, tick)
        );
    }
    let step_tick = self::tick(last).max(1.0);
    for i in 0..=(last / step_tick) as u32 {
        let step = f64::from(i) * step_tick;
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{step}</text>",
            x(step),
            HEIGHT - BOTTOM + 18.0
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">step</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 8.0
    );
    let curves: [(&Points, &str, f64, &str); 3] = [
        (train, "#b9cde8", 1.0, "loss of each step"),
        (&smooth, "#1f5fae", 2.0, "running mean"),
        (validation, "#c8501e", 2.0, "validation"),
    ];
    let mut legend = LEFT;
    for (points, colour, width, name) in curves.into_iter().filter(|c| !c.0.is_empty()) {
        let line: Vec<String> = points.iter().map(|p| format!("{:.1},{:.1}", x(p.0 as f64), y(p.1))).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>\n\
             <path d=\"M{legend} 16h22\" stroke=\"{colour}\" stroke-width=\"3\"/><text x=\"{:.1}\" y=\"20\">{name}</text>",
            line.join(" "),
            legend + 28.0
        );
        legend += 60.0 + 7.0 * name.len() as f64;
    }
    svg.push_str("</svg>\n");
    svg
}

/// Each point with the mean of those before it, recent ones counting more.
fn running_mean(points: &Points) -> Points {
    let keep = 1.0 - 1.0 / (points.len() as f64 / 20.0).clamp(2.0, 100.0);
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
}
