//! The rules one by one; `worlds` has all of them under random requests, restarts and clocks.

mod worlds;

use super::*;

const LEASE_MS: u64 = 1_000;

fn caller(node: &str) -> Caller<'_> {
    Caller {
        node,
        lease_ms: LEASE_MS,
    }
}

fn holding(epoch: u64) -> Holding {
    Holding {
        mirror: "md1".into(),
        epoch: Epoch(epoch),
    }
}

fn acquire() -> Request {
    acquire_as(false)
}

fn acquire_by_force() -> Request {
    acquire_as(true)
}

fn acquire_as(force: bool) -> Request {
    Request::Acquire {
        mirror: "md1".into(),
        force,
    }
}

fn renew(epoch: u64) -> Request {
    Request::Beat {
        renew: vec![holding(epoch)],
    }
}

fn release(epoch: u64) -> Request {
    Request::Release {
        holding: holding(epoch),
    }
}

fn record(epoch: u64, current: &[&str]) -> Request {
    Request::Record {
        holding: holding(epoch),
        current: current.iter().map(|node| (*node).to_owned()).collect(),
    }
}

fn enrol(epoch: u64, current: bool, primary: bool) -> Request {
    Request::Enrol {
        mirror: "md1".into(),
        claim: Claim {
            epoch: Epoch(epoch),
            current,
            peer_outdated: false,
            primary,
        },
    }
}

fn granted(epoch: u64) -> Reply {
    Reply::Granted {
        epoch: Epoch(epoch),
    }
}

/// A registry in which `a` holds epoch 5 since time 0, and both are current.
fn held_by_a() -> Registry {
    restored(5, Some("a"), &["a", "b"])
}

fn restored(epoch: u64, holder: Option<&str>, current: &[&str]) -> Registry {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let record = Record {
        epoch: Epoch(epoch),
        holder: holder.map(Into::into),
        lease_ms: holder.map_or(0, |_| LEASE_MS),
        current: names(current),
        nodes: names(&["a", "b"]),
    };
    Registry::restore([("md1".to_owned(), record)].into(), 0)
}

/// Asks, and demands that a change is reported exactly where there is one.
fn ask(registry: &mut Registry, now_ms: u64, node: &str, request: &Request) -> Reply {
    let before = registry.records();
    let step = registry.step(now_ms, caller(node), request);
    assert_eq!(step.changed, registry.records() != before, "{request:?}");
    registry.check_invariants();
    step.reply
}

fn renewal(registry: &mut Registry, now_ms: u64, node: &str, epoch: u64) -> Renewal {
    match ask(registry, now_ms, node, &renew(epoch)) {
        Reply::Beat { mut leases, .. } => leases.remove(0),
        other => panic!("{other:?} to a beat"),
    }
}

/// One word for an answer of the table.
fn word(reply: &Reply) -> String {
    match reply {
        Reply::Granted { epoch } => format!("granted {}", epoch.0),
        Reply::Released => "released".into(),
        Reply::Recorded => "recorded".into(),
        Reply::Enrolled { complete: true } => "enrolled".into(),
        Reply::Enrolled { complete: false } => "waits".into(),
        Reply::Refused(Refusal::Held { .. }) => "held".into(),
        Reply::Refused(Refusal::Outdated { .. }) => "outdated".into(),
        Reply::Refused(Refusal::Superseded { .. }) => "superseded".into(),
        Reply::Refused(Refusal::Released { .. }) => "given back".into(),
        Reply::Refused(Refusal::Unknown) => "unknown".into(),
        Reply::Refused(Refusal::Conflict { .. }) => "conflict".into(),
        Reply::Refused(Refusal::Full { .. }) => "full".into(),
        Reply::Beat { leases, .. } => match &leases[0] {
            Renewal::Renewed => "renewed".into(),
            Renewal::Lost { .. } => "lost".into(),
            Renewal::Unknown => "unknown".into(),
        },
    }
}

