//! What a workload's verdict needs, as data: which checkers, and which coverage.

/// Until it is mapped to a profile of the checkers.
#[derive(Clone, Debug)]
pub struct Needs {
    pub checkers: &'static [&'static str],
}

pub fn needs(_workload: &str) -> Needs {
    Needs { checkers: &[] }
}
