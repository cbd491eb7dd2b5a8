//! Two nodes and an arbiter with clocks of their own: whatever is asked, late, lost or restarted, never do both hold a
//! right at once.

use proptest::prelude::*;

use super::*;

/// How far a clock may run too fast or too slow, in parts per million.
const DRIFT_PPM: u64 = 10_000;
/// By how much a holder shortens its lease: two clocks may drift apart.
const MARGIN_PPM: u64 = 2 * DRIFT_PPM + 500;
const MILLION: u64 = 1_000_000;
const LEASES_MS: [u64; 3] = [40, 1_000, 7_000];

/// A node as far as the arbiter's promises reach it. Times are true ones, in microseconds.
#[derive(Debug, Clone)]
struct Party {
    name: &'static str,
    rate_ppm: u64,
    /// The highest epoch that it was told.
    epoch: u64,
    /// Until when it may answer, if it does all that it may.
    right_end_us: u64,
}

#[derive(Debug)]
struct World {
    now_us: u64,
    witness_rate_ppm: u64,
    witness_offset_ms: u64,
    registry: Registry,
    /// What the file holds.
    durable: Records,
    parties: [Party; 2],
    granted: Vec<u64>,
}

#[derive(Debug, Clone)]
enum Action {
    Pass {
        us: u64,
    },
    /// `flight_us`: from sending to the arbiter. `stored`: its file took the change.
    Ask {
        party: usize,
        what: What,
        lease: usize,
        flight_us: u64,
        stored: bool,
    },
    /// `machine`: its clock begins anew.
    Restart {
        machine: bool,
    },
    LoseFile,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Acquire,
    AcquireByForce,
    Renew,
    RenewOld,
    Release,
    Record { current: usize },
    Enrol { current: bool, peer_outdated: bool },
}

impl World {
    fn new(rates_ppm: [u64; 3]) -> Self {
        let party = |name, rate_ppm| Party {
            name,
            rate_ppm,
            epoch: 0,
            right_end_us: 0,
        };
        Self {
            now_us: 1,
            witness_rate_ppm: rates_ppm[0],
            witness_offset_ms: 0,
            registry: Registry::new(),
            durable: Records::new(),
            parties: [party("a", rates_ppm[1]), party("b", rates_ppm[2])],
            granted: Vec::new(),
        }
    }