#[test]
fn every_state_answers_every_request_as_the_table_says() {
    // Epoch 5 throughout, node a asks.
    let states = [
        ("nothing known", Registry::new()),
        ("held by a", held_by_a()),
        ("held by b", restored(5, Some("b"), &["a", "b"])),
        ("held by nobody", restored(5, None, &["a", "b"])),
        ("held by b, a outdated", restored(5, Some("b"), &["b"])),
        ("held by a, a outdated", restored(5, Some("a"), &["b"])),
    ];
    // (request, [one answer a state while a lease lives], [... and after it])
    type Row<'a> = (&'a str, Request, [&'a str; 6], [&'a str; 6]);
    let rows: [Row; 14] = [
        (
            "acquire",
            acquire(),
            [
                "unknown",
                "granted 6",
                "held",
                "granted 6",
                "outdated",
                "outdated",
            ],
            [
                "unknown",
                "granted 6",
                "granted 6",
                "granted 6",
                "outdated",
                "outdated",
            ],
        ),
        (
            "acquire by force",
            acquire_by_force(),
            [
                "unknown",
                "granted 6",
                "held",
                "granted 6",
                "held",
                "granted 6",
            ],
            [
                "unknown",
                "granted 6",
                "granted 6",
                "granted 6",
                "granted 6",
                "granted 6",
            ],
        ),
        (
            "renew 4",
            renew(4),
            ["unknown", "lost", "lost", "lost", "lost", "lost"],
            ["unknown", "lost", "lost", "lost", "lost", "lost"],
        ),
        (
            "renew 5",
            renew(5),
            ["unknown", "renewed", "lost", "lost", "lost", "renewed"],
            ["unknown", "renewed", "lost", "lost", "lost", "renewed"],
        ),
        ("renew 6", renew(6), ["unknown"; 6], ["unknown"; 6]),
        (
            "release 4",
            release(4),
            [
                "unknown",
                "superseded",
                "superseded",
                "superseded",
                "superseded",
                "superseded",
            ],
            [
                "unknown",
                "superseded",
                "superseded",
                "superseded",
                "superseded",
                "superseded",
            ],
        ),
        (
            "release 5",
            release(5),
            [
                "unknown",
                "released",
                "superseded",
                "released",
                "superseded",
                "released",
            ],
            [
                "unknown",
                "released",
                "superseded",
                "released",
                "superseded",
                "released",
            ],
        ),
        ("release 6", release(6), ["unknown"; 6], ["unknown"; 6]),
        (
            "record 4",
            record(4, &["a"]),
            [
                "unknown",
                "superseded",
                "superseded",
                "superseded",
                "superseded",
                "superseded",
            ],
            [
                "unknown",
                "superseded",
                "superseded",
                "superseded",
                "superseded",
                "superseded",
            ],
        ),
        (
            "record 5",
            record(5, &["a"]),
            [
                "unknown",
                "recorded",
                "superseded",
                "given back",
                "superseded",
                "recorded",
            ],
            [
                "unknown",
                "recorded",
                "superseded",
                "given back",
                "superseded",
                "recorded",
            ],
        ),
        (
            "record 6",
            record(6, &["a"]),
            ["unknown"; 6],
            ["unknown"; 6],
        ),
        (
            "record 5, nobody",
            record(5, &[]),
            [
                "unknown",
                "conflict",
                "superseded",
                "given back",
                "superseded",
                "conflict",
            ],
            [
                "unknown",
                "conflict",
                "superseded",
                "given back",
                "superseded",
                "conflict",
            ],
        ),
        (
            "enrol 5",
            enrol(5, true, false),
            [
                "waits", "enrolled", "enrolled", "enrolled", "enrolled", "enrolled",
            ],
            [
                "waits", "enrolled", "enrolled", "enrolled", "enrolled", "enrolled",
            ],
        ),
        ("enrol 6", enrol(6, true, false), ["waits"; 6], ["waits"; 6]),
    ];
    for (title, request, living, over) in rows {
        for (expected, now_ms) in [(living, LEASE_MS), (over, LEASE_MS + 1)] {
            for ((state, registry), expected) in states.iter().zip(expected) {
                let reply = ask(&mut registry.clone(), now_ms, "a", &request);
                assert_eq!(word(&reply), expected, "{title}, {state}, at {now_ms} ms");
            }
        }
    }
}

