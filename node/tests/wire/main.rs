//! The real binary through sockets: every test that starts nodes is here, in one binary, since each of its own would be linked
//! with RocksDB once more (a hundred megabytes and some seconds each).
//!
//! Names carry the meaning, for `ops/test quick` and `.config/nextest.toml`:
//!   wire_*   tests of seconds
//!   slow_*   tests of minutes: kills, power cuts, full disks, under load

mod support;

mod slow_back_in_time;
mod slow_exactly_once;
mod slow_faults;
mod slow_five_nodes;
mod slow_full_disk;
mod slow_kill;
mod slow_power_cut;
mod slow_pressure;
mod slow_retained;
mod slow_rolling;
mod slow_shared;
mod slow_wills;
mod wire_admin;
mod wire_admin_access;
mod wire_auth;
mod wire_auth_acl;
mod wire_auth_links;
mod wire_auth_methods;
mod wire_auth_scram;
mod wire_bad_input;
mod wire_basics;
mod wire_bench;
mod wire_browser;
mod wire_checker;
mod wire_cli;
mod wire_clients;
mod wire_config;
mod wire_conformance_connack;
mod wire_conformance_connect;
mod wire_conformance_disconnect;
mod wire_conformance_everywhere;
mod wire_conformance_properties;
mod wire_conformance_publish;
mod wire_conformance_subscribe;
mod wire_conformance_versions;
mod wire_delayed;
mod wire_exclusive;
mod wire_limits;
mod wire_listeners;
mod wire_qos2;
mod wire_readme;
mod wire_retained;
mod wire_robustness;
mod wire_session;
mod wire_shared;
mod wire_sys;
mod wire_tls;
mod wire_topics;
mod wire_websocket;
mod wire_wills;
