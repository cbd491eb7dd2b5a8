//! Two machines with a mirror between them, a real `mirrord` on each, and the mirror as `/dev/nbd0` of the primary.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use local_pair::{Deadline, Side};

use crate::bed::{self, Bed, Machine, PATIENCE, Spec};

pub const MIB: usize = 1 << 20;
const METADATA_BYTES: usize = 16 * MIB;
const CONFIG: &str = "/etc/mirror/cluster.toml";
const COMMITS_ENDED: &str = "/run/commits.ended";
const KEY: &str = "/etc/mirror/cluster.key";
/// What `mirrorctl` waits for is waited for a little shorter than its end, so that it says what it saw instead.
pub const WAIT: &str = "9m";
/// What the load writes there when a commit is acknowledged: outside of all that loses its power.
const ACKNOWLEDGED: &str = "acknowledged ";
/// Whoever opens it last for the moment has it to itself for a moment.
const SQLITE: &str = r#"sqlite3 -cmd ".timeout 600000" /mnt/ledger"#;

#[derive(Debug, Clone)]
pub struct Options {
    pub memory_mib: u32,
    /// Starts the daemons, by their units.
    pub systemd: bool,
    pub data_bytes: usize,
    /// The data is a file of so many MiB on the disk, which can grow.
    pub file_mib: Option<u32>,
    /// All writes to the data disk go to a log of at most so many bytes as well, by `dm-log-writes`.
    pub write_log_bytes: Option<usize>,
    /// Lines for `[[mirror]]`.
    pub mirror: String,
    /// After all sections of the mirror.
    pub agent: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            memory_mib: 384,
            systemd: false,
            // Small: after a crash all that was written to lately is compared, by emulated processors.
            data_bytes: 64 * MIB,
            file_mib: None,
            write_log_bytes: None,
            mirror: String::new(),
            agent: String::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Daemon {
    Mirrord,
    Agent,
}

impl Daemon {
    pub fn program(self) -> &'static str {
        match self {
            Self::Mirrord => "mirrord",
            Self::Agent => "mirror-agent",
        }
    }

    /// As `init.sh` of `local-machines` names them to systemd.
    pub fn log(self) -> &'static str {
        match self {
            Self::Mirrord => "/run/mirrord.log",
            Self::Agent => "/run/mirror-agent.log",
        }
    }
}

#[derive(Debug)]
pub struct Servers {
    bed: Bed,
    systemd: bool,
    config: String,
    key: String,
}

impl Servers {
    /// Both on, connected and in step; the first is primary with its device attached.
    pub fn in_step(options: &Options) -> Result<Self> {
        let servers = Self::connected(options)?;
        servers.ctl(Side::First, "promote --force md1")?;
        servers.wait_synced()?;
        servers.wait_attached(Side::First)?;
        Ok(servers)
    }

    /// Both on, with fresh metadata, and `mirrord` on both.
    pub fn connected(options: &Options) -> Result<Self> {
        let mut disk_bytes = vec![options.data_bytes, METADATA_BYTES];
        disk_bytes.extend(options.write_log_bytes);
        let spec = Spec {
            memory_mib: options.memory_mib,
            systemd: options.systemd,
            disk_bytes,
        };
        let bed = bed::start(2, &spec)?;
        let key = bed.machines[0].run(&format!("mirrorctl keygen {KEY} >&2 && cat {KEY}"))?;
        // What keygen says comes before the key.
        let key = key.lines().last().context("keygen wrote a key")?.to_owned();
        let servers = Self {
            bed,
            systemd: options.systemd,
            config: config(options),
            key,
        };
        for side in Side::BOTH {
            servers.furnish(side)?;
            if let Some(mebibytes) = options.file_mib {
                let script = format!(
                    "mkfs.ext4 -q /dev/vdb && mkdir /srv && mount /dev/vdb /srv && fallocate -l {mebibytes}m /srv/data"
                );
                servers.machine(side).run(&script)?;
            }
            if options.write_log_bytes.is_some() {
                let script = "load-dm-log-writes && DM_DISABLE_UDEV=1 dmsetup create data \
                    --table \"0 $(blockdev --getsz /dev/vdb) log-writes /dev/vdb /dev/vdd\"";
                servers.machine(side).run(script)?;
            }
            servers.machine(side).run("mirrorctl init md1")?;
        }
        for side in Side::BOTH {
            servers.start_mirrord(side)?;
        }
        servers.ctl(
            Side::First,
            &format!("wait md1 --for connected --timeout {WAIT}"),
        )?;
        Ok(servers)
    }

    pub fn machine(&self, side: Side) -> &Machine {
        &self.bed.machines[side.index()]
    }

    pub fn machine_mut(&mut self, side: Side) -> &mut Machine {
        &mut self.bed.machines[side.index()]
    }

    /// What is on no disk of a machine.
    fn furnish(&self, side: Side) -> Result<()> {
        let machine = self.machine(side);
        machine.write(CONFIG, &self.config)?;
        machine.write(KEY, &self.key)?;
        machine.run(&format!("chmod 600 {KEY}; load-nbd nbds_max=2 max_part=0"))?;
        Ok(())
    }

