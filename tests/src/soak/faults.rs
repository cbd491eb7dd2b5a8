//! What goes wrong, drawn from the seed, done to the bed, and mended again.

use std::time::Duration;

use agent::control::State;
use anyhow::Result;
use local_cluster::{Bed, Daemon, FAILING, GROUP, HEARTBEAT_TIMEOUT_MS, Net};
use local_pair::Side;
use mirror_core::control::{Connection, DiskState};

use crate::random::Random;

/// Well below every time-out of the bed.
const SHORT_FREEZE_MS: u64 = 600;
/// Longest wait until what a fault leads to is there.
const NOTICED_SECONDS_MAX: u64 = 120;

/// Whom it hits, by what it does when the fault comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Serving,
    Following,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    KillMirrord(Role),
    KillAgent(Role),
    PowerCut(Role),
    /// SIGSTOP for everything on a server, for longer than the heartbeat time-out.
    Freeze(Role),
    /// The same, for so short that nobody may mind.
    ShortFreeze(Role),
    /// The servers lose each other; both reach everybody else.
    Cut,
    CutOne(Net),
    /// What this server sends does not arrive; it hears.
    OneWayCut(Role),
    /// All cables of a server.
    Unplugged(Role),
    SlowLink,
    KillWitness,
    /// The server that follows goes down, comes back, and goes down again while it is brought up to date.
    ResyncInterrupted,
    /// Every operation of the data disk fails, until it is replaced.
    DataDiskFails(Role),
    /// The same of the one with the metadata, while something has to be recorded: that the group leaves, or what a resync
    /// begins with.
    MetadataDiskFails(Role),
    /// No write finds room on the data disk.
    DiskFull(Role),
    /// No operation of the data disk comes to an end for a while.
    DiskHangs(Role),
    Switchover,
    Verify,
}

/// Each with its weight. What a file system must not notice comes most often.
const ALL: [(Fault, u64); 30] = [
    (Fault::KillMirrord(Role::Serving), 2),
    (Fault::KillMirrord(Role::Following), 3),
    (Fault::KillAgent(Role::Serving), 3),
    (Fault::KillAgent(Role::Following), 3),
    (Fault::PowerCut(Role::Serving), 2),
    (Fault::PowerCut(Role::Following), 2),
    (Fault::Freeze(Role::Serving), 1),
    (Fault::Freeze(Role::Following), 2),
    (Fault::ShortFreeze(Role::Serving), 3),
    (Fault::ShortFreeze(Role::Following), 3),
    (Fault::Cut, 2),
    (Fault::CutOne(Net::Public), 3),
    (Fault::CutOne(Net::Interconnect), 3),
    (Fault::OneWayCut(Role::Serving), 2),
    (Fault::OneWayCut(Role::Following), 2),
    (Fault::Unplugged(Role::Serving), 1),
    (Fault::Unplugged(Role::Following), 2),
    (Fault::SlowLink, 2),
    (Fault::KillWitness, 3),
    (Fault::ResyncInterrupted, 2),
    (Fault::DataDiskFails(Role::Serving), 1),
    (Fault::DataDiskFails(Role::Following), 1),
    (Fault::MetadataDiskFails(Role::Serving), 1),
    (Fault::MetadataDiskFails(Role::Following), 1),
    (Fault::DiskFull(Role::Serving), 1),
    (Fault::DiskFull(Role::Following), 1),
    (Fault::DiskHangs(Role::Serving), 2),
    (Fault::DiskHangs(Role::Following), 2),
    (Fault::Switchover, 2),
    (Fault::Verify, 1),
];

impl Fault {
    pub fn kinds() -> impl Iterator<Item = String> {
        ALL.iter().map(|(fault, _)| fault.kind())
    }

    pub fn draw(random: &mut Random) -> Self {
        let all: u64 = ALL.iter().map(|(_, weight)| weight).sum();
        let mut at = random.below(all);
        for (fault, weight) in ALL {
            if at < weight {
                return fault;
            }
            at -= weight;
        }
        unreachable!("it is below the sum of the weights");
    }

    /// The same as it can be done now: only one server has disks that fail.
    pub fn at_hand(self, serving: Side) -> Self {
        let role = if serving == FAILING {
            Role::Serving
        } else {
            Role::Following
        };
        match self {
            Self::DataDiskFails(_) => Self::DataDiskFails(role),
            Self::MetadataDiskFails(_) => Self::MetadataDiskFails(role),
            Self::DiskFull(_) => Self::DiskFull(role),
            Self::DiskHangs(_) => Self::DiskHangs(role),
            _ => self,
        }
    }

