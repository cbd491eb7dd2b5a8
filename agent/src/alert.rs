//! The alert log: every decision with its reason, under an id that scripts may rely on.
//!
//! `docs/operations/alerts.md` lists every id; an id is never used again for something else.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Info,
    Warning,
    Error,
}

/// The part of the agent that speaks, by the names that the field uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Module {
    /// Nodes and heartbeats.
    Nm,
    /// Network partitions.
    Np,
    /// Forced stop.
    Forcestop,
    /// Arbiter and leases.
    Arbiter,
    /// Groups and resources.
    Rc,
    /// Monitors.
    Rm,
    /// Mirrors.
    Mdadmn,
}

impl Level {
    /// As the text lines have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Info => "Info",
            Self::Warning => "Warning",
            Self::Error => "Error",
        }
    }
}

impl Module {
    /// As the text lines have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nm => "nm",
            Self::Np => "np",
            Self::Forcestop => "forcestop",
            Self::Arbiter => "arbiter",
            Self::Rc => "rc",
            Self::Rm => "rm",
            Self::Mdadmn => "mdadmn",
        }
    }
}

/// One line of the alert log, without its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    pub id: u16,
    pub level: Level,
    pub module: Module,
    pub message: String,
}

/// What an id stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    pub id: u16,
    pub level: Level,
    pub module: Module,
    pub meaning: &'static str,
}

impl Kind {
    pub fn with(self, message: impl Into<String>) -> Alert {
        Alert {
            id: self.id,
            level: self.level,
            module: self.module,
            message: message.into(),
        }
    }
}

macro_rules! kinds {
    ($($name:ident = $id:literal $level:ident $module:ident $meaning:literal;)*) => {
        $(pub const $name: Kind = Kind {
            id: $id,
            level: Level::$level,
            module: Module::$module,
            meaning: $meaning,
        };)*
        /// Every id there is, in order.
        pub const KINDS: &[Kind] = &[$($name),*];
    };
}

