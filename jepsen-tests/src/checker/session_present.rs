//! (i) Session Present tells the truth. [MQTT-3.2.2-2] [MQTT-3.2.2-3]
//!
//! What can be told is traced with the lives of sessions (`model::lives`); here it is put into words. *Amnesia* means that
//! messages are lost next; they are not reported as lost once more, because the session that they were owed to is gone.

use super::model::{Lie, Model};
use super::{Findings, Limits};

pub fn check(model: &Model, _: &Limits) -> Findings {
    let mut findings = Findings::default();
    for step in &model.connacks {
        findings.count("session_present.connacks", step.connections.len() as f64);
        let (class, what) = match step.lie {
            Some(Lie::CleanButPresent) => ("clean-but-present", "1 after Clean Start 1"),
            Some(Lie::Phantom) => ("phantom-session", "1, though it had no session"),
            Some(Lie::Amnesia) => ("amnesia", "0, though its session must exist"),
            Some(Lie::Inexplicable) | None => continue,
        };
        let Some(connection) = step.connections.last().map(|at| &model.connections[*at as usize]) else {
            continue;
        };
        let message = format!(
            "{} was told Session Present {what}, by {}",
            model.clients.name(step.client),
            model.nodes.name(connection.node),
        );
        let before = connection.life.and_then(|life| {
            let mut connections = model.lives[..=life as usize].iter().rev();
            let life = connections.find(|life| life.client == step.client && life.from_sure < connection.invoke)?;
            life.connections.last().map(|at| model.connections[*at as usize].answer)
        });
        let events = [connection.invoke, connection.answer].into_iter().chain(before);
        findings.violation(("session_present", class, "P6"), message, events);
    }
    let resumed = model
        .connections
        .iter()
        .filter(|connection| connection.session_present == Some(true));
    findings.count("session_present.resumed", resumed.count() as f64);
    findings
}
