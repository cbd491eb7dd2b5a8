//! Each row of the table in `docs/groups.md`, and random groups with random drivers.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const START_TIMEOUT_MS: u64 = 1_000;
const STOP_TIMEOUT_MS: u64 = 2_000;
const START: Action = Action::Start;
const STOP: Action = Action::Stop { force: false };
const FORCED: Action = Action::Stop { force: true };

fn config(depends_on: &[&[usize]], start_retries: u32) -> GroupConfig {
    let resource = |(index, on): (usize, &&[usize])| ResourceConfig {
        name: format!("r{index}"),
        depends_on: on.to_vec(),
        start_timeout_ms: START_TIMEOUT_MS,
        stop_timeout_ms: STOP_TIMEOUT_MS,
        start_retries,
    };
    GroupConfig {
        name: "web".into(),
        resources: depends_on.iter().enumerate().map(resource).collect(),
    }
}

/// A group and what its driver has in hand.
struct Bench {
    group: Group,
    now_ms: u64,
    asked: BTreeMap<u64, (usize, Action)>,
    /// What was asked for and said in the last step.
    asked_now: Vec<(usize, Action)>,
    said: Vec<Effect>,
}

impl Bench {
    fn new(depends_on: &[&[usize]], start_retries: u32) -> Self {
        Self::of(config(depends_on, start_retries))
    }

    fn of(config: GroupConfig) -> Self {
        Self {
            group: Group::new(config),
            now_ms: 1_000,
            asked: BTreeMap::new(),
            asked_now: Vec::new(),
            said: Vec::new(),
        }
    }

    fn step(&mut self, event: Event) {
        let was_offline = self.group.state() == State::Offline;
        let is_start = event == Event::Start;
        let mut out = Vec::new();
        self.group.step(self.now_ms, event, &mut out);
        self.group.check_invariants();
        assert!(
            !was_offline || is_start || out.is_empty(),
            "an offline group asks for nothing: {out:?}"
        );
        self.asked_now.clear();
        self.said.clear();
        for effect in out {
            let Effect::Run {
                number,
                resource,
                action,
                timeout_ms,
            } = effect
            else {
                self.said.push(effect);
                continue;
            };
            assert_eq!(
                timeout_ms,
                match action {
                    Action::Start => START_TIMEOUT_MS,
                    Action::Stop { .. } => STOP_TIMEOUT_MS,
                }
            );
            self.asked_now.push((resource, action));
            assert_eq!(self.asked.insert(number, (resource, action)), None);
        }
        self.asked_now.sort_by_key(|(resource, _)| *resource);
    }

    /// Answers the oldest run of a resource that is not answered.
    fn answer(&mut self, resource: usize, action: Action, result: Result<(), &str>) {
        self.answer_with(resource, action, result.map_err(Failure::from));
    }

    fn answer_with(&mut self, resource: usize, action: Action, result: Result<(), Failure>) {
        let number = self
            .asked
            .iter()
            .find(|(_, asked)| **asked == (resource, action))
            .map(|(number, _)| *number)
            .unwrap_or_else(|| panic!("{action:?} of {resource} was not asked for"));
        self.asked.remove(&number);
        self.step(Event::Done { number, result });
    }

    fn wait(&mut self, span_ms: u64) {
        for _ in 0..span_ms / 100 {
            self.now_ms += 100;
            self.step(Event::Tick);
            if !self.asked_now.is_empty() || !self.said.is_empty() {
                return;
            }
        }
    }

    fn expect(&self, asked: &[(usize, Action)], said: &[Effect], state: State) {
        assert_eq!(self.asked_now, asked);
        assert_eq!(self.said, said);
        assert_eq!(self.group.state(), state);
    }

    /// Brings it up with a driver that always succeeds.
    fn bring_up(&mut self) {
        self.step(Event::Start);
        self.settle();
        assert_eq!(self.group.state(), State::Online);
    }

    /// Answers everything with success until nothing is asked for.
    fn settle(&mut self) {
        while let Some((_, (resource, action))) = self.asked.first_key_value() {
            let (resource, action) = (*resource, *action);
            self.answer(resource, action, Ok(()));
        }
    }
}

fn start_failed(resource: usize, reason: &str) -> Effect {
    let reason = reason.into();
    Effect::StartFailed { resource, reason }
}

