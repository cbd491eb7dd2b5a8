//! What a node says of itself in every heartbeat, in as few bytes as it takes. `docs/heartbeat.md` has
//! the layout. Groups and mirrors go by their place in the configuration, which both nodes share; the
//! digest tells where they do not.

use nbd_frontend::config::agent::BEAT_ITEMS_MAX;

use crate::control::State;

/// Longest text of an order's outcome, bytes.
pub const REASON_BYTES_MAX: usize = 200;
const FORMAT: u8 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Grows with every change, so that the other can say what it knows.
    pub version: u32,
    /// The version of the other's report that the sender knows.
    pub seen: u32,
    pub config_digest: u64,
    /// The start-up delay runs.
    pub starting: bool,
    pub standby: bool,
    /// Cut off, by its own judgement.
    pub isolated: bool,
    /// It is about to stop the other node, or doing so.
    pub fencing: bool,
    pub monitors_suspended: bool,
    pub groups: Vec<GroupReport>,
    pub mirrors: Vec<MirrorReport>,
    pub order: Option<Order>,
    pub outcome: Option<Outcome>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupReport {
    pub state: State,
    /// "It is yours": released here for the other to start.
    pub given: bool,
    /// It could be started here as far as its data goes.
    pub able: bool,
    /// An operator stopped it; it stays so on both nodes.
    pub stopped: bool,
    /// Its start failed here.
    pub failed: bool,
    /// The last action of a monitor stopped it here; it stays so on both nodes.
    pub halted: bool,
    /// Failovers that this node counts; 255 stands for more, too.
    pub failovers: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MirrorReport {
    /// The sender goes on without the receiver: asks it to record that it is outdated. Zero: no.
    pub outdate: u32,
    /// The receiver's request of this number is done.
    pub outdated: u32,
}

/// An operator's command that the other node has to carry out. One at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    pub number: u32,
    pub kind: OrderKind,
    pub group: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderKind {
    /// Give the group to the sender.
    Give,
    Stop,
    /// Forget that the group was stopped or failed.
    Clear,
    /// Stop the group and give up what this side wrote.
    Discard,
    Standby,
    Active,
    SuspendMonitors,
    ResumeMonitors,
}

const ORDER_KINDS: [OrderKind; 8] = [
    OrderKind::Give,
    OrderKind::Stop,
    OrderKind::Clear,
    OrderKind::Discard,
    OrderKind::Standby,
    OrderKind::Active,
    OrderKind::SuspendMonitors,
    OrderKind::ResumeMonitors,
];

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub number: u32,
    pub took_ms: u32,
    /// At most [`REASON_BYTES_MAX`].
    pub result: Result<(), String>,
}

const STATES: [State; 6] = [
    State::Offline,
    State::OnlinePending,
    State::Online,
    State::OfflinePending,
    State::Failed,
    State::Unknown,
];

