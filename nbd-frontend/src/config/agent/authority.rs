//! `[forced_stop]` and `[arbiter]`: who may stop the other node, and who says which one goes on.

use std::path::PathBuf;
use std::time::Duration;

use mirror_core::volume::config::LeaseCheck;

use super::partition::located_or;
use super::{Arbiter, AwsAction, ForcedStop, ForcedStopKind, Heartbeat};
use crate::config::Machine;
use crate::config::by_node::{ByNode, Entry};
use crate::config::problem::{Collector, Located};
use crate::config::section::{Section, article, boolean, text};
use crate::config::value::{choice, choice_or, duration, instance, integer, path, url, value_or};

const STOP_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT_RANGE: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(3600)];
const STOP_RETRIES_RANGE: [u32; 2] = [0, 10];
/// A script returns when the node is down.
const STOP_WAIT_CUSTOM_DEFAULT: Duration = Duration::ZERO;
/// EC2 accepts at once and stops within a minute or two.
const STOP_WAIT_AWS_DEFAULT: Duration = Duration::from_secs(120);
const STOP_WAIT_RANGE: [Duration; 2] = [Duration::ZERO, Duration::from_secs(3600)];
const FENCE_DELAY_RANGE: [Duration; 2] = [Duration::ZERO, Duration::from_secs(7200)];
/// Heartbeat intervals by which the two nodes may notice a cut at different times, and one to spare.
const FENCE_DELAY_INTERVALS: u32 = 2;
/// A forced stop of EC2 that skips the guest's shutdown has been seen to take half a minute until it hit.
const STOP_HITS_AWS: Duration = Duration::from_secs(60);
const CHECK_INTERVAL_DEFAULT: Duration = Duration::from_secs(60);
const CHECK_INTERVAL_RANGE: [Duration; 2] =
    [Duration::from_millis(100), Duration::from_secs(86_400)];

const LEASE_DEFAULT: Duration = Duration::from_secs(10);
const LEASE_RANGE: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(600)];
/// Crystals stay within 100 ppm and a clock that is being corrected within 500.
const DRIFT_PPM_DEFAULT: u32 = 1000;
const DRIFT_PPM_RANGE: [u32; 2] = [1, 100_000];
const ARBITER_TIMEOUT_RANGE: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(60)];
/// A renewal and one more try must fit into a lease, with time left to freeze.
pub(super) const TIMEOUTS_IN_A_LEASE_MIN: u32 = 3;
/// The time-out where none is written, as a part of the lease.
const TIMEOUTS_IN_A_LEASE_DEFAULT: u32 = 5;

#[derive(Debug)]
pub struct DraftForcedStop {
    pub line: usize,
    pub kind: DraftStopKind,
    pub timeout: Duration,
    pub retries: u32,
    stop_wait: Option<Located<Duration>>,
    fence_delay: Option<Located<Duration>>,
    pub check_interval: Duration,
    pub failover_on_failure: Located<bool>,
}

#[derive(Debug)]
pub enum DraftStopKind {
    Custom {
        script: Option<Located<PathBuf>>,
    },
    Aws {
        instances: Option<ByNode<Located<String>>>,
        action: AwsAction,
        region: Option<String>,
        endpoint: Option<Located<String>>,
        profile: Option<String>,
    },
}