    fn witness_ms(&self) -> u64 {
        self.witness_offset_ms + self.now_us * self.witness_rate_ppm / MILLION / 1000
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Pass { us } => self.now_us += us,
            Action::Restart { machine } => {
                if machine {
                    self.witness_offset_ms = (self.witness_offset_ms * 7 + 13) % 1000;
                }
                let now_ms = self.witness_ms();
                self.registry = Registry::restore(self.durable.clone(), now_ms);
            }
            Action::LoseFile => {
                self.durable = Records::new();
                self.registry = Registry::new();
            }
            Action::Ask {
                party,
                what,
                lease,
                flight_us,
                stored,
            } => {
                self.ask(party, what, LEASES_MS[lease], flight_us, stored);
            }
        }
        self.registry.check_invariants();
        assert_eq!(self.registry.records(), self.durable);
    }

    fn ask(&mut self, index: usize, what: What, lease_ms: u64, flight_us: u64, stored: bool) {
        let sent_us = self.now_us;
        let party = self.parties[index].clone();
        let request = match what {
            What::Acquire => acquire(),
            What::AcquireByForce => acquire_by_force(),
            What::Renew => renew(party.epoch),
            What::RenewOld => renew(party.epoch.saturating_sub(1)),
            What::Release => {
                // Demoted before it is sent.
                self.parties[index].right_end_us = sent_us - 1;
                release(party.epoch)
            }
            What::Record { current } => {
                let sets: [&[&str]; 3] = [&["a"], &["b"], &["a", "b"]];
                record(party.epoch, sets[current])
            }
            What::Enrol {
                current,
                peer_outdated,
            } => Request::Enrol {
                mirror: "md1".into(),
                claim: Claim {
                    epoch: Epoch(party.epoch),
                    current,
                    peer_outdated,
                    primary: party.right_end_us >= sent_us,
                },
            },
        };
        self.now_us += flight_us;
        let caller = Caller {
            node: party.name,
            lease_ms,
        };
        let mut next = self.registry.clone();
        // A primary that enrols names no shorter lease than the one it still lives on.
        let lives = matches!(what, What::Enrol { .. }) && party.right_end_us >= sent_us;
        let caller = if lives {
            Caller {
                lease_ms: LEASES_MS[2],
                ..caller
            }
        } else {
            caller
        };
        let before = self.durable.get("md1").cloned();
        let step = next.step(self.witness_ms(), caller, &request);
        assert_eq!(step.changed, next.records() != self.durable);
        if step.changed && !stored {
            return;
        }
        self.registry = next;
        self.durable = self.registry.records();
        self.check_who_is_current(&party, &request, before.as_ref());
        match step.reply {
            Reply::Granted { epoch } => {
                assert!(
                    self.granted.iter().all(|old| *old < epoch.0),
                    "{epoch:?} again"
                );
                self.granted.push(epoch.0);
                let other = &self.parties[1 - index];
                assert!(
                    other.right_end_us < self.now_us,
                    "{} may still answer",
                    other.name
                );
                self.parties[index].epoch = epoch.0;
                self.count_from(index, sent_us, lease_ms);
            }
            Reply::Beat { leases, .. } if leases == [Renewal::Renewed] => {
                let other = &self.parties[1 - index];
                assert!(
                    other.right_end_us < self.now_us,
                    "{} may still answer",
                    other.name
                );
                assert!(matches!(what, What::Renew) || party.epoch == 0);
                self.count_from(index, sent_us, lease_ms);
            }
            _ => {}
        }
    }

    /// The holder's deadline, by its own clock read to the millisecond, in true time.
    fn count_from(&mut self, index: usize, sent_us: u64, lease_ms: u64) {
        let party = &mut self.parties[index];
        let lease_us = lease_ms * 1000 * (MILLION - MARGIN_PPM) / MILLION;
        let clock_us = sent_us * party.rate_ppm / MILLION / 1000 * 1000 + lease_us;
        let right_end_us = clock_us * MILLION / party.rate_ppm;
        party.right_end_us = party.right_end_us.max(right_end_us);
    }

    fn check_who_is_current(&self, party: &Party, request: &Request, before: Option<&Record>) {
        let (Some(before), Some(after)) = (before, self.durable.get("md1")) else {
            return;
        };
        assert!(after.epoch >= before.epoch);
        if before.current == after.current {
            return;
        }
        match request {
            Request::Record { .. } => assert_eq!(before.holder.as_deref(), Some(party.name)),
            Request::Acquire { force: true, .. } => {
                assert!(!before.current.contains(party.name));
                assert_eq!(after.current, BTreeSet::from([party.name.into()]));
                assert_eq!(after.holder.as_deref(), Some(party.name));
            }
            other => panic!("{other:?} changed who is current"),
        }
    }
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        4 => Just(What::Acquire),
        1 => Just(What::AcquireByForce),
        3 => Just(What::Renew),
        1 => Just(What::RenewOld),
        1 => Just(What::Release),
        2 => (0..3usize).prop_map(|current| What::Record { current }),
        4 => (prop::bool::weighted(0.8), prop::bool::weighted(0.1))
            .prop_map(|(current, peer_outdated)| What::Enrol { current, peer_outdated }),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let wait_us = || {
        prop_oneof![
            0..2_000u64,
            0..60_000u64,
            900_000..1_100_000u64,
            0..9_000_000u64
        ]
    };
    let flight_us = prop_oneof![Just(0), 0..3_000u64, 0..2_000_000u64];
    let asked = (
        0..2usize,
        what(),
        0..3usize,
        flight_us,
        prop::bool::weighted(0.9),
    );
    prop_oneof![
        5 => wait_us().prop_map(|us| Action::Pass { us }),
        12 => asked.prop_map(|(party, what, lease, flight_us, stored)| {
            Action::Ask { party, what, lease, flight_us, stored }
        }),
        1 => any::<bool>().prop_map(|machine| Action::Restart { machine }),
        1 => Just(Action::LoseFile),
    ]
}

proptest! {
    /// With whatever was lost, late or restarted, and with clocks that drift.
    #[test]
    fn never_do_two_nodes_hold_a_right_at_once(
        rates_ppm in prop::array::uniform3(MILLION - DRIFT_PPM..=MILLION + DRIFT_PPM),
        actions in prop::collection::vec(action(), 1..120),
    ) {
        let mut world = World::new(rates_ppm);
        for action in &actions {
            world.act(action);
        }
    }
}
