//! Each row of the table in `docs/groups.md`.

use super::*;

const INTERVAL_MS: u64 = 1_000;
const TIMEOUT_MS: u64 = 400;
const GROUP: usize = 2;

fn config() -> MonitorConfig {
    MonitorConfig {
        name: "httpw1".into(),
        interval_ms: INTERVAL_MS,
        timeout_ms: TIMEOUT_MS,
        retries: 0,
        group: Some(GROUP),
        resource: Some(1),
        restarts_max: 1,
        failovers_max: 1,
        warn_only: false,
        is_own: false,
    }
}

/// Monitors whose probes are answered by hand.
struct Bench {
    monitors: Monitors,
    now_ms: u64,
    /// Numbers and monitors of open probes, and when each was asked.
    open: Vec<(u64, usize, u64)>,
    /// All but probes, since it was last taken.
    said: Vec<Effect>,
}

impl Bench {
    fn new(configs: Vec<MonitorConfig>) -> Self {
        Self {
            monitors: Monitors::new(configs),
            now_ms: 10_000,
            open: Vec::new(),
            said: Vec::new(),
        }
    }

    /// One monitor, whose group is online.
    fn awake(config: MonitorConfig) -> Self {
        let group = config.group;
        let mut bench = Self::new(vec![config]);
        if let Some(group) = group {
            bench.step(Event::GroupOnline { group });
        }
        bench
    }

    fn step(&mut self, event: Event) {
        let mut out = Vec::new();
        self.monitors.step(self.now_ms, event, &mut out);
        self.monitors.check_invariants();
        for effect in out {
            if let Effect::Probe {
                number,
                monitor,
                timeout_ms,
            } = effect
            {
                assert_eq!(timeout_ms, TIMEOUT_MS);
                let twice = self.open.iter().any(|(_, other, _)| *other == monitor);
                assert!(!twice, "{monitor} has a probe open already");
                self.open.push((number, monitor, self.now_ms));
            } else {
                self.said.push(effect);
            }
        }
    }

    fn wait(&mut self, span_ms: u64) {
        let end_ms = self.now_ms + span_ms;
        while self.now_ms < end_ms {
            self.now_ms += 100;
            self.step(Event::Tick);
        }
    }

    fn answer(&mut self, result: Result<(), &str>) {
        let (number, ..) = self.open.remove(0);
        let result = result.map_err(str::to_owned);
        self.step(Event::Probed { number, result });
    }

    /// Waits for the next probe and answers it.
    fn probe(&mut self, result: Result<(), &str>) {
        for _ in 0..20 {
            if !self.open.is_empty() {
                return self.answer(result);
            }
            self.wait(100);
        }
        panic!("no probe within two intervals");
    }

    fn said(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.said)
    }
}

fn warn() -> Effect {
    Effect::Warn {
        monitor: 0,
        reason: "500".into(),
    }
}

const RECOVERED: Effect = Effect::Recovered { monitor: 0 };

fn restart() -> Effect {
    Effect::Restart {
        monitor: 0,
        group: GROUP,
        resource: Some(1),
        reason: "500".into(),
    }
}

fn failover() -> Effect {
    Effect::Failover {
        monitor: 0,
        group: GROUP,
        reason: "500".into(),
    }
}

fn final_action() -> Effect {
    Effect::FinalAction {
        monitor: 0,
        reason: "500".into(),
    }
}

#[test]
fn what_follows_from_a_lasting_fault_in_every_configuration() {
    for bits in 0..2 * 2 * 3 * 3 * 3u32 {
        let config = MonitorConfig {
            warn_only: bits % 2 == 1,
            group: (bits / 2 % 2 == 1).then_some(GROUP),
            retries: bits / 4 % 3,
            restarts_max: bits / 12 % 3,
            failovers_max: bits / 36 % 3,
            ..config()
        };
        let rows: Vec<Effect> = match (config.warn_only, config.group) {
            (true, _) => vec![],
            (false, None) => vec![final_action()],
            (false, Some(_)) => {
                let restarts = (0..config.restarts_max).map(|_| restart());
                let failovers = (0..config.failovers_max).map(|_| failover());
                let last = [final_action()];
                restarts.chain(failovers).chain(last).collect()
            }
        };
        let mut bench = Bench::awake(config.clone());
        if config.warn_only {
            for _ in 0..10 {
                bench.probe(Err("500"));
            }
            assert_eq!(bench.said(), [warn()], "{config:?}");
        }
        for (row, action) in rows.into_iter().enumerate() {
            for retry in 0..config.retries {
                bench.probe(Err("500"));
                let first = row == 0 && retry == 0;
                let expected = if first { vec![warn()] } else { vec![] };
                assert_eq!(bench.said(), expected, "{config:?}");
            }
            bench.probe(Err("500"));
            assert_eq!(bench.said(), [action], "{config:?}");
        }
        for _ in 0..5 {
            bench.probe(Err("500"));
        }
        assert_eq!(bench.said(), [], "nothing is left: {config:?}");
        bench.probe(Ok(()));
        assert_eq!(bench.said(), [RECOVERED], "{config:?}");
    }
}