fn stop_failed(resource: usize, reason: &str) -> Effect {
    let reason = reason.into();
    Effect::StopFailed { resource, reason }
}

const STOPPED: Effect = Effect::Stopped {
    after_failure: false,
};
const STOPPED_AFTER_FAILURE: Effect = Effect::Stopped {
    after_failure: true,
};

/// Disk; address and database on it; application on both.
const DIAMOND: &[&[usize]] = &[&[], &[0], &[0], &[1, 2]];

#[test]
fn it_starts_along_the_dependencies_and_stops_against_them() {
    let mut bench = Bench::new(DIAMOND, 0);
    assert_eq!(bench.group.state(), State::Offline);
    bench.step(Event::Start);
    bench.expect(&[(0, START)], &[], State::OnlinePending);
    bench.answer(0, START, Ok(()));
    bench.expect(&[(1, START), (2, START)], &[], State::OnlinePending);
    bench.answer(2, START, Ok(()));
    bench.expect(&[], &[], State::OnlinePending);
    bench.answer(1, START, Ok(()));
    bench.expect(&[(3, START)], &[], State::OnlinePending);
    bench.answer(3, START, Ok(()));
    bench.expect(&[], &[Effect::Started], State::Online);

    bench.step(Event::Stop { force: false });
    bench.expect(&[(3, STOP)], &[], State::OfflinePending);
    bench.answer(3, STOP, Ok(()));
    bench.expect(&[(1, STOP), (2, STOP)], &[], State::OfflinePending);
    bench.answer(1, STOP, Ok(()));
    bench.expect(&[], &[], State::OfflinePending);
    bench.answer(2, STOP, Ok(()));
    bench.expect(&[(0, STOP)], &[], State::OfflinePending);
    bench.answer(0, STOP, Ok(()));
    bench.expect(&[], &[STOPPED], State::Offline);
}

#[test]
fn orders_that_change_nothing_ask_for_nothing() {
    let mut bench = Bench::new(DIAMOND, 0);
    for event in [
        Event::Stop { force: true },
        Event::Restart { resource: 0 },
        Event::RestartAll,
    ] {
        bench.step(event);
        bench.expect(&[], &[], State::Offline);
    }
    bench.bring_up();
    bench.step(Event::Start);
    bench.expect(&[], &[], State::Online);
    bench.step(Event::Stop { force: false });
    bench.step(Event::Start);
    bench.expect(&[], &[], State::OfflinePending);
    bench.step(Event::Restart { resource: 3 });
    bench.expect(&[], &[], State::OfflinePending);
}

#[test]
fn a_start_is_tried_again_after_a_pause_and_as_often_as_configured() {
    let mut bench = Bench::new(&[&[]], 2);
    bench.step(Event::Start);
    for _ in 0..2 {
        bench.answer(0, START, Err("busy"));
        bench.expect(&[], &[], State::OnlinePending);
        assert_eq!(bench.group.resource_error(0), Some("busy"));
        let failed_ms = bench.now_ms;
        bench.wait(10_000);
        bench.expect(&[(0, START)], &[], State::OnlinePending);
        assert_eq!(bench.now_ms, failed_ms + RETRY_PAUSE_MS);
    }
    bench.answer(0, START, Err("busy"));
    bench.expect(
        &[(0, STOP)],
        &[start_failed(0, "busy")],
        State::OfflinePending,
    );
    bench.answer(0, STOP, Ok(()));
    bench.expect(&[], &[STOPPED_AFTER_FAILURE], State::Offline);
    assert_eq!(bench.group.resource_error(0), Some("busy"));
    bench.bring_up();
    assert_eq!(bench.group.resource_error(0), None);
}

#[test]
fn what_passes_costs_no_attempt_but_ends_after_a_while() {
    let mut bench = Bench::new(&[&[]], 1);
    let passing = || {
        Err(Failure {
            reason: "being copied".into(),
            passing: true,
        })
    };
    bench.step(Event::Start);
    let began_ms = bench.now_ms;
    for _ in 0..PASSING_MS_MAX / RETRY_PAUSE_MS {
        bench.answer_with(0, START, passing());
        bench.expect(&[], &[], State::OnlinePending);
        bench.wait(10_000);
        bench.expect(&[(0, START)], &[], State::OnlinePending);
    }
    assert_eq!(bench.now_ms, began_ms + PASSING_MS_MAX);
    // From now on it counts as any other failure: one retry is left.
    bench.answer_with(0, START, passing());
    bench.wait(10_000);
    bench.expect(&[(0, START)], &[], State::OnlinePending);
    bench.answer_with(0, START, passing());
    bench.expect(
        &[(0, STOP)],
        &[start_failed(0, "being copied")],
        State::OfflinePending,
    );
}

