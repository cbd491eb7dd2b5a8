use std::fs;
use std::os::unix::fs::symlink;

use super::*;
use crate::alert;

const LIMIT: Duration = Duration::from_secs(10);

#[tokio::test]
async fn an_alert_is_in_both_files_and_in_the_ring() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("alert.log");
    let log = AlertLog::open(&path, "server2");
    log.record(alert::FAILING_OVER.with("Failing over the group failover1."));
    log.flush(LIMIT).await;
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("Info 2"), "{text}");
    assert!(
        text.ends_with(" server2 rc 1060 Failing over the group failover1.\n"),
        "{text}"
    );
    let json = fs::read_to_string(folder.path().join("alert.log.json")).unwrap();
    assert!(
        json.contains("\"id\":1060") && json.ends_with("}\n"),
        "{json}"
    );
    let page = log.ring().page(0, Duration::ZERO).await;
    assert_eq!(
        page.alerts[0].alert,
        alert::FAILING_OVER.with("Failing over the group failover1.")
    );
    assert_eq!(log.trouble(), None);
}

#[tokio::test]
async fn numbers_go_on_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("alert.log");
    let log = AlertLog::open(&path, "server2");
    log.record(alert::NODE_STARTED.with("first"));
    log.record(alert::NODE_STOPPING.with("second"));
    log.flush(LIMIT).await;
    drop(log);
    let log = AlertLog::open(&path, "server2");
    log.record(alert::NODE_STARTED.with("third"));
    let page = log.ring().page(1, Duration::ZERO).await;
    let found: Vec<_> = page
        .alerts
        .iter()
        .map(|record| (record.number, record.alert.message.as_str()))
        .collect();
    assert_eq!(found, [(2, "second"), (3, "third")]);
}

#[tokio::test]
async fn a_full_disk_is_told_and_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("alert.log");
    symlink("/dev/full", &path).unwrap();
    let log = AlertLog::open(&path, "server2");
    for number in 0..3 {
        log.record(alert::PEER_UP.with(number.to_string()));
    }
    log.flush(LIMIT).await;
    let trouble = log.trouble().unwrap();
    assert!(trouble.contains("No space left"), "{trouble}");
    assert_eq!(log.ring().page(0, Duration::ZERO).await.alerts.len(), 3);
    fs::remove_file(&path).unwrap();
    log.record(alert::PEER_UP.with("there is room"));
    log.flush(LIMIT).await;
    assert_eq!(log.trouble(), None);
    assert!(fs::read_to_string(&path).unwrap().contains("there is room"));
}

#[tokio::test]
async fn a_hangup_opens_the_files_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("alert.log");
    let log = AlertLog::open(&path, "server2");
    log.record(alert::PEER_UP.with("before"));
    log.reopen();
    log.record(alert::PEER_UP.with("after"));
    log.flush(LIMIT).await;
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
}
