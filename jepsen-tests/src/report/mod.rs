//! One self-contained HTML file from a history and its verdict: what was judged, what went wrong, and what it looked like.
//!
//!     summary ─ violations with their excerpts ─ timeline ─ latency ─ rate ─ lag ─ leaders ─ metrics
//!
//! Text in, text out. All pictures are inline SVG with one time axis; fault bands have one colour per family.

mod excerpt;
mod plots;
mod svg;
mod timeline;

use crate::checker::{Limits, Model, Validity, Verdict};
use crate::history::{Event, Op};
use std::fmt::Write;
use svg::escape;

pub fn render(history: &[Event], verdict: &Verdict) -> String {
    let model = Model::new(history, &Limits::default());
    let bands = Bands::new(&model);
    let mut page = String::from(HEAD);
    let (word, class) = match verdict.valid {
        Validity::True => ("valid", "ok"),
        Validity::False => ("invalid", "fail"),
        Validity::Unknown => ("unknown", "info"),
    };
    let name = escape(&verdict.profile);
    let _ = write!(
        page,
        "<title>{name}: {word}</title><h1>{name} <span class=\"{class}\">{word}</span></h1>"
    );
    summary(&mut page, &model, verdict);
    section(&mut page, "Violations", &excerpt::violations(&model, verdict));
    section(&mut page, "Timeline", &timeline::render(&model, verdict, &bands));
    section(&mut page, "Latency of publishes", &plots::latency(&model, &bands));
    section(&mut page, "Rate", &plots::rate(&model, &bands));
    section(
        &mut page,
        "Delivery lag and unseen messages",
        &plots::lag(&model, &bands),
    );
    section(&mut page, "Leaders", &plots::leaders(&model, &bands));
    section(&mut page, "Metrics", &metrics(verdict));
    page.push_str("</main></html>\n");
    page
}

fn section(page: &mut String, title: &str, body: &str) {
    if !body.is_empty() {
        let _ = write!(page, "<h2>{title}</h2>{body}");
    }
}

fn summary(page: &mut String, model: &Model, verdict: &Verdict) {
    let seconds = model.seconds(model.events.len().saturating_sub(1));
    let yes = |held: bool| if held { "yes" } else { "no" };
    let rows = [
        ("events", model.events.len().to_string()),
        ("duration", format!("{seconds:.1} s")),
        ("messages", model.messages.len().to_string()),
        ("deliveries", model.deliveries.len().to_string()),
        ("connections", model.connections.len().to_string()),
        ("sessions", model.lives.len().to_string()),
        ("covered", yes(verdict.covered).into()),
        ("recovered", yes(verdict.recovered).into()),
    ];
    page.push_str("<div class=\"cards\">");
    for (name, value) in rows {
        let _ = write!(page, "<div><b>{value}</b>{name}</div>");
    }
    page.push_str("</div>");
    if !verdict.unknown.is_empty() {
        page.push_str("<h2>Why unknown</h2><ul>");
        for reason in &verdict.unknown {
            let _ = write!(page, "<li>{}</li>", escape(reason));
        }
        page.push_str("</ul>");
    }
    if !verdict.coverage.is_empty() {
        page.push_str("<h2>Coverage</h2><table><tr><th>required<th>needed<th>found</tr>");
        for row in &verdict.coverage {
            let class = if row.met { "ok" } else { "fail" };
            let text = serde_json::to_string(&row.requirement).unwrap_or_default();
            let (needed, found) = (row.needed, row.found);
            let _ = write!(
                page,
                "<tr><td>{}<td>{needed}<td class=\"{class}\">{found}</tr>",
                escape(&text)
            );
        }
        page.push_str("</table>");
    }
}

fn metrics(verdict: &Verdict) -> String {
    let mut text = String::from("<table class=\"metrics\">");
    for (name, value) in &verdict.metrics {
        let _ = write!(text, "<tr><td>{}<td>{value:.4}</tr>", escape(name));
    }
    text + "</table>"
}

/// Stretches of time in which faults were on, for every picture.
pub struct Bands {
    /// From, until (seconds), family.
    pub faults: Vec<(f64, f64, String)>,
    /// Start of each phase.
    pub phases: Vec<(f64, String)>,
    pub end: f64,
    families: Vec<String>,
}