#[test]
fn a_failed_start_stops_all_that_had_started_and_waits_for_what_is_starting() {
    let mut bench = Bench::new(DIAMOND, 0);
    bench.step(Event::Start);
    bench.answer(0, START, Ok(()));
    bench.answer(1, START, Err("taken"));
    bench.expect(
        &[(1, STOP)],
        &[start_failed(1, "taken")],
        State::OfflinePending,
    );
    bench.answer(1, STOP, Ok(()));
    bench.expect(&[], &[], State::OfflinePending);
    // Its own failure is no news: the group is on its way down.
    bench.answer(2, START, Err("no database"));
    bench.expect(&[(2, STOP)], &[], State::OfflinePending);
    bench.answer(2, STOP, Ok(()));
    bench.expect(&[(0, STOP)], &[], State::OfflinePending);
    bench.answer(0, STOP, Ok(()));
    bench.expect(&[], &[STOPPED_AFTER_FAILURE], State::Offline);
}

#[test]
fn a_stop_during_the_start_lets_running_starts_end_first() {
    let mut bench = Bench::new(DIAMOND, 3);
    bench.step(Event::Start);
    bench.answer(0, START, Ok(()));
    bench.step(Event::Stop { force: false });
    bench.expect(&[], &[], State::OfflinePending);
    bench.answer(1, START, Ok(()));
    bench.expect(&[(1, STOP)], &[], State::OfflinePending);
    bench.answer(2, START, Err("interrupted"));
    bench.expect(&[(2, STOP)], &[], State::OfflinePending);
    bench.answer(1, STOP, Ok(()));
    bench.answer(2, STOP, Ok(()));
    bench.answer(0, STOP, Ok(()));
    bench.expect(&[], &[STOPPED], State::Offline);
}

#[test]
fn a_stop_between_two_attempts_ends_them() {
    let mut bench = Bench::new(&[&[]], 3);
    bench.step(Event::Start);
    bench.answer(0, START, Err("busy"));
    bench.step(Event::Stop { force: false });
    bench.expect(&[(0, STOP)], &[], State::OfflinePending);
    bench.answer(0, STOP, Ok(()));
    bench.expect(&[], &[STOPPED], State::Offline);
    bench.wait(2_000);
    bench.expect(&[], &[], State::Offline);
}

#[test]
fn a_stop_that_fails_is_forced_and_one_that_fails_forced_is_the_end() {
    let mut bench = Bench::new(DIAMOND, 0);
    bench.bring_up();
    bench.step(Event::Stop { force: false });
    bench.answer(3, STOP, Ok(()));
    bench.answer(1, STOP, Err("in use"));
    bench.expect(&[(1, FORCED)], &[], State::OfflinePending);
    bench.answer(1, FORCED, Err("in use still"));
    bench.expect(&[], &[stop_failed(1, "in use still")], State::Failed);
    // What does not carry it goes on stopping; what carries it stays.
    bench.answer(2, STOP, Ok(()));
    bench.expect(&[], &[], State::Failed);
    assert_eq!(
        bench.group.resource_states(),
        [State::Online, State::Failed, State::Offline, State::Offline]
    );
    // It never starts beside what is left.
    bench.step(Event::Start);
    let reason = "an earlier stop of it failed, and it may still run";
    bench.expect(
        &[],
        &[start_failed(1, reason), stop_failed(1, reason)],
        State::Failed,
    );
    bench.step(Event::Stop { force: true });
    bench.expect(&[(1, FORCED)], &[], State::OfflinePending);
    bench.answer(1, FORCED, Ok(()));
    bench.expect(&[(0, FORCED)], &[], State::OfflinePending);
    bench.answer(0, FORCED, Ok(()));
    bench.expect(&[], &[STOPPED], State::Offline);
    bench.bring_up();
}