kinds! {
    NODE_STARTED = 1001 Info Nm "The agent of this node started.";
    NODE_STOPPING = 1002 Info Nm "The agent of this node stops on purpose.";
    PEER_UP = 1003 Info Nm "The other node is heard.";
    PEER_DOWN = 1004 Error Nm "The other node was not heard on any path for the heartbeat time-out.";
    PEER_LEFT = 1005 Info Nm "The other node said that it stops.";
    PATH_UP = 1006 Info Nm "A heartbeat path works.";
    PATH_DOWN = 1007 Warning Nm "A heartbeat path is silent.";
    BEAT_REFUSED = 1008 Warning Nm "A datagram on a heartbeat path was not taken for a heartbeat.";
    SAME_NAME = 1009 Error Nm "Two machines answer to the name of one node.";
    FROZEN = 1010 Error Nm "This node itself did not run for longer than the heartbeat time-out.";
    STARTUP_WAIT = 1011 Info Nm "The start-up delay began; no group starts before it ends.";
    STARTUP_DONE = 1012 Info Nm "The start-up delay is over.";
    STANDBY = 1013 Info Nm "A node was set to standby or to active.";
    CONFIG_DIFFERS = 1014 Warning Nm "The other node runs with another configuration.";
    AGENT_FAILED = 1015 Error Nm "The agent of this node ends with an error.";

    RESOLVER_UP = 1101 Info Np "A resolver's target answers.";
    RESOLVER_DOWN = 1102 Warning Np "A resolver's target does not answer.";
    ISOLATED = 1103 Error Np "This node is cut off: the other is silent and no target is reached.";
    ISOLATION_ENDED = 1104 Info Np "This node is no longer cut off.";
    ISOLATION_FINAL = 1105 Error Np "This node stays cut off: its groups stop.";
    FINAL_ACTION = 1106 Error Np "The configured action of last resort is taken.";
    BOTH_ACTIVE = 1107 Error Np "A group is active on both nodes.";
    MAY_BE_ACTIVE_TWICE = 1108 Warning Np "A group starts or goes on although nothing proves that it is down on the other node.";
    FINAL_ACTION_FAILED = 1109 Error Np "The configured action of last resort failed.";

    STOP_REQUESTED = 1201 Warning Forcestop "The forced stop of the other node is requested.";
    STOP_COMPLETED = 1202 Info Forcestop "The other node is confirmed to be down.";
    STOP_FAILED = 1203 Error Forcestop "The forced stop of the other node failed.";
    STOP_CHECK_FAILED = 1204 Warning Forcestop "A forced stop would not work at present.";
    STOP_CHECK_RECOVERED = 1205 Info Forcestop "A forced stop would work again.";

    ARBITER_UP = 1301 Info Arbiter "The arbiter answers.";
    ARBITER_DOWN = 1302 Warning Arbiter "The arbiter does not answer.";
    GRANTED = 1303 Info Arbiter "The arbiter granted an epoch and a lease.";
    GRANT_REFUSED = 1304 Warning Arbiter "The arbiter refused an epoch.";
    LEASE_LOST = 1305 Error Arbiter "The lease is lost: another node was granted a later epoch.";
    LEASE_LATE = 1306 Warning Arbiter "The lease ran out without being renewed: I/O waits.";
    ENROLLED = 1307 Info Arbiter "The arbiter took up a mirror of this cluster.";
    RECORDED = 1308 Info Arbiter "The arbiter recorded who holds current data.";

    GROUP_WAITS = 1401 Info Rc "A group does not start yet, and for whom or what it waits.";
    GROUP_STARTING = 1402 Info Rc "A group starts.";
    GROUP_STARTED = 1403 Info Rc "A group is online.";
    GROUP_START_FAILED = 1404 Error Rc "A group could not be started.";
    GROUP_STOPPING = 1405 Info Rc "A group stops.";
    GROUP_STOPPED = 1406 Info Rc "A group is offline.";
    GROUP_STOP_FAILED = 1407 Error Rc "A group could not be stopped.";
    FAILING_OVER = 1060 Info Rc "A group fails over to this node.";
    FAILED_OVER = 1061 Info Rc "A group failed over to this node.";
    FAILOVER_CANCELLED = 1408 Error Rc "A failover does not take place, and why.";
    FAILING_BACK = 1409 Info Rc "A group moves back to the node that it prefers.";
    SWITCHING_OVER = 1410 Info Rc "A group moves on an operator's word.";
    SWITCHED_OVER = 1411 Info Rc "A group moved on an operator's word, with the time without service.";
    RESOURCE_FAILED = 1412 Error Rc "A resource could not be started or stopped.";
    FAILOVER_LIMIT = 1413 Error Rc "A group failed over too often and stays where it is.";
    FAILURE_FORGOTTEN = 1414 Info Rc "A failed start, or a monitor's last action, is long ago: the group may start again.";
    GROUP_FORCED = 1415 Warning Rc "A group starts by force: what the other node has beyond the data here is given up.";

    MONITOR_WARNING = 1501 Warning Rm "A monitor found a fault.";
    MONITOR_RECOVERED = 1502 Info Rm "A monitor finds its target in order again.";
    MONITOR_ACTION = 1503 Error Rm "A monitor's retries are used up: what is done about it.";
    MONITORS_SUSPENDED = 1504 Info Rm "Monitors were suspended or resumed.";

    MIRROR_DISCONNECTED = 1601 Warning Mdadmn "A mirror lost its connection.";
    MIRROR_CONNECTED = 1602 Info Mdadmn "A mirror is connected.";
    MIRROR_AGE_UNKNOWN = 1603 Warning Mdadmn "Which side of a mirror is newer cannot be determined now.";
    MIRROR_SUSPENDED = 1604 Warning Mdadmn "A mirror holds its answers until the lost peer is known to be down.";
    MIRROR_SPLIT_BRAIN = 1605 Error Mdadmn "Both sides of a mirror were written to.";
    MIRROR_UNREACHABLE = 1606 Error Mdadmn "mirrord does not answer.";
    MIRROR_OUTDATED = 1607 Info Mdadmn "A side of a mirror recorded that it is outdated.";
    MIRROR_FROZEN = 1608 Warning Mdadmn "A mirror's I/O is frozen or released.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_is_used_once() {
        let mut ids: Vec<u16> = KINDS.iter().map(|kind| kind.id).collect();
        ids.sort_unstable();
        let count = ids.len();
        ids.dedup();
        assert_eq!(ids.len(), count);
    }
}
