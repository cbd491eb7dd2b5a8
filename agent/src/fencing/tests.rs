use std::collections::HashMap;
use std::time::Duration;

use super::*;
use crate::membership::Peer;

const DELAY: Duration = Duration::from_secs(5);

fn situations() -> Vec<Situation> {
    let peers = [Peer::Unknown, Peer::Up, Peer::Lost, Peer::Left];
    let mut all = Vec::new();
    for peer in peers {
        for bits in 0..1u32 << 9 {
            let bit = |n: u32| bits >> n & 1 == 1;
            all.push(Situation {
                peer,
                configured: bit(0),
                peer_down: bit(1),
                peer_group_fails_over: bit(2),
                peer_could_start: bit(3),
                starting_up: bit(4),
                owns_group: bit(5),
                isolated: bit(6),
                is_first_node: bit(7),
                answers_wait: bit(8),
            });
        }
    }
    all
}

/// The same decision, written as a table of patterns: `-` is any, and exactly one line fits.
/// Columns: peer, down, configured, isolated, starting up, group fails over here, could start one,
/// answers wait, owns a group, first node.
const TABLE: &[(&str, Plan)] = &[
    ("up   - - - - - - - - -", Plan::Never(WhyNot::PeerUp)),
    ("left - - - - - - - - -", Plan::Never(WhyNot::PeerLeft)),
    (
        "unknown - - - - - - - - -",
        Plan::Never(WhyNot::PeerNeverHeard),
    ),
    ("lost y - - - - - - - -", Plan::Never(WhyNot::PeerDown)),
    ("lost n n - - - - - - -", Plan::Never(WhyNot::NotConfigured)),
    ("lost n y y - - - - - -", Plan::Never(WhyNot::Isolated)),
    ("lost n y n y - - - - -", Plan::Never(WhyNot::StartingUp)),
    (
        "lost n y n n n n n - -",
        Plan::Never(WhyNot::NothingAtStake),
    ),
    ("lost n y n n n y - y -", Plan::Now),
    ("lost n y n n n n y y -", Plan::Now),
    ("lost n y n n y - - y y", Plan::Now),
    ("lost n y n n y - - y n", Plan::After(DELAY)),
    ("lost n y n n y - - n -", Plan::After(DELAY)),
    ("lost n y n n n y - n y", Plan::After(DELAY)),
    ("lost n y n n n n y n y", Plan::After(DELAY)),
    (
        "lost n y n n n y - n n",
        Plan::After(Duration::from_secs(2 * DELAY.as_secs())),
    ),
    (
        "lost n y n n n n y n n",
        Plan::After(Duration::from_secs(2 * DELAY.as_secs())),
    ),
];

fn fits(line: &str, situation: &Situation) -> bool {
    let peer = match situation.peer {
        Peer::Up => "up",
        Peer::Left => "left",
        Peer::Unknown => "unknown",
        Peer::Lost => "lost",
    };
    let flags = [
        situation.peer_down,
        situation.configured,
        situation.isolated,
        situation.starting_up,
        situation.peer_group_fails_over,
        situation.peer_could_start,
        situation.answers_wait,
        situation.owns_group,
        situation.is_first_node,
    ];
    let mut words = line.split_whitespace();
    words.next() == Some(peer)
        && words.zip(flags).all(|(word, flag)| match word {
            "y" => flag,
            "n" => !flag,
            _ => true,
        })
}

#[test]
fn every_situation_is_decided_by_exactly_one_line_of_the_table() {
    let mut used: HashMap<&str, u32> = HashMap::new();
    for situation in situations() {
        let lines: Vec<_> = TABLE
            .iter()
            .filter(|(line, _)| fits(line, &situation))
            .collect();
        assert_eq!(lines.len(), 1, "{situation:?}: {lines:?}");
        assert_eq!(plan(&situation, DELAY), lines[0].1, "{situation:?}");
        *used.entry(lines[0].0).or_default() += 1;
    }
    assert_eq!(used.len(), TABLE.len(), "a line decides nothing");
}

