//! Whether this node is cut off: what its resolvers say, asked after the other node fell silent.
//!
//! Targets are tried all the time, so that `status` shows their state; but only an answer to a question
//! that was put after the loss decides anything.

use nbd_frontend::config::agent::Need;

use super::config::ResolverConfig;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The rest of the world is reached, or nobody was to be asked.
    Reached,
    /// It is not.
    CutOff,
    Undecided,
}

/// What one resolver has said since the question was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Said {
    Nothing,
    Reached,
    Unreached,
}

/// `None` of them: nobody can say that this node is cut off.
pub fn verdict(need: Need, said: impl Iterator<Item = Said> + Clone) -> Verdict {
    let any = |wanted| said.clone().any(|said| said == wanted);
    if said.clone().next().is_none() {
        return Verdict::Reached;
    }
    match need {
        Need::Any if any(Said::Reached) => Verdict::Reached,
        Need::All if any(Said::Unreached) => Verdict::CutOff,
        _ if any(Said::Nothing) => Verdict::Undecided,
        Need::Any => Verdict::CutOff,
        Need::All => Verdict::Reached,
    }
}

/// A resolver's state for status and alerts.
#[derive(Debug, Clone)]
pub struct Resolver {
    pub config: ResolverConfig,
    outstanding: Option<(u64, u64)>,
    due_ms: u64,
    /// When the last answered question was put, and its answer.
    last: Option<(u64, Result<(), String>)>,
}

/// A resolver's state changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    None,
    Up,
    Down(String),
}

impl Resolver {
    pub fn new(config: ResolverConfig, now_ms: u64) -> Self {
        Self {
            config,
            outstanding: None,
            due_ms: now_ms,
            last: None,
        }
    }

    /// True if the target is to be tried now, under this number.
    pub fn ask(&mut self, now_ms: u64, number: u64) -> bool {
        // The driver answers within the time-out; this is the backstop for one that does not.
        let lost_ms = self.config.timeout_ms * 2 + 1_000;
        if self
            .outstanding
            .is_some_and(|(_, asked_ms)| now_ms.saturating_sub(asked_ms) < lost_ms)
            || now_ms < self.due_ms
        {
            return false;
        }
        self.outstanding = Some((number, now_ms));
        self.due_ms = now_ms + self.config.interval_ms;
        true
    }

    /// The next question does not wait for its interval.
    pub fn hurry(&mut self, now_ms: u64) {
        self.due_ms = now_ms;
    }

    pub fn on_answer(&mut self, number: u64, result: &Result<(), String>) -> Option<Change> {
        let (_, asked_ms) = self.outstanding.filter(|(asked, _)| *asked == number)?;
        self.outstanding = None;
        let was = self.last.as_ref().map(|(_, result)| result.is_ok());
        self.last = Some((asked_ms, result.clone()));
        Some(match result {
            Ok(()) if was == Some(false) => Change::Up,
            Err(reason) if was != Some(false) => Change::Down(reason.clone()),
            _ => Change::None,
        })
    }

    pub fn said_since(&self, since_ms: u64) -> Said {
        match &self.last {
            Some((asked_ms, result)) if *asked_ms >= since_ms => {
                if result.is_ok() {
                    Said::Reached
                } else {
                    Said::Unreached
                }
            }
            _ => Said::Nothing,
        }
    }

    pub fn last(&self) -> Option<&Result<(), String>> {
        self.last.as_ref().map(|(_, result)| result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_two_resolvers() {
        use Said::{Nothing as N, Reached as R, Unreached as U};
        use Verdict::{CutOff, Reached, Undecided};
        let table = [
            (N, N, Undecided, Undecided),
            (N, R, Reached, Undecided),
            (N, U, Undecided, CutOff),
            (R, R, Reached, Reached),
            (R, U, Reached, CutOff),
            (U, U, CutOff, CutOff),
        ];
        for (one, two, any, all) in table {
            for pair in [[one, two], [two, one]] {
                assert_eq!(verdict(Need::Any, pair.into_iter()), any, "{pair:?}");
                assert_eq!(verdict(Need::All, pair.into_iter()), all, "{pair:?}");
            }
        }
        for need in [Need::Any, Need::All] {
            assert_eq!(verdict(need, [].into_iter()), Reached);
        }
    }

    #[test]
    fn an_answer_from_before_the_loss_decides_nothing() {
        let config = ResolverConfig {
            name: "gateway".into(),
            kind: super::super::config::Reach::Ping,
            interval_ms: 100,
            timeout_ms: 50,
        };
        let mut resolver = Resolver::new(config, 0);
        assert!(resolver.ask(0, 1));
        assert!(!resolver.ask(10, 2), "one question at a time");
        assert_eq!(resolver.on_answer(1, &Ok(())), Some(Change::None));
        assert_eq!(resolver.said_since(1), Said::Nothing);
        resolver.hurry(20);
        assert!(resolver.ask(20, 3));
        assert_eq!(resolver.on_answer(1, &Ok(())), None, "an old number");
        let gone = Err("no answer".to_owned());
        assert_eq!(
            resolver.on_answer(3, &gone),
            Some(Change::Down("no answer".into()))
        );
        assert_eq!(resolver.said_since(20), Said::Unreached);
    }
}