    /// Switches on a machine that was off, with `mirrord`.
    pub fn boot(&mut self, side: Side) -> Result<()> {
        self.machine_mut(side).boot()?;
        self.furnish(side)?;
        self.start_mirrord(side)
    }

    /// Without waiting for an answer.
    pub fn spawn(&self, side: Side, daemon: Daemon) -> Result<()> {
        let (program, log) = (daemon.program(), daemon.log());
        let script = match self.systemd {
            true => format!("systemctl start --no-block {program}"),
            false => format!("ulimit -l unlimited; setsid {program} >>{log} 2>&1 &"),
        };
        self.machine(side).run(&script).map(drop)
    }

    pub fn start_mirrord(&self, side: Side) -> Result<()> {
        self.spawn(side, Daemon::Mirrord)?;
        self.wait_mirrord(side)
    }

    /// After it was killed: systemd does, if it has the machine.
    pub fn restart_mirrord(&self, side: Side) -> Result<()> {
        match self.systemd {
            true => Ok(()),
            false => self.spawn(side, Daemon::Mirrord),
        }
    }

    /// The device goes on for so many times now. Looking takes next to nothing of what the restart needs.
    pub fn wait_resumed(&self, side: Side, times: u32) -> Result<()> {
        let script = format!(
            "usleep 200000; [ $(grep -c 'nbd0 goes on' {}) = {times} ]",
            Daemon::Mirrord.log()
        );
        let resumed = self.machine(side).until("the device", &script);
        resumed.with_context(|| self.log(side)).map(drop)
    }

    fn wait_mirrord(&self, side: Side) -> Result<()> {
        let machine = self.machine(side);
        let answered = machine.until("the start of mirrord", "mirrorctl --json mdstat");
        answered.with_context(|| self.log(side)).map(drop)
    }