/// Two nodes that lost each other and see the same of themselves never act at the same moment.
#[test]
fn two_nodes_that_lost_each_other_never_stop_each_other_at_the_same_time() {
    for bits in 0..1u32 << 5 {
        let bit = |n: u32| bits >> n & 1 == 1;
        let (first_owns, second_owns) = (bit(0), bit(1));
        let side = |owns: bool, other_owns: bool, could_start: bool, first: bool| Situation {
            answers_wait: owns && bit(4),
            configured: true,
            peer: Peer::Lost,
            peer_down: false,
            peer_group_fails_over: other_owns,
            peer_could_start: could_start,
            starting_up: false,
            owns_group: owns,
            isolated: false,
            is_first_node: first,
        };
        let first = plan(&side(first_owns, second_owns, bit(2), true), DELAY);
        let second = plan(&side(second_owns, first_owns, bit(3), false), DELAY);
        let never = matches!(first, Plan::Never(_)) && matches!(second, Plan::Never(_));
        assert!(never || first != second, "{first:?} and {second:?}");

        // Nor where one or both come late, and however late.
        for late_ms in (0..200).map(|step| step * 700) {
            let silence = Duration::from_millis(late_ms);
            let since = |plan: Plan, is_late: bool| {
                let planned = match is_late {
                    true => in_next_round(plan, silence, DELAY),
                    false => plan,
                };
                let began = if is_late { silence } else { Duration::ZERO };
                match planned {
                    Plan::Now => Some(began),
                    Plan::After(delay) => Some(began + delay),
                    Plan::Never(_) => None,
                }
            };
            for (first_late, second_late) in [(true, true), (true, false), (false, true)] {
                let (Some(a), Some(b)) = (since(first, first_late), since(second, second_late))
                else {
                    continue;
                };
                assert!(
                    a.abs_diff(b) >= DELAY,
                    "{first:?} and {second:?}, late by {silence:?}: {a:?} and {b:?}"
                );
            }
        }
    }
}

const CONFIG: FencingConfig = FencingConfig {
    timeout_ms: 10_000,
    retries: 2,
    stop_wait_ms: 60_000,
    check_interval_ms: 0,
};

/// A machine with its clock.
struct Bench {
    fencing: Fencing,
    now_ms: u64,
}

impl Bench {
    fn new(config: FencingConfig) -> Self {
        Self {
            fencing: Fencing::new(config, 0),
            now_ms: 0,
        }
    }

    fn step(&mut self, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        self.fencing.step(self.now_ms, event, &mut out);
        out
    }

    fn tick_at(&mut self, now_ms: u64) -> Vec<Effect> {
        self.now_ms = now_ms;
        self.step(Event::Tick)
    }

    fn begin(&mut self) -> u64 {
        let effects = self.step(Event::Begin { after_ms: 0 });
        let [Effect::Stop { number }] = effects[..] else {
            panic!("{effects:?}");
        };
        number
    }

    fn answer(&mut self, number: u64, result: Result<Stopped, &str>) -> Vec<Effect> {
        let result = result.map_err(str::to_owned);
        self.step(Event::Answered { number, result })
    }

    fn answer_query(&mut self, number: u64, result: Result<bool, &str>) -> Vec<Effect> {
        let result = result.map_err(str::to_owned);
        self.step(Event::QueryAnswered { number, result })
    }
}

#[test]
fn a_confirmed_call_completes_the_stop() {
    let mut bench = Bench::new(CONFIG);
    let number = bench.begin();
    assert_eq!(bench.fencing.phase(), Phase::Calling);
    bench.now_ms = 700;
    assert_eq!(
        bench.answer(number, Ok(Stopped::Confirmed)),
        [Effect::Completed { took_ms: 700 }]
    );
    assert_eq!(bench.fencing.phase(), Phase::Idle);
    assert_eq!(*bench.fencing.health(), Health::Works);
}

#[test]
fn an_accepted_stop_is_asked_about_until_it_is_down() {
    let mut bench = Bench::new(CONFIG);
    let number = bench.begin();
    let effects = bench.answer(number, Ok(Stopped::Accepted));
    assert_eq!(effects, [Effect::Query { number: 2 }]);
    assert_eq!(bench.answer_query(2, Ok(false)), []);
    assert_eq!(bench.tick_at(999), []);
    assert_eq!(bench.tick_at(1000), [Effect::Query { number: 3 }]);
    // A question that failed says nothing about the node.
    assert_eq!(bench.answer_query(3, Err("throttled")), []);
    assert_eq!(bench.tick_at(2000), [Effect::Query { number: 4 }]);
    assert_eq!(
        bench.answer_query(4, Ok(true)),
        [Effect::Completed { took_ms: 2000 }]
    );
}