#[test]
fn force_comes_into_a_running_stop_after_the_answer_to_what_runs() {
    let mut bench = Bench::new(&[&[], &[0]], 0);
    bench.bring_up();
    bench.step(Event::Stop { force: false });
    bench.step(Event::Stop { force: true });
    bench.expect(&[], &[], State::OfflinePending);
    bench.answer(1, STOP, Err("in use"));
    bench.expect(&[(1, FORCED)], &[], State::OfflinePending);
    bench.answer(1, FORCED, Ok(()));
    bench.expect(&[(0, FORCED)], &[], State::OfflinePending);
    bench.answer(0, FORCED, Ok(()));
    bench.expect(&[], &[STOPPED], State::Offline);
    bench.bring_up();
    bench.step(Event::Stop { force: false });
    bench.expect(&[(1, STOP)], &[], State::OfflinePending);
}

#[test]
fn a_restart_takes_the_dependents_along_and_nothing_else() {
    let mut bench = Bench::new(DIAMOND, 0);
    bench.bring_up();
    bench.step(Event::Restart { resource: 1 });
    bench.expect(&[(3, STOP)], &[], State::OnlinePending);
    bench.answer(3, STOP, Ok(()));
    bench.expect(&[(1, STOP)], &[], State::OnlinePending);
    bench.answer(1, STOP, Ok(()));
    bench.expect(&[(1, START)], &[], State::OnlinePending);
    bench.answer(1, START, Ok(()));
    bench.expect(&[(3, START)], &[], State::OnlinePending);
    bench.answer(3, START, Ok(()));
    bench.expect(&[], &[Effect::Started], State::Online);
    bench.step(Event::RestartAll);
    bench.settle();
    bench.expect(&[], &[Effect::Started], State::Online);
}

#[test]
fn a_restart_during_the_start_begins_once_what_is_starting_has_started() {
    let mut bench = Bench::new(&[&[], &[0]], 0);
    bench.step(Event::Start);
    bench.answer(0, START, Ok(()));
    bench.step(Event::Restart { resource: 0 });
    bench.expect(&[], &[], State::OnlinePending);
    bench.answer(1, START, Err("its disk went away"));
    bench.expect(&[(1, STOP)], &[], State::OnlinePending);
    bench.answer(1, STOP, Ok(()));
    bench.expect(&[(0, STOP)], &[], State::OnlinePending);
    bench.answer(0, STOP, Ok(()));
    bench.answer(0, START, Ok(()));
    bench.answer(1, START, Ok(()));
    bench.expect(&[], &[Effect::Started], State::Online);
}

#[test]
fn a_restart_that_does_not_start_stops_the_group() {
    let mut bench = Bench::new(&[&[], &[0]], 0);
    bench.bring_up();
    bench.step(Event::Restart { resource: 1 });
    bench.answer(1, STOP, Ok(()));
    bench.answer(1, START, Err("broken"));
    bench.expect(
        &[(1, STOP)],
        &[start_failed(1, "broken")],
        State::OfflinePending,
    );
    bench.answer(1, STOP, Ok(()));
    bench.answer(0, STOP, Ok(()));
    bench.expect(&[], &[STOPPED_AFTER_FAILURE], State::Offline);
}

#[test]
fn a_restart_that_does_not_stop_fails_the_group() {
    let mut bench = Bench::new(&[&[], &[0], &[]], 0);
    bench.bring_up();
    bench.step(Event::Restart { resource: 1 });
    bench.answer(1, STOP, Err("hangs"));
    bench.expect(&[(1, FORCED)], &[], State::OnlinePending);
    bench.answer(1, FORCED, Err("hangs"));
    bench.expect(&[(2, STOP)], &[stop_failed(1, "hangs")], State::Failed);
}

#[test]
fn a_stop_in_the_middle_of_a_restart_wins() {
    let mut bench = Bench::new(&[&[], &[0]], 0);
    bench.bring_up();
    bench.step(Event::RestartAll);
    bench.answer(1, STOP, Ok(()));
    bench.expect(&[(0, STOP)], &[], State::OnlinePending);
    bench.step(Event::Stop { force: false });
    bench.answer(0, STOP, Ok(()));
    bench.expect(&[], &[STOPPED], State::Offline);
}