    /// A clean stop.
    pub fn stop_mirrord(&self, side: Side) -> Result<()> {
        let machine = self.machine(side);
        machine.run("kill $(pidof mirrord)")?;
        let gone = machine.until("the end of mirrord", "! pidof mirrord");
        gone.with_context(|| self.log(side)).map(drop)
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    /// For daemons that start after this.
    pub fn add_to_config(&mut self, sections: &str) -> Result<()> {
        self.config += sections;
        for side in Side::BOTH {
            self.machine(side).write(CONFIG, &self.config)?;
        }
        Ok(())
    }

    /// Kills `mirrord` while writes to the device are under way, and not before some more was written to it.
    pub fn kill_mirrord_at_work(&self, side: Side) -> Result<()> {
        let machine = self.machine(side);
        let written = machine.run("awk '{print $7}' /sys/block/nbd0/stat")?;
        let sectors = written.trim().parse::<u64>()? + 4096;
        let more = format!("[ $(awk '{{print $7}}' /sys/block/nbd0/stat) -gt {sectors} ]");
        let went_on = machine.until("more writes", &more);
        went_on.with_context(|| self.log(side))?;
        let kill = "read -r reads writes </sys/block/nbd0/inflight
            [ $writes -gt 0 ] && kill -9 $(pidof mirrord)";
        machine.until("writes under way", kill).map(drop)
    }

    /// Runs `mirrorctl` there, which must work.
    pub fn ctl(&self, side: Side, words: &str) -> Result<String> {
        let said = self.machine(side).run(&format!("mirrorctl {words}"));
        said.with_context(|| self.log(side))
    }

    /// Runs `mirrorctl` there, which must refuse and say so with these words.
    pub fn refused(&self, side: Side, words: &str, wanted: &[&str]) -> Result<()> {
        let ran = self.machine(side).try_run(&format!("mirrorctl {words}"))?;
        ran.refused(wanted)
            .with_context(|| self.log(side))
            .map(drop)
    }

    /// Promotes the side that is left, as soon as it misses the other one.
    pub fn take_over(&self, side: Side) -> Result<()> {
        let script = "mirrorctl promote --peer-down md1";
        let promoted = self.machine(side).until("the promotion", script);
        promoted.with_context(|| self.log(side)).map(drop)
    }

    pub fn wait_synced(&self) -> Result<()> {
        self.ctl(
            Side::First,
            &format!("wait md1 --for synced --timeout {WAIT}"),
        )
        .map(drop)
    }

    pub fn wait_attached(&self, side: Side) -> Result<()> {
        let script = "mirrorctl --json mdstat | grep -q '\"device\":\"/dev/nbd0\"'";
        let attached = self.machine(side).until("the device", script);
        attached.with_context(|| self.log(side)).map(drop)
    }

    pub fn log(&self, side: Side) -> String {
        let script = "tail -n 40 /run/mirrord.log; tail -n 5 /run/commits.log; dmesg | tail -n 15";
        let ran = self.machine(side).try_run(script);
        let said = ran.map_or_else(|error| format!("{error:#}"), |ran| ran.said);
        format!("-- {side:?} says last:\n{said}")
    }

    /// Nothing that the kernel reports of block devices and file systems.
    pub fn expect_no_errors(&self, side: Side) -> Result<()> {
        let script = "dmesg | grep -E 'I/O error|EXT4-fs (error|warning)|XFS.*(error|corrupt|shut)|Remounting|hung_task|blocked for more'";
        let ran = self.machine(side).try_run(script)?;
        ensure!(
            ran.code != 0,
            "the kernel reports: {}\n{}",
            ran.said,
            self.log(side)
        );
        Ok(())
    }

    /// Both sides hold the same, byte for byte. This one is primary.
    pub fn expect_equal(&self, side: Side) -> Result<()> {
        self.wait_synced()?;
        let said = self.ctl(side, &format!("verify md1 --timeout {WAIT}"))?;
        ensure!(said.contains("hold the same data"), "{said}");
        Ok(())
    }

    // ---- A data base with a ledger

    /// Commits transactions one after the other until one fails; what was acknowledged is told outside.
    pub fn start_commits(&self, side: Side) -> Result<()> {
        let script = format!(
            "{SQLITE} 'pragma journal_mode=wal; create table if not exists t (i integer primary key, filler blob)'
             rm -f {COMMITS_ENDED}
             setsid sh -c '
                i=$({SQLITE} \"select coalesce(max(i), 0) from t\")
                i=$((i + 1))
                while {SQLITE} \"pragma synchronous=full; insert into t values ($i, randomblob(20000))\"; do
                    echo {ACKNOWLEDGED}$i >/dev/ttyS0
                    i=$((i + 1))
                done
                touch {COMMITS_ENDED}' >/run/commits.log 2>&1 &
             # What nobody asks to be durable.
             setsid sh -c 'while dd if=/dev/urandom of=/mnt/noise bs=64k count=16 conv=notrunc oflag=direct; do
                usleep 300000; done' >/dev/null 2>&1 &"
        );
        self.machine(side).run(&script).map(drop)
    }

    /// So many of a machine's present start.
    pub fn wait_commits(&self, side: Side, count: usize) -> Result<()> {
        let found = Deadline::after(PATIENCE).until("acknowledged commits", || {
            Ok((self.acknowledged(side).len() >= count).then_some(()))
        });
        found.with_context(|| self.log(side))
    }

    /// Until one has failed. What was acknowledged is complete then: a commit may be durable for long before whoever
    /// made it can say so, because closing the data base waits for the mirror as well.
    pub fn wait_commits_end(&self, side: Side) -> Result<()> {
        let is_there = format!("test -e {COMMITS_ENDED}");
        let machine = self.machine(side);
        let ended = machine.until("the end of the commits", &is_there);
        ended.with_context(|| self.log(side)).map(drop)
    }

    /// Acknowledged since the machine was switched on.
    pub fn acknowledged(&self, side: Side) -> BTreeSet<u64> {
        let console = self.machine(side).console();
        let found = console.lines().filter_map(|line| {
            let (_, number) = line.split_once(ACKNOWLEDGED)?;
            number.trim().parse().ok()
        });
        found.collect()
    }

    /// The data base that is mounted there is in order and has all of these.
    pub fn expect_commits(&self, side: Side, acknowledged: &BTreeSet<u64>) -> Result<()> {
        let script = format!("{SQLITE} 'pragma integrity_check; select i from t'");
        let said = self.machine(side).run(&script)?;
        let mut lines = said.lines();
        ensure!(lines.next() == Some("ok"), "the data base: {said}");
        let found: BTreeSet<u64> = lines.filter_map(|line| line.parse().ok()).collect();
        let lost: Vec<_> = acknowledged.difference(&found).collect();
        ensure!(
            lost.is_empty(),
            "{} of {} acknowledged commits are lost on {side:?}: {lost:?}",
            lost.len(),
            acknowledged.len()
        );
        Ok(())
    }
}

fn config(options: &Options) -> String {
    let mut text = format!(
        r#"[cluster]
name = "vm"
key_file = "{KEY}"

[[node]]
name = "server1"
[[node]]
name = "server2"

[[mirror]]
name = "md1"
initial_sync = "sparse"
# Longer than a machine whose host is busy may stand still: a case that cuts nothing must lose nobody.
peer_timeout = "15s"
# An error here is one that the product made, not one that slow processors did.
device_timeout = "10m"
{}
"#,
        options.mirror
    );
    let data = match (options.file_mib, options.write_log_bytes) {
        (Some(_), _) => "/srv/data",
        (None, Some(_)) => "/dev/mapper/data",
        (None, None) => "/dev/vdb",
    };
    for number in [1, 2] {
        text += &format!(
            r#"
[mirror.on.server{number}]
data = "{data}"
metadata = "/dev/vdc"
replication = "10.77.0.{number}:29051"
device = "/dev/nbd0"
nbd = ["unix"]
"#
        );
    }
    text + &options.agent
}