impl Bands {
    pub fn new(model: &Model) -> Bands {
        let end = model.seconds(model.events.len().saturating_sub(1));
        let mut bands = Bands {
            faults: Vec::new(),
            phases: model
                .phases
                .began
                .iter()
                .map(|(at, name)| (model.seconds(*at), name.clone()))
                .collect(),
            end,
            families: Vec::new(),
        };
        let mut open: Vec<(f64, String)> = Vec::new();
        for (index, event) in model.events.iter().enumerate() {
            let Op::Fault { family, action, .. } = &event.op else {
                continue;
            };
            if !bands.families.contains(family) {
                bands.families.push(family.clone());
            }
            let at = model.seconds(index);
            match action.as_str() {
                "start" => open.push((at, family.clone())),
                "stop" => {
                    if let Some(begun) = open.iter().position(|(_, name)| name == family) {
                        let (from, family) = open.remove(begun);
                        bands.faults.push((from, at, family));
                    }
                }
                // What happens at once gets a stripe that can be seen.
                _ => bands.faults.push((at, at + end * 0.003, family.clone())),
            }
        }
        bands
            .faults
            .extend(open.into_iter().map(|(from, family)| (from, end, family)));
        bands
    }

    pub fn colour(&self, family: &str) -> &'static str {
        let at = self.families.iter().position(|name| name == family).unwrap_or(0);
        FAULT_COLOURS[at % FAULT_COLOURS.len()]
    }

    pub fn legend(&self) -> String {
        let items: String = self
            .families
            .iter()
            .map(|family| {
                format!(
                    "<span><i style=\"background:{}\"></i>{}</span>",
                    self.colour(family),
                    escape(family)
                )
            })
            .collect();
        if items.is_empty() {
            items
        } else {
            format!("<div class=\"legend\">{items}</div>")
        }
    }
}

const FAULT_COLOURS: [&str; 8] = [
    "#f6d5a8", "#cfe0f5", "#e3d2ef", "#d3ecd0", "#f4cfd6", "#d9d9d9", "#f3eeb0", "#c8ebe8",
];

const HEAD: &str = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><style>
body{font:14px/1.45 system-ui,sans-serif;color:#222;background:#fff;margin:0}
main{max-width:1180px;margin:24px auto;padding:0 16px}
h1{font-size:22px}h2{font-size:16px;margin:28px 0 8px}
.ok{color:#2a7d46}.fail{color:#c22f2f}.info{color:#b87a00}
.cards{display:flex;flex-wrap:wrap;gap:10px}.cards div{border:1px solid #e2e2e2;border-radius:6px;padding:8px 14px;color:#666}
.cards b{display:block;font-size:18px;color:#222}
table{border-collapse:collapse}td,th{padding:2px 12px 2px 0;text-align:left;border-bottom:1px solid #eee}
.metrics{font-size:12px;columns:2}details{border:1px solid #eee;border-radius:6px;margin:6px 0;padding:6px 10px}
summary{cursor:pointer}pre{font-size:11px;overflow-x:auto;background:#fafafa;padding:8px;white-space:pre}
.tag{background:#c22f2f;color:#fff;border-radius:4px;padding:1px 6px;font-size:12px;margin-right:6px}
svg{width:100%;height:auto;border:1px solid #eee;border-radius:6px;background:#fff}
svg text{font:10px system-ui,sans-serif;fill:#555}
.legend span{margin-right:14px;font-size:12px}.legend i{display:inline-block;width:12px;height:12px;margin-right:5px;
vertical-align:-1px;border-radius:2px}</style><main>";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::judge;
    use crate::mutate::{Spoil, mutators};
    use crate::synthetic::{Plan, generate, profile};

    #[test]
    fn a_report_shows_the_violation_and_its_events() {
        let history = generate(&Plan::new(1));
        let panics = mutators()
            .into_iter()
            .find(|mutator| mutator.name == "write a panic")
            .expect("it is there");
        let spoilt = (panics.apply)(&mut Spoil::new(&history, &profile().limits, 1)).expect("it applies everywhere");
        let page = render(&spoilt, &judge(&spoilt, &profile()));
        for wanted in ["invalid", "<svg", "panicked", "p95", "</html>"] {
            assert!(page.contains(wanted), "{wanted}");
        }
        assert!(!page.contains("NaN") && !page.contains("inf\""));
    }

    #[test]
    fn an_empty_history_has_a_report() {
        assert!(render(&[], &judge(&[], &profile())).contains("unknown"));
    }
}