impl Report {
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.groups.len() <= BEAT_ITEMS_MAX && self.mirrors.len() <= BEAT_ITEMS_MAX);
        let mut out = Vec::with_capacity(128);
        out.push(FORMAT);
        out.push(bits(&[
            self.starting,
            self.standby,
            self.isolated,
            self.fencing,
            self.monitors_suspended,
            self.order.is_some(),
            self.outcome.is_some(),
        ]));
        out.extend(self.version.to_le_bytes());
        out.extend(self.seen.to_le_bytes());
        out.extend(self.config_digest.to_le_bytes());
        out.push(self.groups.len() as u8);
        for group in &self.groups {
            out.push(index_of(&STATES, group.state));
            out.push(bits(&[
                group.given,
                group.able,
                group.stopped,
                group.failed,
                group.halted,
            ]));
            out.push(group.failovers);
        }
        out.push(self.mirrors.len() as u8);
        for mirror in &self.mirrors {
            out.extend(mirror.outdate.to_le_bytes());
            out.extend(mirror.outdated.to_le_bytes());
        }
        if let Some(order) = &self.order {
            out.extend(order.number.to_le_bytes());
            out.push(index_of(&ORDER_KINDS, order.kind));
            out.push(order.group);
        }
        if let Some(outcome) = &self.outcome {
            out.extend(outcome.number.to_le_bytes());
            out.extend(outcome.took_ms.to_le_bytes());
            let reason = outcome
                .result
                .as_ref()
                .err()
                .map_or("", |text| shorten(text));
            out.push(u8::from(outcome.result.is_ok()));
            out.push(reason.len() as u8);
            out.extend(reason.as_bytes());
        }
        out
    }

    /// `None` where it is not a report of this format. What a later version adds at the end is left.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        if reader.byte()? != FORMAT {
            return None;
        }
        let flags = reader.byte()?;
        let flag = |bit: u8| flags & (1 << bit) != 0;
        let mut report = Self {
            version: reader.u32()?,
            seen: reader.u32()?,
            config_digest: reader.u64()?,
            starting: flag(0),
            standby: flag(1),
            isolated: flag(2),
            fencing: flag(3),
            monitors_suspended: flag(4),
            ..Self::default()
        };
        for _ in 0..reader.count()? {
            let state = *STATES.get(usize::from(reader.byte()?))?;
            let flags = reader.byte()?;
            report.groups.push(GroupReport {
                state,
                given: flags & 1 != 0,
                able: flags & 2 != 0,
                stopped: flags & 4 != 0,
                failed: flags & 8 != 0,
                halted: flags & 16 != 0,
                failovers: reader.byte()?,
            });
        }
        for _ in 0..reader.count()? {
            report.mirrors.push(MirrorReport {
                outdate: reader.u32()?,
                outdated: reader.u32()?,
            });
        }
        if flag(5) {
            report.order = Some(Order {
                number: reader.u32()?,
                kind: *ORDER_KINDS.get(usize::from(reader.byte()?))?,
                group: reader.byte()?,
            });
        }
        if flag(6) {
            let (number, took_ms) = (reader.u32()?, reader.u32()?);
            let done = reader.byte()? != 0;
            let length = usize::from(reader.byte()?);
            if length > REASON_BYTES_MAX {
                return None;
            }
            let reason = std::str::from_utf8(reader.take(length)?).ok()?;
            report.outcome = Some(Outcome {
                number,
                took_ms,
                result: if done { Ok(()) } else { Err(reason.into()) },
            });
        }
        Some(report)
    }

    /// The same but for what only says how far the exchange has come.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let plain = |report: &Self| Self {
            version: 0,
            seen: 0,
            ..report.clone()
        };
        plain(self) == plain(other)
    }
}

fn shorten(text: &str) -> &str {
    let mut end = text.len().min(REASON_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn bits(flags: &[bool]) -> u8 {
    flags
        .iter()
        .enumerate()
        .fold(0, |bits, (bit, set)| bits | u8::from(*set) << bit)
}

fn index_of<T: PartialEq + Copy>(table: &[T], value: T) -> u8 {
    table
        .iter()
        .position(|entry| *entry == value)
        .expect("the table has every value") as u8
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn count(&mut self) -> Option<usize> {
        let count = usize::from(self.byte()?);
        (count <= BEAT_ITEMS_MAX).then_some(count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::membership::BODY_BYTES_MAX;

    fn full(items: usize) -> Report {
        Report {
            version: 7,
            seen: 6,
            config_digest: 99,
            starting: true,
            groups: vec![
                GroupReport {
                    state: State::OfflinePending,
                    given: true,
                    able: false,
                    stopped: true,
                    failed: false,
                    halted: true,
                    failovers: 7,
                };
                items
            ],
            mirrors: vec![
                MirrorReport {
                    outdate: 3,
                    outdated: 4,
                };
                items
            ],
            order: Some(Order {
                number: 8,
                kind: OrderKind::Discard,
                group: 1,
            }),
            outcome: Some(Outcome {
                number: 9,
                took_ms: 1500,
                result: Err("ä".repeat(REASON_BYTES_MAX)),
            }),
            ..Report::default()
        }
    }

    #[test]
    fn a_report_round_trips_and_fits_a_beat() {
        let mut report = full(BEAT_ITEMS_MAX);
        let bytes = report.encode();
        assert!(bytes.len() <= BODY_BYTES_MAX);
        report.outcome.as_mut().unwrap().result = Err("ä".repeat(REASON_BYTES_MAX / 2));
        assert_eq!(Report::decode(&bytes), Some(report));
    }

    #[test]
    fn a_reason_that_is_longer_than_any_that_is_sent_is_none() {
        let reason = "x".repeat(REASON_BYTES_MAX);
        let report = Report {
            outcome: Some(Outcome {
                number: 9,
                took_ms: 1500,
                result: Err(reason.clone()),
            }),
            ..Report::default()
        };
        let mut bytes = report.encode();
        assert_eq!(Report::decode(&bytes), Some(report));
        let length = bytes.len() - reason.len() - 1;
        bytes[length] += 1;
        bytes.push(b'x');
        assert_eq!(Report::decode(&bytes), None);
    }

    #[test]
    fn a_report_that_was_cut_short_is_none() {
        let bytes = full(2).encode();
        for length in 0..bytes.len() {
            assert_eq!(Report::decode(&bytes[..length]), None, "{length}");
        }
    }

    proptest! {
        #[test]
        fn noise_does_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Report::decode(&bytes);
        }
    }
}