#[test]
fn another_node_is_granted_nothing_until_the_lease_is_over() {
    let mut registry = held_by_a();
    let held = |remaining_ms| {
        Reply::Refused(Refusal::Held {
            holder: "a".into(),
            remaining_ms,
        })
    };
    assert_eq!(ask(&mut registry, 0, "b", &acquire()), held(LEASE_MS + 1));
    assert_eq!(ask(&mut registry, LEASE_MS, "b", &acquire()), held(1));
    assert_eq!(
        ask(&mut registry, LEASE_MS + 1, "b", &acquire()),
        granted(6)
    );
    let lost = Renewal::Lost {
        epoch: Epoch(6),
        holder: Some("b".into()),
    };
    assert_eq!(renewal(&mut registry, LEASE_MS + 2, "a", 5), lost);
}

#[test]
fn a_late_renewal_counts_if_nobody_was_granted_anything() {
    let mut registry = held_by_a();
    assert_eq!(renewal(&mut registry, 50_000, "a", 5), Renewal::Renewed);
    let reply = ask(&mut registry, 50_000 + LEASE_MS, "b", &acquire());
    assert_eq!(word(&reply), "held");
}

#[test]
fn a_release_ends_the_lease_at_once_and_only_for_its_epoch() {
    let mut registry = held_by_a();
    assert_eq!(ask(&mut registry, 0, "a", &acquire()), granted(6));
    assert_eq!(word(&ask(&mut registry, 0, "a", &release(5))), "superseded");
    assert_eq!(word(&ask(&mut registry, 0, "b", &acquire())), "held");
    assert_eq!(ask(&mut registry, 0, "a", &release(6)), Reply::Released);
    assert_eq!(
        ask(&mut registry, 0, "a", &release(6)),
        Reply::Released,
        "again"
    );
    assert_eq!(ask(&mut registry, 0, "b", &acquire()), granted(7));
    assert_eq!(word(&ask(&mut registry, 0, "a", &release(6))), "superseded");
    assert_eq!(word(&ask(&mut registry, 0, "a", &acquire())), "held");
}

#[test]
fn a_restart_counts_every_lease_as_just_granted() {
    let registry = held_by_a();
    let now_ms = 77;
    let mut registry = Registry::restore(registry.records(), now_ms);
    assert_eq!(
        word(&ask(&mut registry, now_ms + LEASE_MS, "b", &acquire())),
        "held"
    );
    let reply = ask(&mut registry, now_ms + LEASE_MS + 1, "b", &acquire());
    assert_eq!(reply, granted(6));
}

#[test]
fn the_longest_promise_is_kept_also_over_a_restart() {
    let mut registry = held_by_a();
    let long = Caller {
        node: "a",
        lease_ms: 9_000,
    };
    let step = registry.step(0, long, &renew(5));
    assert!(step.changed, "a longer promise must be durable");
    assert!(!registry.step(1, long, &renew(5)).changed);
    let short = Caller {
        node: "a",
        lease_ms: 10,
    };
    assert_eq!(registry.step(2, short, &acquire()).reply, granted(6));
    assert_eq!(
        word(&ask(&mut registry.clone(), 9_001, "b", &acquire())),
        "held"
    );
    assert_eq!(
        ask(&mut registry.clone(), 9_002, "b", &acquire()),
        granted(7)
    );
    let mut restarted = Registry::restore(registry.records(), 100);
    assert_eq!(word(&ask(&mut restarted, 9_000, "b", &acquire())), "held");
    // Once the long one is over, a new grant is as short as it says.
    registry.step(20_000, short, &acquire());
    let mut restarted = Registry::restore(registry.records(), 0);
    assert_eq!(ask(&mut restarted, 11, "b", &acquire()), granted(8));
}