#[test]
fn a_start_without_an_answer_is_stopped_and_not_tried_again() {
    let mut bench = Bench::new(&[&[]], 5);
    bench.step(Event::Start);
    let asked_ms = bench.now_ms;
    bench.wait(60_000);
    let reason = "its start was not answered in time";
    bench.expect(
        &[(0, STOP)],
        &[start_failed(0, reason)],
        State::OfflinePending,
    );
    assert_eq!(
        bench.now_ms - asked_ms,
        START_TIMEOUT_MS + BACKSTOP_MARGIN_MS
    );
    // The stop went through, but that start may still come to an end.
    bench.answer(0, STOP, Ok(()));
    bench.expect(&[], &[], State::OfflinePending);
    bench.answer(0, START, Err("too late"));
    bench.expect(&[(0, FORCED)], &[], State::OfflinePending);
    bench.answer(0, FORCED, Ok(()));
    bench.expect(&[], &[STOPPED_AFTER_FAILURE], State::Offline);
}

#[test]
fn a_start_that_ends_late_is_stopped() {
    let late_start = || {
        let mut bench = Bench::new(&[&[]], 0);
        bench.step(Event::Start);
        bench.wait(60_000);
        bench
    };
    // Before the stop is answered: that stop may have gone first.
    let mut bench = late_start();
    bench.answer(0, START, Ok(()));
    bench.expect(&[], &[], State::OfflinePending);
    bench.answer(0, STOP, Ok(()));
    bench.expect(&[(0, FORCED)], &[], State::OfflinePending);
    bench.answer(0, FORCED, Ok(()));
    bench.expect(&[], &[STOPPED_AFTER_FAILURE], State::Offline);
    // After it.
    let mut bench = late_start();
    bench.answer(0, STOP, Ok(()));
    bench.answer(0, START, Ok(()));
    bench.expect(&[(0, FORCED)], &[], State::OfflinePending);
    bench.answer(0, FORCED, Ok(()));
    bench.expect(&[], &[STOPPED_AFTER_FAILURE], State::Offline);
    // After the group was said to have failed.
    let mut bench = late_start();
    bench.answer(0, STOP, Ok(()));
    bench.wait(60_000);
    let reason = "it was stopped, but an earlier start or stop of it hangs";
    bench.expect(&[], &[stop_failed(0, reason)], State::Failed);
    bench.answer(0, START, Ok(()));
    bench.expect(&[(0, FORCED)], &[], State::OfflinePending);
    bench.answer(0, FORCED, Ok(()));
    bench.expect(&[], &[STOPPED_AFTER_FAILURE], State::Offline);
}

#[test]
fn a_stop_without_an_answer_is_forced_and_then_the_end() {
    let mut bench = Bench::new(&[&[]], 0);
    bench.bring_up();
    bench.step(Event::Stop { force: false });
    bench.wait(60_000);
    bench.expect(&[(0, FORCED)], &[], State::OfflinePending);
    bench.wait(60_000);
    let reason = "its stop was not answered in time";
    bench.expect(&[], &[stop_failed(0, reason)], State::Failed);
    bench.wait(60_000);
    bench.expect(&[], &[], State::Failed);
    // It moves again: another attempt, after which the rest of the answers is still waited for.
    bench.answer(0, STOP, Ok(()));
    bench.expect(&[(0, FORCED)], &[], State::OfflinePending);
    let (last, _) = bench.asked.pop_last().expect("it was just asked for");
    bench.step(Event::Done {
        number: last,
        result: Ok(()),
    });
    bench.expect(&[], &[], State::OfflinePending);
    bench.answer(0, FORCED, Err("killed"));
    bench.expect(&[], &[STOPPED], State::Offline);
}

#[test]
fn runs_that_nobody_answers_are_limited_in_number() {
    let mut bench = Bench::new(&[&[]], 0);
    bench.bring_up();
    for _ in 0..3 * OVERDUE_RUNS_MAX {
        bench.step(Event::Stop { force: false });
        bench.wait(60_000);
        bench.wait(60_000);
    }
    bench.expect(&[], &[], State::Failed);
    assert_eq!(bench.asked.len(), OVERDUE_RUNS_MAX);
}