#[test]
fn a_stop_that_is_accepted_but_never_confirmed_fails_when_the_wait_is_over() {
    let mut bench = Bench::new(CONFIG);
    let number = bench.begin();
    bench.answer(number, Ok(Stopped::Accepted));
    let mut ended = None;
    for now_ms in (0..=CONFIG.longest_ms()).step_by(100) {
        for effect in bench.tick_at(now_ms) {
            match effect {
                Effect::Query { number } => {
                    bench.answer_query(number, Ok(false));
                }
                Effect::Failed { reason } => ended = Some((now_ms, reason)),
                _ => {}
            }
        }
    }
    let (at_ms, reason) = ended.unwrap();
    assert_eq!(at_ms, CONFIG.stop_wait_ms);
    assert!(reason.contains("not down after 60000 ms"), "{reason}");
}

#[test]
fn a_question_without_an_answer_is_put_again() {
    let mut bench = Bench::new(CONFIG);
    let number = bench.begin();
    bench.answer(number, Ok(Stopped::Accepted));
    assert_eq!(bench.tick_at(9_999), []);
    assert_eq!(bench.tick_at(10_000), [Effect::Query { number: 3 }]);
    // The answer to the first one still counts, if it is a yes.
    assert_eq!(bench.answer_query(2, Ok(false)), []);
    assert_eq!(
        bench.answer_query(2, Ok(true)),
        [Effect::Completed { took_ms: 10_000 }]
    );
}

#[test]
fn a_failed_attempt_is_repeated_after_a_pause_and_the_last_reason_is_told() {
    let mut bench = Bench::new(CONFIG);
    let number = bench.begin();
    assert_eq!(bench.answer(number, Err("exit code 1")), []);
    assert_eq!(bench.tick_at(999), []);
    assert_eq!(bench.tick_at(1000), [Effect::Stop { number: 2 }]);
    bench.answer(2, Err("exit code 2"));
    assert_eq!(bench.tick_at(2000), [Effect::Stop { number: 3 }]);
    let effects = bench.answer(3, Err("exit code 3"));
    let reason = "exit code 3 (attempt 3 of 3)".to_owned();
    assert_eq!(
        effects,
        [
            Effect::Failed {
                reason: reason.clone()
            },
            Effect::HealthChanged {
                ok: false,
                reason: Some(reason)
            }
        ]
    );
}

#[test]
fn a_stop_that_nobody_answers_ends_within_its_bound() {
    let mut bench = Bench::new(CONFIG);
    let mut stops = 1;
    bench.begin();
    let mut failed_ms = None;
    for now_ms in (0..=CONFIG.longest_ms()).step_by(250) {
        for effect in bench.tick_at(now_ms) {
            match effect {
                Effect::Stop { .. } => stops += 1,
                Effect::Failed { .. } => failed_ms = Some(now_ms),
                _ => {}
            }
        }
    }
    assert_eq!(stops, 3);
    assert_eq!(failed_ms, Some(30_000));
}

#[test]
fn an_attempt_that_was_given_up_still_completes_the_stop_when_it_succeeds_late() {
    let mut bench = Bench::new(CONFIG);
    let first = bench.begin();
    assert_eq!(bench.tick_at(10_000), [Effect::Stop { number: 2 }]);
    assert_eq!(bench.answer(first, Err("killed")), []);
    assert_eq!(
        bench.answer(first, Ok(Stopped::Confirmed)),
        [Effect::Completed { took_ms: 10_000 }]
    );
}

#[test]
fn an_answer_to_an_earlier_forced_stop_does_not_complete_a_later_one() {
    let config = FencingConfig {
        retries: 0,
        ..CONFIG
    };
    let mut bench = Bench::new(config);
    let old = bench.begin();
    bench.tick_at(10_000);
    assert_eq!(bench.fencing.phase(), Phase::Idle);
    assert_eq!(bench.answer(old, Ok(Stopped::Confirmed)), []);
    bench.begin();
    assert_eq!(bench.answer(old, Ok(Stopped::Confirmed)), []);
    assert_eq!(bench.fencing.phase(), Phase::Calling);
}