#[test]
fn only_the_nodes_of_a_mirror_can_be_current() {
    let mut registry = held_by_a();
    assert_eq!(
        word(&ask(&mut registry, 0, "a", &record(5, &["a", "c"]))),
        "conflict"
    );
    assert_eq!(
        word(&ask(&mut registry, 0, "a", &record(5, &["b"]))),
        "recorded"
    );
    assert_eq!(word(&ask(&mut registry, 0, "c", &acquire())), "outdated");
}

fn current(registry: &Registry) -> Vec<String> {
    let records = registry.records();
    records["md1"].current.iter().cloned().collect()
}

#[test]
fn force_makes_an_outdated_node_the_only_current_one_once_no_lease_may_live() {
    let mut registry = restored(5, Some("b"), &["b"]);
    let reply = ask(&mut registry, 10, "a", &acquire_by_force());
    assert_eq!(word(&reply), "held");
    assert_eq!(current(&registry), ["b"], "a refusal changes nothing");
    let reply = ask(&mut registry, LEASE_MS + 1, "a", &acquire_by_force());
    assert_eq!(reply, granted(6));
    assert_eq!(current(&registry), ["a"]);
    // What was given up does not come back by itself.
    assert_eq!(
        renewal(&mut registry, LEASE_MS + 2, "b", 5),
        Renewal::Lost {
            epoch: Epoch(6),
            holder: Some("a".into()),
        }
    );
    let reply = ask(&mut registry, 9 * LEASE_MS, "b", &acquire());
    assert_eq!(word(&reply), "outdated");
}

#[test]
fn force_takes_nothing_from_a_node_that_is_as_current() {
    let mut registry = restored(5, None, &["a", "b"]);
    let reply = ask(&mut registry, 0, "a", &acquire_by_force());
    assert_eq!(reply, granted(6));
    assert_eq!(current(&registry), ["a", "b"]);
}

#[test]
fn force_is_for_the_nodes_of_a_mirror() {
    let mut registry = restored(5, None, &["a"]);
    let reply = ask(&mut registry, 0, "c", &acquire_by_force());
    assert_eq!(word(&reply), "outdated");
}

/// Two fresh nodes, say.
#[test]
fn force_founds_a_mirror_of_which_nobody_is_current() {
    let mut registry = Registry::new();
    assert_eq!(
        word(&ask(&mut registry, 0, "a", &acquire_by_force())),
        "unknown"
    );
    ask(&mut registry, 0, "a", &enrol(0, false, false));
    assert_eq!(
        word(&ask(&mut registry, 0, "a", &acquire_by_force())),
        "unknown",
        "the other node has not said anything yet"
    );
    let reply = ask(&mut registry, 1, "b", &enrol(3, false, false));
    assert_eq!(word(&reply), "conflict");
    assert_eq!(word(&ask(&mut registry, 2, "a", &acquire())), "unknown");
    let late = CLAIM_MS_MAX + 1;
    let mut too_late = registry.clone();
    assert_eq!(
        word(&ask(&mut too_late, late, "a", &acquire_by_force())),
        "unknown"
    );
    assert_eq!(ask(&mut registry, 2, "a", &acquire_by_force()), granted(4));
    assert_eq!(current(&registry), ["a"]);
    assert_eq!(
        word(&ask(&mut registry, 3, "b", &enrol(3, false, false))),
        "enrolled"
    );
}

#[test]
fn force_founds_nothing_beside_a_primary() {
    let mut registry = Registry::new();
    ask(&mut registry, 0, "a", &enrol(0, false, false));
    let reply = ask(&mut registry, 1, "b", &enrol(0, false, true));
    assert_eq!(word(&reply), "conflict");
    let reply = ask(&mut registry, 2, "a", &acquire_by_force());
    assert_eq!(word(&reply), "conflict");
    assert!(registry.records().is_empty());
}