impl DraftForcedStop {
    pub fn read(root: &mut Section, problems: &mut Collector) -> Option<Self> {
        let mut section = root.section("forced_stop", "[forced_stop]", problems)?;
        let line = section.line;
        let kind = section.required("kind", "\"custom\"", problems, |value| {
            choice_or(value, &[("custom", "custom"), ("aws", "aws")], |_| {
                "for every other way to stop a node, write kind = \"custom\" and a script that takes it \
                 (docs/forced-stop.md has its contract)"
            })
        });
        let timeout = section.optional("timeout", problems, |value| {
            duration(value, STOP_TIMEOUT_RANGE)
        });
        let retries = section.optional("retries", problems, |value| {
            integer(value, STOP_RETRIES_RANGE)
        });
        let stop_wait = section.optional("stop_wait", problems, |value| {
            duration(value, STOP_WAIT_RANGE)
        });
        let fence_delay = section.optional("fence_delay", problems, |value| {
            duration(value, FENCE_DELAY_RANGE)
        });
        let check_interval = section.optional("check_interval", problems, |value| {
            duration(value, CHECK_INTERVAL_RANGE)
        });
        let failover_on_failure = section.optional("failover_on_failure", problems, boolean);
        let kind = match kind?.value {
            "custom" => DraftStopKind::Custom {
                script: section.required(
                    "script",
                    "\"/etc/mirror/forced-stop.sh\"",
                    problems,
                    path,
                ),
            },
            _ => read_aws(&mut section, problems),
        };
        section.refuse_unknown_keys(problems);
        if let (DraftStopKind::Aws { .. }, Some(wait)) = (&kind, &stop_wait)
            && wait.value.is_zero()
        {
            problems.add(
                Some(wait.line),
                "forced_stop stop_wait",
                "an instance is never down at the moment at which its stop is accepted, so no stop could be confirmed",
                "remove the key, or write what such an instance takes, as \"2m\"",
            );
        }
        Some(Self {
            line,
            kind,
            timeout: value_or(timeout, STOP_TIMEOUT_DEFAULT),
            retries: value_or(retries, 0),
            stop_wait,
            fence_delay,
            check_interval: value_or(check_interval, CHECK_INTERVAL_DEFAULT),
            failover_on_failure: located_or(failover_on_failure, false, line),
        })
    }

    pub fn stop_wait(&self) -> Duration {
        match (&self.stop_wait, &self.kind) {
            (Some(written), _) => written.value,
            (None, DraftStopKind::Custom { .. }) => STOP_WAIT_CUSTOM_DEFAULT,
            (None, DraftStopKind::Aws { .. }) => STOP_WAIT_AWS_DEFAULT,
        }
    }

    /// How long after its call a stop may still be about to hit. A script ends when the node is down.
    pub fn hits_within(&self) -> Duration {
        match self.kind {
            DraftStopKind::Custom { .. } => self.timeout,
            DraftStopKind::Aws { .. } => STOP_HITS_AWS,
        }
    }

    /// A head start that lets the first stop hit before the second is called for.
    pub fn fence_delay_safe(&self, heartbeat_interval: Duration) -> Duration {
        heartbeat_interval * FENCE_DELAY_INTERVALS + self.hits_within()
    }

    /// With the line of the key, or of the section where the key is absent. Of two nodes that lose each
    /// other an arbiter lets only one go as far as a stop, so that nothing has to hit first.
    pub fn fence_delay(&self, heartbeat_interval: Duration, arbiter: bool) -> Located<Duration> {
        let default = match arbiter {
            true => heartbeat_interval * FENCE_DELAY_INTERVALS,
            false => self.fence_delay_safe(heartbeat_interval),
        };
        located_or(self.fence_delay.clone(), default, self.line)
    }

    pub fn finish(
        self,
        nodes: &[String; 2],
        heartbeat: &Heartbeat,
        arbiter: bool,
    ) -> Option<ForcedStop> {
        let stop_wait = self.stop_wait();
        let fence_delay = self.fence_delay(heartbeat.interval, arbiter).value;
        let kind = match self.kind {
            DraftStopKind::Custom { script } => ForcedStopKind::Custom {
                script: script?.value,
            },
            DraftStopKind::Aws {
                instances,
                action,
                region,
                endpoint,
                profile,
            } => ForcedStopKind::Aws {
                instances: instances?.in_order(nodes)?.map(|instance| instance.value),
                action,
                region,
                endpoint: endpoint.map(|endpoint| endpoint.value),
                profile,
            },
        };
        Some(ForcedStop {
            kind,
            timeout: self.timeout,
            retries: self.retries,
            stop_wait,
            fence_delay,
            check_interval: self.check_interval,
            failover_on_failure: self.failover_on_failure.value,
        })
    }
}