    /// How long it lasts before it is mended.
    pub fn lasts(self, random: &mut Random) -> Duration {
        let ms = match self {
            Self::Freeze(_) => HEARTBEAT_TIMEOUT_MS + random.between(500, 2_500),
            Self::ShortFreeze(_) => random.between(50, SHORT_FREEZE_MS),
            Self::KillMirrord(_) | Self::KillAgent(_) | Self::KillWitness => {
                random.between(50, 1_500)
            }
            Self::Switchover | Self::Verify => 0,
            _ => random.skewed(100, 5_000),
        };
        Duration::from_millis(ms)
    }

    /// An operator does something that needs both servers, or one copy of the data is gone: nothing else may be.
    pub fn is_alone(self) -> bool {
        matches!(self, Self::Switchover | Self::Verify) || self.is_of_disk()
    }

    fn is_of_disk(self) -> bool {
        matches!(
            self,
            Self::DataDiskFails(_)
                | Self::MetadataDiskFails(_)
                | Self::DiskFull(_)
                | Self::DiskHangs(_)
        )
    }

    /// Whether service may leave its server, whose file system then sees errors. In all other cases a pause is
    /// all that it may see.
    pub fn may_move(self) -> bool {
        match self {
            Self::KillMirrord(role)
            | Self::PowerCut(role)
            | Self::Freeze(role)
            | Self::Unplugged(role)
            | Self::OneWayCut(role)
            // A server whose disk failed gives its group away; one whose disk is full says so to who writes.
            | Self::DataDiskFails(role)
            | Self::MetadataDiskFails(role)
            | Self::DiskFull(role) => role == Role::Serving,
            // Cut off from each other, the one that the witness hears first goes on.
            Self::Cut | Self::Switchover => true,
            Self::KillAgent(_)
            | Self::ShortFreeze(_)
            | Self::CutOne(_)
            | Self::SlowLink
            | Self::KillWitness
            | Self::ResyncInterrupted
            | Self::DiskHangs(_)
            | Self::Verify => false,
        }
    }

    /// The name of its kind, for the report.
    pub fn kind(self) -> String {
        let of = |what: &str, role: Role| match role {
            Role::Serving => format!("{what}, serving side"),
            Role::Following => format!("{what}, following side"),
        };
        match self {
            Self::KillMirrord(role) => of("kill -9 of mirrord", role),
            Self::KillAgent(role) => of("kill -9 of the agent", role),
            Self::PowerCut(role) => of("all processes and the kernel's state gone", role),
            Self::Freeze(role) => of("frozen past the time-outs", role),
            Self::ShortFreeze(role) => of("frozen for a moment", role),
            Self::Cut => "all networks between the servers cut".into(),
            Self::CutOne(Net::Public) => "the public network cut".into(),
            Self::CutOne(Net::Interconnect) => "the interconnect cut".into(),
            Self::OneWayCut(role) => of("what it sends is lost", role),
            Self::Unplugged(role) => of("all cables pulled", role),
            Self::SlowLink => "slow link".into(),
            Self::KillWitness => "kill -9 of the witness".into(),
            Self::ResyncInterrupted => "resync interrupted".into(),
            Self::DataDiskFails(role) => of("the data disk fails and is replaced", role),
            Self::MetadataDiskFails(role) => of("the metadata disk fails and is replaced", role),
            Self::DiskFull(role) => of("the data disk is full", role),
            Self::DiskHangs(role) => of("the data disk hangs", role),
            Self::Switchover => "planned switchover".into(),
            Self::Verify => "online verify".into(),
        }
    }
}

/// A fault that is there, and on which servers.
#[derive(Debug, Clone, Copy)]
pub struct Present {
    pub fault: Fault,
    side: Side,
}

fn side_of(fault: Fault, serving: Side) -> Side {
    match fault {
        Fault::KillMirrord(Role::Following)
        | Fault::KillAgent(Role::Following)
        | Fault::PowerCut(Role::Following)
        | Fault::Freeze(Role::Following)
        | Fault::ShortFreeze(Role::Following)
        | Fault::OneWayCut(Role::Following)
        | Fault::Unplugged(Role::Following)
        | Fault::ResyncInterrupted => serving.other(),
        _ if fault.is_of_disk() => FAILING,
        _ => serving,
    }
}

/// Of a slow link between the servers.
const SLOW_MBIT: u32 = 40;

/// Routes that take all for the other server away from what this one sends.
fn set_deaf(bed: &Bed, side: Side, deaf: bool) -> Result<()> {
    let word = if deaf { "add" } else { "del" };
    for net in Net::BOTH {
        let other = format!("{}/32", bed.address(side.other(), net));
        bed.run_on(side, &["ip", "route", word, "blackhole", &other])?;
    }
    Ok(())
}