#[test]
fn a_beat_says_when_the_other_node_was_heard() {
    let mut registry = Registry::new();
    let beat = Request::Beat { renew: Vec::new() };
    let heard = |peer_heard_ms| Reply::Beat {
        peer_heard_ms,
        leases: Vec::new(),
    };
    assert_eq!(ask(&mut registry, 10, "a", &beat), heard(None));
    assert_eq!(ask(&mut registry, 15, "b", &beat), heard(Some(5)));
    assert_eq!(ask(&mut registry, 35, "a", &beat), heard(Some(20)));
}

#[test]
fn a_mirror_is_known_when_both_nodes_enrolled_it() {
    let mut registry = Registry::new();
    let waits = Reply::Enrolled { complete: false };
    assert_eq!(ask(&mut registry, 0, "a", &enrol(4, true, true)), waits);
    assert_eq!(
        ask(&mut registry, 0, "a", &enrol(4, true, true)),
        waits,
        "again"
    );
    assert_eq!(word(&ask(&mut registry, 0, "a", &acquire())), "unknown");
    let done = Reply::Enrolled { complete: true };
    assert_eq!(ask(&mut registry, 10, "b", &enrol(3, true, false)), done);
    assert_eq!(
        word(&ask(&mut registry, 10 + LEASE_MS, "b", &acquire())),
        "held"
    );
    assert_eq!(renewal(&mut registry, 10, "a", 4), Renewal::Renewed);
    assert_eq!(ask(&mut registry, 10, "a", &acquire()), granted(5));
}

#[test]
fn a_claim_that_does_not_fit_is_said_and_may_be_mended() {
    let mut registry = Registry::new();
    ask(&mut registry, 0, "a", &enrol(4, false, false));
    assert_eq!(
        word(&ask(&mut registry, 0, "b", &enrol(4, false, false))),
        "conflict"
    );
    assert_eq!(
        word(&ask(&mut registry, 0, "c", &enrol(4, true, false))),
        "conflict"
    );
    assert_eq!(
        word(&ask(&mut registry, 0, "b", &enrol(4, true, false))),
        "enrolled"
    );
    assert_eq!(word(&ask(&mut registry, 0, "a", &acquire())), "outdated");
    assert_eq!(ask(&mut registry, 0, "b", &acquire()), granted(5));
}

#[test]
fn an_old_claim_counts_no_more() {
    let mut registry = Registry::new();
    ask(&mut registry, 0, "a", &enrol(4, true, false));
    let late_ms = CLAIM_MS_MAX + 1;
    assert_eq!(
        word(&ask(&mut registry, late_ms, "b", &enrol(4, true, false))),
        "waits"
    );
    assert_eq!(
        word(&ask(&mut registry, late_ms, "a", &enrol(4, true, false))),
        "enrolled"
    );
}

#[test]
fn a_record_that_proves_to_be_an_old_copy_is_forgotten() {
    for request in [
        renew(8),
        release(8),
        record(8, &["a"]),
        enrol(8, true, true),
    ] {
        let mut registry = held_by_a();
        ask(&mut registry, 0, "a", &request);
        assert!(registry.records().is_empty(), "{request:?}");
        assert_eq!(word(&ask(&mut registry, 9_999, "b", &acquire())), "unknown");
        ask(&mut registry, 9_999, "a", &enrol(8, true, true));
        assert_eq!(
            word(&ask(&mut registry, 9_999, "b", &enrol(5, true, false))),
            "enrolled"
        );
        assert_eq!(ask(&mut registry, 9_999, "a", &acquire()), granted(9));
    }
}

#[test]
fn mirrors_are_limited_in_number() {
    let mut registry = Registry::new();
    let enrol = |index: usize| Request::Enrol {
        mirror: format!("md{index}"),
        claim: Claim {
            epoch: Epoch(0),
            current: true,
            peer_outdated: false,
            primary: false,
        },
    };
    for index in 0..MIRRORS_MAX {
        assert_eq!(word(&ask(&mut registry, 0, "a", &enrol(index))), "waits");
    }
    assert_eq!(
        word(&ask(&mut registry, 0, "a", &enrol(MIRRORS_MAX))),
        "full"
    );
    assert_eq!(word(&ask(&mut registry, 0, "b", &enrol(0))), "enrolled");
}