#[test]
fn a_stop_that_waits_is_called_off_and_nothing_goes_out() {
    let mut bench = Bench::new(CONFIG);
    assert_eq!(bench.step(Event::Begin { after_ms: 5000 }), []);
    assert_eq!(bench.fencing.phase(), Phase::Waiting);
    assert_eq!(bench.tick_at(4999), []);
    assert_eq!(bench.step(Event::Cancel), [Effect::Cancelled]);
    assert_eq!(bench.tick_at(6000), []);
}

#[test]
fn a_stop_that_waits_goes_out_when_its_delay_is_over() {
    let mut bench = Bench::new(CONFIG);
    bench.step(Event::Begin { after_ms: 5000 });
    assert_eq!(bench.tick_at(5000), [Effect::Stop { number: 1 }]);
    // A second request meanwhile changes nothing.
    assert_eq!(bench.step(Event::Begin { after_ms: 0 }), []);
}

#[test]
fn a_call_that_went_out_is_seen_through_and_not_repeated_once_it_is_called_off() {
    let mut bench = Bench::new(CONFIG);
    let number = bench.begin();
    assert_eq!(bench.step(Event::Cancel), []);
    assert_eq!(bench.answer(number, Err("refused")), [Effect::Cancelled]);
    assert_eq!(bench.tick_at(20_000), []);

    let mut bench = Bench::new(CONFIG);
    let number = bench.begin();
    bench.step(Event::Cancel);
    assert_eq!(
        bench.answer(number, Ok(Stopped::Confirmed)),
        [Effect::Completed { took_ms: 0 }]
    );
}

#[test]
fn a_stop_is_called_off_in_the_pause_between_two_attempts() {
    let mut bench = Bench::new(CONFIG);
    let number = bench.begin();
    bench.answer(number, Err("refused"));
    assert_eq!(bench.step(Event::Cancel), [Effect::Cancelled]);
    assert_eq!(bench.tick_at(20_000), []);
}

#[test]
fn trials_come_at_their_interval_and_tell_only_changes() {
    let mut bench = Bench::new(FencingConfig {
        check_interval_ms: 30_000,
        ..CONFIG
    });
    let check = |bench: &mut Bench, number, result: Result<(), &str>| {
        let result = result.map_err(str::to_owned);
        bench.step(Event::CheckAnswered { number, result })
    };
    assert_eq!(bench.tick_at(0), [Effect::Check { number: 1 }]);
    assert_eq!(check(&mut bench, 1, Ok(())), []);
    assert_eq!(*bench.fencing.health(), Health::Works);
    assert_eq!(bench.tick_at(29_999), []);
    assert_eq!(bench.tick_at(30_000), [Effect::Check { number: 2 }]);
    let fails = |reason: &str| Effect::HealthChanged {
        ok: false,
        reason: Some(reason.into()),
    };
    assert_eq!(
        check(&mut bench, 2, Err("expired")),
        [fails("expired")],
        "a fault is told"
    );
    bench.tick_at(60_000);
    assert_eq!(check(&mut bench, 3, Err("expired")), [], "and told once");
    bench.tick_at(90_000);
    assert_eq!(
        check(&mut bench, 4, Ok(())),
        [Effect::HealthChanged {
            ok: true,
            reason: None
        }]
    );
    bench.tick_at(120_000);
    assert_eq!(
        bench.tick_at(130_000),
        [fails("no answer within 10000 ms")],
        "silence is a fault"
    );
    assert_eq!(check(&mut bench, 5, Ok(())), [], "and a late answer is old");
}

#[test]
fn no_trial_begins_while_a_stop_runs() {
    let mut bench = Bench::new(FencingConfig {
        check_interval_ms: 1000,
        ..CONFIG
    });
    bench.tick_at(0);
    bench.step(Event::CheckAnswered {
        number: 1,
        result: Ok(()),
    });
    bench.begin();
    assert_eq!(bench.tick_at(5000), []);
    assert_eq!(
        bench.answer(2, Ok(Stopped::Confirmed)),
        [
            Effect::Completed { took_ms: 5000 },
            Effect::Check { number: 3 }
        ]
    );
}
