//! Stand-in.
use crate::checker::Verdict;
use crate::history::Event;
pub fn render(_: &[Event], _: &Verdict) -> String {
    String::new()
}