impl Present {
    pub fn begin(fault: Fault, serving: Side, bed: &mut Bed) -> Result<Self> {
        let side = side_of(fault, serving);
        match fault {
            Fault::KillMirrord(_) => bed.kill(side, Daemon::Mirrord)?,
            Fault::KillAgent(_) => bed.kill(side, Daemon::Agent)?,
            Fault::PowerCut(_) | Fault::ResyncInterrupted => bed.cut_power(side)?,
            Fault::Freeze(_) | Fault::ShortFreeze(_) => bed.freeze(side)?,
            Fault::Cut => bed.cut()?,
            Fault::CutOne(net) => bed.cut_one(net)?,
            Fault::OneWayCut(_) => set_deaf(bed, side, true)?,
            Fault::Unplugged(_) => bed.set_links(side, false)?,
            Fault::SlowLink => {
                for side in Side::BOTH {
                    bed.shape(side, Net::Interconnect, Some(SLOW_MBIT))?;
                }
            }
            Fault::KillWitness => bed.kill_witness()?,
            Fault::DataDiskFails(_) => {
                bed.disks()?.data.fail()?;
                wait_noticed(bed)?;
            }
            Fault::MetadataDiskFails(Role::Serving) => {
                bed.disks()?.metadata.fail()?;
                // Whether it is told that it went well is up to how far it came here.
                let _ = bed.ctl(FAILING, &["switchover", GROUP]);
                wait_noticed(bed)?;
            }
            Fault::MetadataDiskFails(Role::Following) => {
                bed.disks()?.metadata.fail()?;
                bed.cut_one(Net::Interconnect)?;
                bed.until("the loss of the link", NOTICED_SECONDS_MAX, |bed| {
                    let there = bed.pair().status(FAILING.other())?;
                    Ok((there.connection != Connection::Connected).then_some(()))
                })?;
            }
            Fault::DiskFull(Role::Serving) => bed.disks()?.data.fill()?,
            Fault::DiskFull(Role::Following) => {
                bed.disks()?.data.fill()?;
                wait_noticed(bed)?;
            }
            Fault::DiskHangs(_) => bed.disks()?.data.hang()?,
            Fault::Switchover | Fault::Verify => {}
        }
        Ok(Self { fault, side })
    }

    /// What was taken away is there again. A server whose power a forced stop has cut meanwhile is switched on.
    pub fn end(self, bed: &mut Bed) -> Result<()> {
        let side = self.side;
        match self.fault {
            Fault::KillMirrord(_) => bed.start(side, Daemon::Mirrord)?,
            Fault::KillAgent(_) => bed.start(side, Daemon::Agent)?,
            Fault::PowerCut(_) => {
                bed.boot(side)?;
                bed.start_server(side)?;
            }
            Fault::ResyncInterrupted => {
                for last in [false, true] {
                    bed.boot(side)?;
                    bed.start_server(side)?;
                    if !last {
                        bed.cut_power(side)?;
                    }
                }
            }
            Fault::Freeze(_) | Fault::ShortFreeze(_) => bed.thaw(side)?,
            Fault::Cut | Fault::CutOne(_) => bed.heal()?,
            Fault::OneWayCut(_) => set_deaf(bed, side, false)?,
            Fault::Unplugged(_) => bed.set_links(side, true)?,
            Fault::SlowLink => {
                for side in Side::BOTH {
                    bed.shape(side, Net::Interconnect, None)?;
                }
            }
            Fault::KillWitness => bed.start_witness()?,
            Fault::DataDiskFails(_) | Fault::DiskFull(_) => {
                bed.disks()?.data.mend()?;
                replace_failed_disk(bed)?;
            }
            Fault::MetadataDiskFails(_) => {
                bed.heal()?;
                wait_noticed(bed)?;
                bed.disks()?.metadata.mend()?;
                replace_failed_disk(bed)?;
            }
            Fault::DiskHangs(_) => bed.disks()?.data.go_on()?,
            Fault::Switchover | Fault::Verify => {}
        }
        Ok(())
    }
}

/// The mirror says that its disk failed, or does not run without its metadata.
fn has_failed(bed: &Bed) -> bool {
    let status = bed.pair().status(FAILING);
    status.map_or(true, |status| status.disk == DiskState::Failed)
}

fn wait_noticed(bed: &mut Bed) -> Result<()> {
    bed.until("a word about the failed disk", NOTICED_SECONDS_MAX, |bed| {
        Ok(has_failed(bed).then_some(()))
    })
}

/// What an operator does, once the group has left the server of its own accord.
fn replace_failed_disk(bed: &mut Bed) -> Result<()> {
    if !has_failed(bed) {
        return Ok(());
    }
    let what = "service by the server whose disks are in order";
    bed.until(what, NOTICED_SECONDS_MAX, |bed| {
        Ok(is_online(bed, FAILING.other()).then_some(()))
    })?;
    bed.replace_disk(FAILING)
}

pub fn is_online(bed: &Bed, side: Side) -> bool {
    let group = bed.group(side).ok();
    group.is_some_and(|group| group.state == State::Online)
}
