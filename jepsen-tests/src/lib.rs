//! Fault tests that drive the real `lontra` binary from outside.
//!
//! A skeleton: nothing is here yet. The crate exists so that its place and its rule are fixed: it uses none of the other crates,
//! so that a mistake in them cannot hide itself in the tests.
//!
//! What tests the promises under faults today stands in `node/tests`: `slow_kill` (random `kill -9`), `slow_power_cut`,
//! `slow_full_disk`, `slow_five_nodes`; their checker proves in `wire_checker` that it finds planted faults.
//!
//! What is to come here: histories of operations, checkers by promise (P1 to P10), and a nemesis that also cuts and slows links,
//! pauses processes and shifts clocks.
