//! One monitor: when it is probed, and what its faults add up to. It knows no other monitor, and not why
//! it rests.

use crate::control::Health;

use super::{BACKSTOP_MARGIN_MS, FORGET_AFTER_MS, MonitorConfig};

/// What follows from an answer, or from none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Warn,
    Recovered,
    Restart,
    Failover,
    FinalAction,
}

#[derive(Debug, Clone, Copy)]
struct Probe {
    number: u64,
    /// Without an answer by then, a fault is counted.
    late_ms: u64,
    /// False once its answer tells nothing: it was asked before a rest or a pause, or was counted as a
    /// fault already.
    counts: bool,
}

#[derive(Debug)]
pub(super) struct Watch {
    pub config: MonitorConfig,
    awake: bool,
    probe: Option<Probe>,
    due_ms: u64,
    faults_in_row: u32,
    /// The latest fault of the row.
    reason: Option<String>,
    /// A warning was given and not taken back.
    warned: bool,
    restarts: u32,
    failovers: u32,
    /// The last action was asked for. Nothing is left until it is in order again.
    spent: bool,
    /// Of the first answer "in order" since the last fault or rest.
    in_order_since_ms: Option<u64>,
}

impl Watch {
    pub fn new(config: MonitorConfig) -> Self {
        Self {
            config,
            awake: false,
            probe: None,
            due_ms: 0,
            faults_in_row: 0,
            reason: None,
            warned: false,
            restarts: 0,
            failovers: 0,
            spent: false,
            in_order_since_ms: None,
        }
    }

    pub fn health(&self) -> Health {
        if !self.awake {
            Health::Unused
        } else if self.reason.is_none() {
            match self.in_order_since_ms {
                Some(_) => Health::Normal,
                None => Health::Unknown,
            }
        } else if self.spent || (!self.config.warn_only && self.is_beyond_retries()) {
            Health::Error
        } else {
            Health::Caution
        }
    }

    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    pub fn is_awake(&self) -> bool {
        self.awake
    }

    pub fn open_number(&self) -> Option<u64> {
        self.probe.map(|probe| probe.number)
    }

    /// The first probe comes one interval later: what just came up has time to settle. Not so the agent itself, whose
    /// last run may have left a watchdog that runs out.
    pub fn wake(&mut self, now_ms: u64) {
        self.awake = true;
        self.due_ms = match self.config.is_own {
            true => now_ms,
            false => now_ms.saturating_add(self.config.interval_ms),
        };
        self.put_off(now_ms);
    }

    /// Restarts and failovers stay counted: a restart is a rest, too.
    pub fn rest(&mut self) {
        self.awake = false;
        self.faults_in_row = 0;
        self.reason = None;
        self.spent = false;
        self.in_order_since_ms = None;
        if let Some(probe) = &mut self.probe {
            probe.counts = false;
        }
    }

    /// What is open tells nothing.
    pub fn ask_again(&mut self, now_ms: u64) {
        if let Some(probe) = &mut self.probe {
            probe.counts = false;
        }
        self.due_ms = now_ms;
        self.put_off(now_ms);
    }

    /// An old probe gets a whole time-out from now on to be answered.
    fn put_off(&mut self, now_ms: u64) {
        let late_ms = now_ms
            .saturating_add(self.config.timeout_ms)
            .saturating_add(BACKSTOP_MARGIN_MS);
        if let Some(probe) = &mut self.probe {
            probe.late_ms = late_ms;
        }
    }

    pub fn is_due(&self, now_ms: u64) -> bool {
        self.awake && self.probe.is_none() && now_ms >= self.due_ms
    }

    pub fn open(&mut self, now_ms: u64, number: u64) {
        let probe = Probe {
            number,
            late_ms: now_ms
                .saturating_add(self.config.timeout_ms)
                .saturating_add(BACKSTOP_MARGIN_MS),
            counts: true,
        };
        self.probe = Some(probe);
        // From now, not from when it was due: what was missed is not made up for.
        self.due_ms = now_ms.saturating_add(self.config.interval_ms);
    }

    pub fn on_answer(&mut self, now_ms: u64, result: Result<(), String>) -> Option<Verdict> {
        let counts = self.probe.take().is_some_and(|probe| probe.counts);
        if !counts || !self.awake {
            return None;
        }
        match result {
            Ok(()) => self.on_order(now_ms),
            Err(reason) => self.on_fault(reason),
        }
    }

    pub fn notice_silence(&mut self, now_ms: u64) -> Option<Verdict> {
        let interval_ms = self.config.interval_ms;
        let probe = self.probe.as_mut()?;
        if !self.awake || now_ms < probe.late_ms {
            return None;
        }
        probe.counts = false;
        probe.late_ms = now_ms.saturating_add(interval_ms);
        self.on_fault("the probe itself hangs".to_owned())
    }

    fn on_order(&mut self, now_ms: u64) -> Option<Verdict> {
        self.faults_in_row = 0;
        self.reason = None;
        self.spent = false;
        let since_ms = *self.in_order_since_ms.get_or_insert(now_ms);
        if now_ms.saturating_sub(since_ms) >= FORGET_AFTER_MS {
            self.restarts = 0;
            self.failovers = 0;
        }
        std::mem::take(&mut self.warned).then_some(Verdict::Recovered)
    }

    fn on_fault(&mut self, reason: String) -> Option<Verdict> {
        self.faults_in_row = self.faults_in_row.saturating_add(1);
        self.reason = Some(reason);
        self.in_order_since_ms = None;
        if !self.config.warn_only && self.is_beyond_retries() && !self.spent {
            self.warned = true;
            return Some(self.next_action());
        }
        let silent = std::mem::replace(&mut self.warned, true);
        (!silent).then_some(Verdict::Warn)
    }

    fn is_beyond_retries(&self) -> bool {
        self.faults_in_row > self.config.retries
    }

    /// What it leads to has its own row of faults.
    fn next_action(&mut self) -> Verdict {
        let has_group = self.config.group.is_some();
        if has_group && self.restarts < self.config.restarts_max {
            self.restarts += 1;
            self.faults_in_row = 0;
            Verdict::Restart
        } else if has_group && self.failovers < self.config.failovers_max {
            self.failovers += 1;
            self.faults_in_row = 0;
            Verdict::Failover
        } else {
            self.spent = true;
            Verdict::FinalAction
        }
    }

    pub fn check_invariants(&self) {
        assert!(self.restarts <= self.config.restarts_max);
        assert!(self.failovers <= self.config.failovers_max);
        assert!(self.in_order_since_ms.is_none() || self.faults_in_row == 0);
        assert!(self.awake || self.reason.is_none());
        assert!(!self.config.is_own || self.config.group.is_none());
    }
}