#[test]
fn a_freeze_of_the_node_gives_drivers_time_to_hand_in_their_answers() {
    let mut bench = Bench::new(&[&[]], 0);
    bench.step(Event::Start);
    bench.now_ms += 3_600_000;
    bench.step(Event::Tick);
    bench.expect(&[], &[], State::OnlinePending);
    bench.answer(0, START, Ok(()));
    bench.expect(&[], &[Effect::Started], State::Online);
}

#[test]
fn answers_to_nothing_change_nothing() {
    let mut bench = Bench::new(&[&[]], 0);
    bench.step(Event::Start);
    let result = Err("never asked".into());
    bench.step(Event::Done { number: 77, result });
    bench.expect(&[], &[], State::OnlinePending);
    bench.settle();
    let result = Err("twice".into());
    bench.step(Event::Done { number: 1, result });
    bench.expect(&[], &[], State::Online);
}

#[test]
fn a_restarted_agent_takes_over_what_runs() {
    let mut bench = Bench::new(&[&[], &[0]], 0);
    bench.group.adopt(1_000, &[State::Online, State::Online]);
    bench.step(Event::Tick);
    bench.expect(&[], &[], State::Online);
    bench.step(Event::Stop { force: false });
    bench.settle();
    bench.expect(&[], &[STOPPED], State::Offline);
}

#[test]
fn what_was_found_in_part_is_left_until_told_and_then_completed_or_stopped() {
    use State::{Failed, Offline, Online};
    let found = |states: &[State]| {
        let mut bench = Bench::new(&[&[], &[0]], 0);
        bench.group.adopt(1_000, states);
        bench.step(Event::Tick);
        bench.expect(&[], &[], Failed);
        bench
    };
    let mut bench = found(&[Online, Offline]);
    bench.step(Event::Start);
    bench.expect(&[(1, START)], &[], State::OnlinePending);
    // What stands on nothing goes first.
    let mut bench = found(&[Offline, Online]);
    bench.step(Event::Start);
    bench.expect(&[(0, START), (1, STOP)], &[], State::OnlinePending);
    // As does what is in doubt, with all that stands on it.
    let mut bench = found(&[State::Unknown, Online]);
    bench.step(Event::Start);
    bench.expect(&[(1, STOP)], &[], State::OnlinePending);
    bench.answer(1, STOP, Ok(()));
    bench.expect(&[(0, STOP)], &[], State::OnlinePending);
    bench.settle();
    bench.expect(&[], &[Effect::Started], Online);
    let mut bench = found(&[Failed, Offline]);
    bench.step(Event::Stop { force: false });
    bench.expect(&[(0, STOP)], &[], State::OfflinePending);
    bench.settle();
    bench.expect(&[], &[STOPPED], Offline);
}

#[test]
fn a_group_of_nothing_is_online_when_told() {
    let mut bench = Bench::new(&[], 0);
    bench.group.adopt(1_000, &[]);
    bench.expect(&[], &[], State::Offline);
    bench.step(Event::Start);
    bench.expect(&[], &[Effect::Started], State::Online);
    bench.step(Event::RestartAll);
    bench.expect(&[], &[Effect::Started], State::Online);
    bench.step(Event::Stop { force: false });
    bench.expect(&[], &[STOPPED], State::Offline);
}

#[derive(Debug, Clone)]
enum Move {
    Order(Event),
    /// Answers one of the open runs.
    Answer {
        which: prop::sample::Index,
        succeeds: bool,
    },
    Wait {
        span_ms: u64,
    },
}

fn moves() -> impl Strategy<Value = Move> {
    let answer = || {
        (any::<prop::sample::Index>(), prop::bool::weighted(0.7))
            .prop_map(|(which, succeeds)| Move::Answer { which, succeeds })
    };
    prop_oneof![
        2 => Just(Move::Order(Event::Start)),
        2 => any::<bool>().prop_map(|force| Move::Order(Event::Stop { force })),
        1 => (0usize..6).prop_map(|resource| Move::Order(Event::Restart { resource })),
        1 => Just(Move::Order(Event::RestartAll)),
        10 => answer(),
        4 => (1u64..400).prop_map(|span_ms| Move::Wait { span_ms }),
        2 => (1_000u64..4_900).prop_map(|span_ms| Move::Wait { span_ms }),
    ]
}

