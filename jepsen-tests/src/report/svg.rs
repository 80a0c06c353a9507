//! The little SVG that the pictures need: a frame with a time axis, bands, and shapes in it.

use super::Bands;
use std::fmt::Write;

pub const WIDTH: f64 = 1140.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 18.0;

pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// A picture whose horizontal axis is time.
pub struct Frame {
    pub height: f64,
    from: f64,
    until: f64,
    body: String,
}

impl Frame {
    /// `height` of the plot itself.
    pub fn new(height: f64, from: f64, until: f64, bands: &Bands) -> Frame {
        let mut frame = Frame {
            height,
            from,
            until: until.max(from + 0.001),
            body: String::new(),
        };
        for (start, end, family) in &bands.faults {
            if *end > from && *start < until {
                let (x, width) = (frame.x(*start), (frame.x(*end) - frame.x(*start)).max(1.0));
                let colour = bands.colour(family);
                let _ = write!(
                    frame.body,
                    "<rect x=\"{x:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{height}\" fill=\"{colour}\"/>"
                );
            }
        }
        // The last phases lie close together: a name is left out where it would cover the one before.
        let mut free = LEFT;
        for (start, phase) in &bands.phases {
            if (from..=until).contains(start) {
                let x = frame.x(*start);
                frame.line((x, TOP), (x, TOP + height), "#bbb", "3 3");
                if x >= free {
                    frame.text(x + 3.0, TOP - 5.0, phase);
                    free = x + 60.0;
                }
            }
        }
        frame.time_axis();
        frame
    }

    /// Clamped to the frame.
    pub fn x(&self, seconds: f64) -> f64 {
        let share = (seconds - self.from) / (self.until - self.from);
        LEFT + share.clamp(0.0, 1.0) * (WIDTH - LEFT - 10.0)
    }

    /// `share` 0 is the bottom, 1 the top.
    pub fn y(&self, share: f64) -> f64 {
        TOP + (1.0 - share.clamp(0.0, 1.0)) * self.height
    }

    pub fn row(&self, at: f64) -> f64 {
        TOP + at
    }

    fn time_axis(&mut self) {
        let span = self.until - self.from;
        let step = [0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0]
            .into_iter()
            .find(|step| span / step <= 14.0)
            .unwrap_or(7200.0);
        let mut at = (self.from / step).ceil() * step;
        while at <= self.until {
            let x = self.x(at);
            let _ = write!(
                self.body,
                "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{at:.*} s</text>",
                TOP + self.height + 13.0,
                if step < 1.0 { 2 } else { 0 },
            );
            at += step;
        }
    }

    pub fn label(&mut self, y: f64, text: &str) {
        let text = escape(text);
        let _ = write!(
            self.body,
            "<text x=\"{}\" y=\"{y:.1}\" text-anchor=\"end\">{text}</text>",
            LEFT - 6.0
        );
    }

    pub fn text(&mut self, x: f64, y: f64, text: &str) {
        let _ = write!(self.body, "<text x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escape(text));
    }

    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: &str, dashes: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let _ = write!(
            self.body,
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\" \
             stroke-dasharray=\"{dashes}\"/>"
        );
    }

    pub fn grid(&mut self, share: f64, text: &str) {
        let y = self.y(share);
        self.line((LEFT, y), (WIDTH - 10.0, y), "#e8e8e8", "");
        self.label(y + 3.0, text);
    }

    pub fn bar(&mut self, x: (f64, f64), y: f64, height: f64, colour: &str, title: &str) {
        let width = (x.1 - x.0).max(1.5);
        let _ = write!(
            self.body,
            "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\" rx=\"1\"><title>{}\
             </title></rect>",
            x.0,
            escape(title),
        );
    }

    pub fn dot(&mut self, x: f64, y: f64, radius: f64, colour: &str, title: &str) {
        let _ = write!(
            self.body,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{colour}\""
        );
        if title.is_empty() {
            self.body.push_str("/>");
        } else {
            let _ = write!(self.body, "><title>{}</title></circle>", escape(title));
        }
    }

    pub fn path(&mut self, points: &[(f64, f64)], colour: &str) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = write!(
            self.body,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.4\"/>",
            points.join(" "),
        );
    }

    pub fn finish(self) -> String {
        let height = self.height + TOP + 20.0;
        format!(
            "<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\">{}</svg>",
            self.body
        )
    }
}

/// Items of a legend: colour, name.
pub fn legend(items: &[(&str, &str)]) -> String {
    let items: String = items
        .iter()
        .map(|(colour, name)| format!("<span><i style=\"background:{colour}\"></i>{name}</span>"))
        .collect();
    format!("<div class=\"legend\">{items}</div>")
}

pub const OK: &str = "#4a9d63";
pub const FAIL: &str = "#8e8e8e";
pub const INFO: &str = "#e0a030";
pub const BAD: &str = "#d42020";
