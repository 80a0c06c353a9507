//! Each lie of the proxy, told between honest clients and a healthy cluster, is found and called by its name.
//!
//! Needs the broker, so that each is ignored until it is asked for: `LONTRA_BIN=… cargo test -p lontra-jepsen --test lies --
//! --ignored --test-threads=1`, as `ops/test jepsen` does.

use lontra_jepsen::checker::Validity;
use lontra_jepsen::proxy::Lie;
use lontra_jepsen::runner::{Settings, binary, run};
use std::time::Duration;

async fn is_found(lie: Lie) {
    let binary = binary(None, false).unwrap_or_else(|reason| panic!("{reason}"));
    let (_, workload, classes) = Lie::ALL
        .iter()
        .find(|(known, _, _)| *known == lie)
        .expect("it is listed");
    let dir = tempfile::tempdir().expect("a directory");
    let mut settings = Settings::new(binary, workload, dir.path().to_owned());
    // Sessions are resumed a few times in such a run; messages come by the hundred.
    let every = if lie == Lie::SessionPresent { 2 } else { 20 };
    settings.lie = Some((lie, every));
    settings.baseline = Duration::from_secs(1);
    settings.faults = Duration::from_secs(7);
    settings.rate = 150;
    let finished = run(settings).await;
    let found = finished.verdict.classes();
    assert!(finished.lies > 0, "{lie:?} was never told; {:?}", finished.failure);
    assert_eq!(
        finished.verdict.valid,
        Validity::False,
        "{lie:?}, {} times",
        finished.lies
    );
    assert!(found.iter().any(|class| classes.contains(class)), "{lie:?}: {found:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a broker in LONTRA_BIN"]
async fn acknowledged_and_dropped() {
    is_found(Lie::AckAndDrop).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a broker in LONTRA_BIN"]
async fn delivered_twice_under_another_identifier() {
    is_found(Lie::Duplicate).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a broker in LONTRA_BIN"]
async fn two_deliveries_changed_places() {
    is_found(Lie::Reorder).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a broker in LONTRA_BIN"]
async fn a_byte_of_a_payload_changed() {
    is_found(Lie::Corrupt).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a broker in LONTRA_BIN"]
async fn an_old_retained_value() {
    is_found(Lie::StaleRetained).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a broker in LONTRA_BIN"]
async fn a_session_denied() {
    is_found(Lie::SessionPresent).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a broker in LONTRA_BIN"]
async fn a_disconnect_suppressed() {
    is_found(Lie::SuppressDisconnect).await;
}