fn read_aws(section: &mut Section, problems: &mut Collector) -> DraftStopKind {
    let action = section.optional("action", problems, |value| {
        let actions = [
            ("stop", AwsAction::Stop),
            ("terminate", AwsAction::Terminate),
        ];
        choice(value, &actions)
    });
    let word = |value: &toml::de::DeValue| Ok(text(value)?.to_owned());
    let region = section.optional("region", problems, word);
    let profile = section.optional("profile", problems, word);
    let lines = section.lines;
    let mut read = |entry: Entry, problems: &mut Collector| {
        let Some(table) = entry.value.as_table() else {
            problems.add(
                Some(entry.line),
                entry.title,
                format!("this is {} where a section belongs", article(entry.value)),
                "write it as [forced_stop.on.NODE] with its keys below",
            );
            return None;
        };
        let mut section = Section::new(entry.title, entry.line, lines, table);
        let example = "\"i-0123456789abcdef0\"";
        let found = section.required("instance", example, problems, instance);
        section.refuse_unknown_keys(problems);
        found
    };
    let example = "[forced_stop.on.NODE] with a line such as: instance = \"i-0123456789abcdef0\"";
    DraftStopKind::Aws {
        instances: ByNode::each_with(section, "on", example, problems, &mut read),
        action: value_or(action, AwsAction::Stop),
        region: region.map(|region| region.value),
        endpoint: section.optional("endpoint", problems, url),
        profile: profile.map(|profile| profile.value),
    }
}

#[derive(Debug)]
pub struct DraftArbiter {
    pub line: usize,
    pub url: Option<Located<String>>,
    pub lease: Located<Duration>,
    pub drift_ppm_max: u32,
    pub timeout: Option<Located<Duration>>,
    pub lease_check: Option<Located<LeaseCheck>>,
}

impl DraftArbiter {
    pub fn read(root: &mut Section, problems: &mut Collector) -> Option<Self> {
        let mut section = root.section("arbiter", "[arbiter]", problems)?;
        let line = section.line;
        let url = section.required("url", "\"http://10.5.0.9:29004\"", problems, url);
        let lease = section.optional("lease", problems, |value| duration(value, LEASE_RANGE));
        let drift_ppm_max = section.optional("drift_ppm_max", problems, |value| {
            integer(value, DRIFT_PPM_RANGE)
        });
        let timeout = section.optional("timeout", problems, |value| {
            duration(value, ARBITER_TIMEOUT_RANGE)
        });
        let lease_check = section.optional("lease_check", problems, |value| {
            let kinds = [
                ("round-trip", LeaseCheck::RoundTrip),
                ("clock", LeaseCheck::Clock),
            ];
            choice(value, &kinds)
        });
        section.refuse_unknown_keys(problems);
        Some(Self {
            line,
            url,
            lease: located_or(lease, LEASE_DEFAULT, line),
            drift_ppm_max: value_or(drift_ppm_max, DRIFT_PPM_DEFAULT),
            timeout,
            lease_check,
        })
    }

    pub fn lease_check(&self, machine: Machine) -> LeaseCheck {
        match (&self.lease_check, machine) {
            (Some(written), _) => written.value,
            (None, Machine::Virtual) => LeaseCheck::RoundTrip,
            (None, Machine::Physical) => LeaseCheck::Clock,
        }
    }

    pub fn timeout(&self) -> Duration {
        match &self.timeout {
            Some(written) => written.value,
            None => self.lease.value / TIMEOUTS_IN_A_LEASE_DEFAULT,
        }
    }

    pub fn finish(self, machine: Machine) -> Option<Arbiter> {
        Some(Arbiter {
            lease_check: self.lease_check(machine),
            timeout: self.timeout(),
            url: self.url?.value,
            lease: self.lease.value,
            drift_ppm_max: self.drift_ppm_max,
        })
    }
}