fn graph() -> impl Strategy<Value = GroupConfig> {
    (prop::collection::vec(0u8..=255, 6), 0u32..3).prop_map(|(bits, retries)| {
        let on: Vec<Vec<usize>> = bits
            .iter()
            .enumerate()
            .map(|(index, bits)| (0..index).filter(|on| bits >> on & 1 == 1).collect())
            .collect();
        let on: Vec<&[usize]> = on.iter().map(Vec::as_slice).collect();
        config(&on, retries)
    })
}

/// What a resource really does, by the answers that it gave.
#[derive(Debug, Default)]
struct Truth {
    may_run: BTreeSet<usize>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn nothing_runs_unseen_and_every_group_comes_to_rest(
        config in graph(),
        found in prop::option::of(prop::collection::vec(0usize..3, 6)),
        moves in prop::collection::vec(moves(), 0..120),
    ) {
        let mut bench = Bench::of(config.clone());
        let mut truth = Truth::default();
        if let Some(found) = found {
            let states = [State::Offline, State::Online, State::Failed];
            let states: Vec<State> = found.iter().map(|which| states[*which]).collect();
            truth.may_run = (0..6).filter(|index| states[*index] != State::Offline).collect();
            bench.group.adopt(bench.now_ms, &states);
        }
        for a_move in moves {
            match a_move {
                Move::Order(event) => bench.step(event),
                Move::Answer { which, succeeds } if !bench.asked.is_empty() => {
                    let number = *bench.asked.keys().nth(which.index(bench.asked.len())).unwrap();
                    settle_one(&mut bench, &mut truth, number, succeeds);
                }
                Move::Answer { .. } => {}
                Move::Wait { span_ms } => {
                    bench.now_ms += span_ms;
                    bench.step(Event::Tick);
                }
            }
            check(&bench, &config, &mut truth);
        }
        // All is answered from here on: an order to stop, forced, ends with everything offline.
        bench.step(Event::Stop { force: true });
        check(&bench, &config, &mut truth);
        for _ in 0..100 {
            let Some(number) = bench.asked.keys().next().copied() else { break };
            settle_one(&mut bench, &mut truth, number, true);
            check(&bench, &config, &mut truth);
        }
        prop_assert_eq!(bench.group.state(), State::Offline, "{:?}", bench.group);
        prop_assert!(truth.may_run.is_empty());
        bench.bring_up();
    }
}

fn settle_one(bench: &mut Bench, truth: &mut Truth, number: u64, succeeds: bool) {
    let (resource, action) = bench.asked.remove(&number).expect("it is open");
    match action {
        Action::Start => drop(truth.may_run.insert(resource)),
        Action::Stop { .. } if succeeds => drop(truth.may_run.remove(&resource)),
        Action::Stop { .. } => {}
    }
    let result = if succeeds {
        Ok(())
    } else {
        Err("it failed".into())
    };
    bench.step(Event::Done { number, result });
}

fn check(bench: &Bench, config: &GroupConfig, truth: &mut Truth) {
    for (resource, action) in &bench.asked_now {
        let busy = |index: usize| bench.asked.values().any(|(which, _)| *which == index);
        match action {
            Action::Start => {
                for on in &config.resources[*resource].depends_on {
                    assert!(truth.may_run.contains(on), "{resource} started before {on}");
                    assert!(!busy(*on), "{resource} started while {on} moves");
                }
                let mine = bench.asked.values().filter(|(which, _)| which == resource);
                assert_eq!(mine.count(), 1, "{resource} started beside an older run");
            }
            Action::Stop { .. } => {
                for (index, other) in config.resources.iter().enumerate() {
                    if other.depends_on.contains(resource) {
                        assert!(
                            !truth.may_run.contains(&index),
                            "{resource} pulled from {index}"
                        );
                        assert!(!busy(index), "{resource} stopped while {index} moves");
                    }
                }
            }
        }
    }
    if bench.group.state() == State::Offline {
        assert!(truth.may_run.is_empty(), "{:?} run unseen", truth.may_run);
        assert!(bench.asked.is_empty(), "offline with runs in hand");
    }
    if bench.group.state() == State::Online {
        assert_eq!(truth.may_run.len(), config.resources.len());
    }
    let told_offline = bench
        .said
        .iter()
        .any(|effect| matches!(effect, Effect::Stopped { .. }));
    if told_offline {
        assert_eq!(bench.group.state(), State::Offline);
    }
}