#[test]
fn only_faults_in_a_row_count() {
    let retries = 2;
    let mut bench = Bench::awake(MonitorConfig {
        retries,
        ..config()
    });
    for _ in 0..4 {
        bench.probe(Err("500"));
        bench.probe(Err("500"));
        bench.probe(Ok(()));
        assert_eq!(bench.said(), [warn(), RECOVERED]);
    }
}

#[test]
fn restarts_and_failovers_are_forgotten_after_a_time_in_order_and_not_before() {
    let after = |order_ms: u64| {
        let mut bench = Bench::awake(config());
        bench.probe(Err("500"));
        assert_eq!(bench.said(), [restart()]);
        bench.probe(Ok(()));
        let since_ms = bench.now_ms;
        while bench.now_ms - since_ms < order_ms {
            bench.probe(Ok(()));
        }
        bench.said();
        bench.probe(Err("500"));
        bench.said()
    };
    assert_eq!(after(FORGET_AFTER_MS - 3 * INTERVAL_MS), [failover()]);
    assert_eq!(after(FORGET_AFTER_MS + INTERVAL_MS), [restart()]);
}

#[test]
fn after_the_final_action_and_a_recovery_the_next_fault_leads_there_again() {
    let mut bench = Bench::awake(MonitorConfig {
        restarts_max: 0,
        failovers_max: 0,
        ..config()
    });
    bench.probe(Err("500"));
    bench.probe(Ok(()));
    bench.probe(Err("500"));
    assert_eq!(bench.said(), [final_action(), RECOVERED, final_action()]);
}

#[test]
fn monitors_of_a_group_rest_unless_it_is_online_here() {
    let mut bench = Bench::new(vec![
        config(),
        MonitorConfig {
            group: None,
            ..config()
        },
    ]);
    bench.step(Event::Tick);
    assert_eq!(bench.monitors.health(0), Health::Unused);
    assert_eq!(bench.monitors.health(1), Health::Unknown);
    bench.wait(INTERVAL_MS);
    assert_eq!(bench.open.len(), 1, "the one without a group");
    bench.answer(Ok(()));
    bench.step(Event::GroupOnline { group: GROUP });
    bench.wait(INTERVAL_MS);
    assert_eq!(bench.open.len(), 2);
    // What was asked before it left tells nothing about it after it came back.
    let of_group = bench.open.iter().position(|(_, monitor, _)| *monitor == 0);
    let (number, ..) = bench.open.remove(of_group.expect("it is awake"));
    bench.step(Event::GroupGone { group: GROUP });
    bench.step(Event::GroupOnline { group: GROUP });
    let result = Err("refused".into());
    bench.step(Event::Probed { number, result });
    assert_eq!(bench.said(), []);
    bench.step(Event::GroupGone { group: GROUP });
    bench.wait(10 * INTERVAL_MS);
    assert!(bench.open.iter().all(|(_, monitor, _)| *monitor == 1));
}

#[test]
fn counts_survive_the_rest_that_a_restart_is() {
    let mut bench = Bench::awake(config());
    bench.probe(Err("500"));
    bench.step(Event::GroupGone { group: GROUP });
    bench.wait(5_000);
    bench.step(Event::GroupOnline { group: GROUP });
    bench.probe(Err("500"));
    assert_eq!(bench.said(), [restart(), failover()]);
}

#[test]
fn while_suspended_nothing_is_asked_and_nothing_done() {
    let mut bench = Bench::awake(config());
    bench.wait(INTERVAL_MS);
    bench.step(Event::Suspend);
    assert!(bench.monitors.is_suspended());
    assert_eq!(bench.monitors.health(0), Health::Suspend);
    bench.answer(Err("500"));
    bench.wait(10 * INTERVAL_MS);
    assert_eq!((bench.open.len(), bench.said()), (0, vec![]));
    // What groups do meanwhile is not forgotten.
    bench.step(Event::GroupGone { group: GROUP });
    bench.step(Event::Resume);
    bench.wait(2 * INTERVAL_MS);
    assert!(bench.open.is_empty());
    bench.step(Event::GroupOnline { group: GROUP });
    bench.probe(Ok(()));
    assert_eq!(bench.monitors.health(0), Health::Normal);
}

#[test]
fn what_waits_for_a_mirror_that_holds_its_answers_is_no_fault() {
    let mut bench = Bench::awake(config());
    bench.wait(INTERVAL_MS);
    bench.step(Event::GroupHeld { group: GROUP });
    bench.wait(60 * INTERVAL_MS);
    assert_eq!(bench.monitors.health(0), Health::Suspend);
    // It hung as long as the mirror did, and then ran into its time-out.
    bench.answer(Err("no answer within 400 ms"));
    bench.step(Event::GroupReleased { group: GROUP });
    assert_eq!(bench.said(), []);
    bench.probe(Err("500"));
    assert_eq!(bench.said(), [restart()]);
}

#[test]
fn the_agent_s_own_monitor_begins_at_once_and_goes_on_while_the_others_are_suspended() {
    let own = MonitorConfig {
        group: None,
        resource: None,
        is_own: true,
        ..config()
    };
    let mut bench = Bench::awake(own);
    bench.step(Event::Suspend);
    assert_eq!(bench.open.len(), 1, "before any interval is over");
    bench.answer(Ok(()));
    for _ in 0..5 {
        bench.probe(Ok(()));
    }
    assert_eq!(bench.monitors.health(0), Health::Normal);
}

#[test]
fn a_probe_that_hangs_counts_as_a_fault_for_each_interval_and_is_not_doubled() {
    let mut bench = Bench::awake(MonitorConfig {
        retries: 1,
        ..config()
    });
    bench.wait(INTERVAL_MS);
    bench.wait(TIMEOUT_MS + BACKSTOP_MARGIN_MS - 100);
    assert_eq!(bench.said(), []);
    bench.wait(100);
    let hangs = || "the probe itself hangs".to_owned();
    let monitor = 0;
    let reason = hangs();
    assert_eq!(bench.said(), [Effect::Warn { monitor, reason }]);
    bench.wait(INTERVAL_MS);
    assert!(matches!(&bench.said()[..], [Effect::Restart { reason, .. }] if *reason == hangs()));
    assert_eq!(bench.open.len(), 1);
    // Its answer frees the place and tells nothing else.
    bench.answer(Err("500"));
    assert_eq!(bench.said(), []);
    bench.probe(Ok(()));
    assert_eq!(bench.said(), [RECOVERED]);
}

#[test]
fn a_pause_of_the_node_is_no_fault_and_makes_no_burst() {
    let mut bench = Bench::awake(config());
    bench.probe(Ok(()));
    bench.wait(INTERVAL_MS);
    bench.now_ms += 3_600_000;
    bench.step(Event::Tick);
    bench.answer(Err("timed out"));
    assert_eq!(bench.said(), []);
    assert_eq!(bench.monitors.health(0), Health::Normal);
    // It is asked again at once, and once.
    let asked: Vec<u64> = bench.open.iter().map(|(_, _, ms)| *ms).collect();
    assert_eq!(asked, [bench.now_ms]);
    bench.answer(Ok(()));
    bench.wait(INTERVAL_MS - 100);
    assert!(bench.open.is_empty());
    // The answer may also be what wakes it.
    bench.wait(100);
    bench.now_ms += 3_600_000;
    bench.answer(Err("timed out"));
    assert_eq!(bench.said(), []);
    bench.answer(Ok(()));
}

#[test]
fn a_probe_that_outlasts_its_interval_delays_the_next_one_only() {
    let mut bench = Bench::awake(config());
    bench.wait(INTERVAL_MS);
    bench.wait(2 * INTERVAL_MS);
    bench.answer(Ok(()));
    assert_eq!(bench.open.len(), 1, "the next one is due at once");
    bench.answer(Ok(()));
    assert!(
        bench.open.is_empty(),
        "and what was missed is not made up for"
    );
}

#[test]
fn health_tells_a_first_fault_from_a_lasting_one() {
    let mut bench = Bench::awake(MonitorConfig {
        retries: 1,
        restarts_max: 0,
        failovers_max: 0,
        ..config()
    });
    assert_eq!(bench.monitors.health(0), Health::Unknown);
    bench.probe(Ok(()));
    assert_eq!(bench.monitors.health(0), Health::Normal);
    bench.probe(Err("500"));
    assert_eq!(bench.monitors.health(0), Health::Caution);
    assert_eq!(bench.monitors.detail(0), Some("500"));
    bench.probe(Err("500"));
    assert_eq!(bench.monitors.health(0), Health::Error);
    bench.probe(Ok(()));
    assert_eq!(bench.monitors.detail(0), None);
}
