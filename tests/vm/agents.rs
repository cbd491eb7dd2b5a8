//! Whole clusters: agents on two machines, a witness on this host, and final actions that really end a machine.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use agent::control::{ClusterStatus, NodeState, State};
use anyhow::{Context, Result, ensure};
use local_pair::Side::{self, First, Second};
use local_pair::{Deadline, Programs};
use tempfile::TempDir;

use crate::bed::{Card, PATIENCE};
use crate::servers::{Daemon, Options, Servers};

const GROUP: &str = "failover1";
const LEASE_SECONDS: u64 = 30;
const HEARTBEAT_TIMEOUT_SECONDS: u64 = 30;
const EVERYBODY: [Card; 2] = [Card::Link, Card::Outside];

/// The witness, as a process of this host. Machines reach it at 10.0.2.2.
struct Witness {
    process: Child,
    folder: TempDir,
    port: String,
}

impl Witness {
    fn prepare() -> Result<(TempDir, String)> {
        // One that nobody has; machines know this host by one address only.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        Ok((tempfile::tempdir()?, port.to_string()))
    }

    fn start(folder: TempDir, port: String, key: &str) -> Result<Self> {
        let at = folder.path().display();
        let config = folder.path().join("witness.toml");
        let key_file = folder.path().join("key");
        fs::write(&key_file, format!("{key}\n"))?;
        fs::set_permissions(
            &key_file,
            std::os::unix::fs::PermissionsExt::from_mode(0o600),
        )?;
        fs::write(
            &config,
            format!(
                "listen = \"127.0.0.1:{port}\"\nstate_file = \"{at}/state\"\n\n\
                 [[cluster]]\nname = \"vm\"\nkey_file = \"{at}/key\"\n"
            ),
        )?;
        let log = File::create(folder.path().join("log"))?;
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(Programs::fresh()?.mirror_witness)
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("cannot start the witness")?;
        Ok(Self {
            process,
            folder,
            port,
        })
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const WITNESS: &str = r#"
listen = "127.0.0.1:7791"
state_file = "/var/lib/mirror-witness/state"
[[cluster]]
name = "vm"
key_file = "/etc/mirror/witness.key"
"#;
/// Who speaks last where systemd gets as far as the end.
const IN_ORDER: &str = "systemd-shutdown";
const STUBBORN: &str = r#"
[Service]
ExecStart=/bin/sh -c "trap '' TERM; while :; do sleep 1; done"
TimeoutStopSec=infinity
"#;

#[derive(Debug, Clone, Copy)]
struct Setting {
    /// What an isolated server does.
    action: &'static str,
    systemd: bool,
    heartbeat_timeout_seconds: u64,
    /// Sections of the configuration.
    monitors: &'static str,
}

const STALL: &str = r#"
[[monitor]]
kind = "stall"
name = "stall"
watchdog = "/dev/watchdog"
"#;

impl Setting {
    fn with(action: &'static str) -> Self {
        Self {
            action,
            systemd: false,
            heartbeat_timeout_seconds: HEARTBEAT_TIMEOUT_SECONDS,
            monitors: "",
        }
    }
}

fn sections(port: &str, setting: Setting) -> String {
    let Setting {
        action,
        heartbeat_timeout_seconds,
        monitors,
        ..
    } = setting;
    format!(
        r#"
[agent]
alert_log = "/run/alert.log"

[heartbeat]
interval = "500ms"
timeout = "{heartbeat_timeout_seconds}s"

[[heartbeat.path]]
name = "interconnect"
on = {{ server1 = "10.77.0.1:29002", server2 = "10.77.0.2:29002" }}

[partition]
isolation_timeout = "3s"
action = "{action}"

[[partition.resolver]]
kind = "witness"

[arbiter]
url = "http://10.0.2.2:{port}"
lease = "{LEASE_SECONDS}s"
timeout = "10s"

[[group]]
name = "{GROUP}"
final_action = "none"

[[group.resource]]
kind = "mirror-disk"
name = "disk"
mirror = "md1"
attach = "kernel"
mount = "/mnt"
start_timeout = "10m"
stop_timeout = "5m"
fsck_timeout = "10m"
unmount_interval = "500ms"
{monitors}"#
    )
}

struct Cluster {
    // Before the machines: what they ask is of no more use.
    witness: Witness,
    servers: Servers,
}

impl Cluster {
    /// The group runs on the first server, with a data base at work on it.
    fn at_work(setting: Setting) -> Result<Self> {
        let (folder, port) = Witness::prepare()?;
        let mut servers = Servers::in_step(&Options {
            mirror: "peer_loss = \"hold\"".into(),
            systemd: setting.systemd,
            ..Options::default()
        })?;
        // As an operator does it once, before the agents' time.
        servers.machine(First).run("mkfs.ext4 -q /dev/nbd0")?;
        servers.ctl(First, "demote md1")?;
        for side in Side::BOTH {
            servers.stop_mirrord(side)?;
        }
        let witness = Witness::start(folder, port, servers.key())?;
        servers.add_to_config(&sections(&witness.port, setting))?;
        for side in Side::BOTH {
            servers.machine(side).run("load-softdog")?;
            servers.start_mirrord(side)?;
            servers.spawn(side, Daemon::Agent)?;
        }
        let cluster = Self { witness, servers };
        cluster.wait_online(First)?;
        cluster.servers.start_commits(First)?;
        cluster.servers.wait_commits(First, 5)?;
        Ok(cluster)
    }

    fn wait_online(&self, side: Side) -> Result<()> {
        self.wait_status(side, "the group", |status| group(status) == State::Online)
    }

    /// Until the agent of that side answers, and this holds.
    fn wait_status(
        &self,
        side: Side,
        what: &str,
        holds: impl Fn(&ClusterStatus) -> bool,
    ) -> Result<()> {
        let found = Deadline::after(PATIENCE).until(what, || {
            let status = self.status(side)?;
            Ok(status.filter(|status| holds(status)).map(drop))
        });
        found.with_context(|| self.story(side))
    }

    /// Nothing if the agent of that side does not answer.
    fn status(&self, side: Side) -> Result<Option<ClusterStatus>> {
        let machine = self.servers.machine(side);
        let ran = machine.try_run("mirrorctl --json status 2>/dev/null")?;
        Ok(serde_json::from_str(&ran.said).ok())
    }

    /// The first server has taken its mirror back.
    fn wait_retreat(&self) -> Result<()> {
        let gone = "mirrorctl --json mdstat | grep -q '\"role\":\"secondary\"'";
        let machine = self.servers.machine(First);
        let found = machine.until("the first server's retreat", gone);
        found.with_context(|| self.story(First)).map(drop)
    }

    /// After the second server was behind. Until then it could not take over, synced or not.
    fn wait_record_of_both(&self) -> Result<()> {
        let last = "grep 'On record' /run/alert.log | tail -n 1 | grep -q 'both nodes'";
        let machine = self.servers.machine(First);
        let found = machine.until("the arbiter's record of both", last);
        found.with_context(|| self.story(First)).map(drop)
    }

    fn set_links(&self, cards: &[Card], up: bool) -> Result<()> {
        let machine = self.servers.machine(First);
        cards
            .iter()
            .try_for_each(|card| machine.set_link(*card, up))
    }

    /// The first server is cut off from everybody. It ends itself, and the other one goes on.
    /// What its kernel said meanwhile.
    fn expect_the_end_of_isolated_first(self, trace: &str) -> Result<String> {
        self.set_links(&EVERYBODY, false)?;
        self.expect_the_end_of_first(trace)
    }

    /// The first server ends, and the other one goes on. What its kernel said meanwhile.
    fn expect_the_end_of_first(mut self, trace: &str) -> Result<String> {
        let ended = self.servers.machine_mut(First).wait_end(41);
        ended.with_context(|| self.witness.log())?;
        let console = self.servers.machine(First).console();
        ensure!(console.contains(trace), "nothing says {trace:?}: {console}");
        let acknowledged = self.servers.acknowledged(First);
        self.expect_service_on_second(&acknowledged)?;
        Ok(console)
    }

    /// Systemd starts what was killed on the first server, and the group goes on there.
    fn expect_return(&self, daemon: Daemon) -> Result<()> {
        let program = daemon.program();
        let back = format!(
            "test $(systemctl show --property NRestarts --value {program}) = 1 && systemctl is-active {program}"
        );
        let found = self.servers.machine(First).until(program, &back);
        found.with_context(|| self.story(First))?;
        self.wait_online(First)?;
        self.expect_progress_on_first()
    }

    /// A witness that systemd starts on the second server, as the user and with the rights that its unit gives it.
    fn expect_a_witness_under_its_unit(&self) -> Result<()> {
        let machine = self.servers.machine(Second);
        machine.write("/etc/mirror/witness.toml", WITNESS)?;
        machine.write("/etc/mirror/witness.key", self.servers.key())?;
        machine.run(
            "cd /etc/mirror; chmod 600 witness.key; chown mirror-witness:mirror-witness witness.key
             sed 's|^url = .*|url = \"http://127.0.0.1:7791\"|' cluster.toml >/run/its.toml
             systemctl start mirror-witness || { cat /run/mirror-witness.log; exit 1; }
             test -O /var/lib/mirror-witness/state && exit 1
             test -f /var/lib/mirror-witness/state",
        )?;
        let check = "mirrorctl --config /run/its.toml check";
        let answers = machine.try_run(check)?.said;
        machine.run("systemctl stop mirror-witness")?;
        let silent = machine.try_run(check)?.said;
        ensure!(
            silent.contains("cannot be reached") && !answers.contains("cannot be reached"),
            "with it: {answers}without it: {silent}"
        );
        Ok(())
    }

    fn expect_progress_on_first(&self) -> Result<()> {
        let before = self.servers.acknowledged(First).len();
        let went_on = self.servers.wait_commits(First, before + 3);
        went_on.with_context(|| self.story(First))
    }

    /// The second server serves all that the first one acknowledged, and more.
    fn expect_service_on_second(&self, acknowledged: &BTreeSet<u64>) -> Result<()> {
        self.wait_online(Second)?;
        let kept = self.servers.expect_commits(Second, acknowledged);
        kept.with_context(|| self.story(Second))?;
        self.servers.start_commits(Second)?;
        self.servers.wait_commits(Second, 3)
    }

    fn story(&self, side: Side) -> String {
        let script = format!(
            "tail -n 30 {}; tail -n 20 /run/alert.log; mirrorctl status",
            Daemon::Agent.log()
        );
        let ran = self.servers.machine(side).try_run(&script);
        let said = ran.map_or_else(|error| format!("{error:#}"), |ran| ran.said);
        let witness = self.witness.log();
        format!("{said}\n{}\n-- witness:\n{witness}", self.servers.log(side))
    }
}

/// On the node that answers.
fn group(status: &ClusterStatus) -> State {
    let found = status.groups.iter().find(|group| group.name == GROUP);
    found.map_or(State::Failed, |group| group.state)
}

#[test]
fn an_isolated_server_panics_by_sysrq_and_the_other_one_goes_on() -> Result<()> {
    an_isolated_server_ends_itself("sysrq-panic", "sysrq triggered crash")
}

/// The first server is cut off from everybody. It ends itself as it was told, and the other one goes on.
pub fn an_isolated_server_ends_itself(action: &'static str, trace: &str) -> Result<()> {
    Cluster::at_work(Setting::with(action))?
        .expect_the_end_of_isolated_first(trace)
        .map(drop)
}

/// An agent that is stopped feeds its watchdog no more.
pub fn a_server_whose_agent_stalls_is_reset() -> Result<()> {
    let cluster = Cluster::at_work(Setting {
        monitors: STALL,
        ..Setting::with("none")
    })?;
    cluster
        .servers
        .machine(First)
        .run("kill -STOP $(pidof mirror-agent)")?;
    cluster
        .expect_the_end_of_first("softdog: Initiating system reboot")
        .map(drop)
}

/// As on servers: systemd starts the daemons by their units, brings back what is killed, and shuts the machine down.
pub fn systemd_brings_back_what_is_killed_and_shuts_a_server_down() -> Result<()> {
    let cluster = Cluster::at_work(Setting {
        systemd: true,
        // An agent that comes back in time is what it is about.
        heartbeat_timeout_seconds: 90,
        ..Setting::with("stop-service-and-shutdown")
    })?;
    let servers = &cluster.servers;
    servers.kill_mirrord_at_work(First)?;
    cluster.expect_return(Daemon::Mirrord)?;
    servers
        .machine(First)
        .run("kill -9 $(pidof mirror-agent)")?;
    cluster.expect_return(Daemon::Agent)?;
    servers.expect_no_errors(First)?;
    cluster.expect_a_witness_under_its_unit()?;
    let ended = cluster.expect_the_end_of_isolated_first("reboot: Power down")?;
    ensure!(ended.contains(IN_ORDER), "no end in order: {ended}");
    Ok(())
}

/// A unit that never stops holds up the reboot that systemd was asked for; the backstop ends the machine.
pub fn a_reboot_that_a_unit_holds_up_comes_all_the_same() -> Result<()> {
    let cluster = Cluster::at_work(Setting {
        systemd: true,
        ..Setting::with("reboot")
    })?;
    let first = cluster.servers.machine(First);
    first.write("/run/systemd/system/stubborn.service", STUBBORN)?;
    first.run("systemctl daemon-reload && systemctl start stubborn")?;
    let ended = cluster.expect_the_end_of_isolated_first("reboot: Restarting system")?;
    ensure!(!ended.contains(IN_ORDER), "it was not held up: {ended}");
    Ok(())
}

/// The cable between the servers is cut, and the owner goes on, with the word of the witness. Then the owner is cut
/// off from everybody, and gives way; when it is back, it follows.
pub fn a_server_that_is_cut_off_gives_way_and_follows_when_it_is_back() -> Result<()> {
    let cluster = Cluster::at_work(Setting::with("none"))?;
    let servers = &cluster.servers;
    cluster.set_links(&[Card::Link], false)?;
    cluster.wait_status(Second, "the loss of the first server", |status| {
        status.nodes[0].state == NodeState::Lost
    })?;
    cluster.expect_progress_on_first()?;
    let status = cluster.status(Second)?.context("its agent answers")?;
    ensure!(
        group(&status) == State::Offline,
        "{}",
        cluster.story(Second)
    );
    cluster.set_links(&[Card::Link], true)?;
    servers.wait_synced()?;
    cluster.wait_record_of_both()?;

    cluster.set_links(&EVERYBODY, false)?;
    cluster.wait_retreat()?;
    servers.wait_commits_end(First)?;
    cluster.expect_service_on_second(&servers.acknowledged(First))?;
    cluster.set_links(&EVERYBODY, true)?;
    servers.wait_synced()?;
    servers.expect_equal(Second)
}

/// The first server is paused from outside for longer than its lease, so that the other one takes over. When it goes
/// on, it has no time to notice before it could answer, and it must not.
pub fn a_machine_paused_past_its_lease_answers_nothing_alone() -> Result<()> {
    let cluster = Cluster::at_work(Setting::with("none"))?;
    let servers = &cluster.servers;
    servers.machine(First).pause()?;
    let before = servers.acknowledged(First);
    cluster.expect_service_on_second(&before)?;
    servers.machine(First).go_on()?;
    // It finds out, and takes itself back.
    cluster.wait_retreat()?;
    let after = servers.acknowledged(First);
    ensure!(
        after.difference(&before).count() <= 1,
        "it acknowledged {after:?} after {before:?}"
    );
    let count = servers.acknowledged(Second).len();
    servers.wait_commits(Second, count + 3)?;
    servers.expect_commits(Second, &before)
}

/// Leases, heartbeats and time-outs count another clock: whoever sets the wall clock of a server, by however much and in
/// either direction, changes nothing.
pub fn a_wall_clock_that_is_stepped_is_noticed_by_nobody() -> Result<()> {
    const DAY_SECONDS: i64 = 24 * 60 * 60;
    let cluster = Cluster::at_work(Setting::with("none"))?;
    // A busy host lets machines stand still, which the arbiter's alerts tell of; no group may move or start again.
    let moves = |side| {
        let machine = cluster.servers.machine(side);
        machine.run("grep -c ' 14[0-9][0-9] ' /run/alert.log || true")
    };
    let before = [moves(First)?, moves(Second)?];
    for (side, seconds) in [
        (First, DAY_SECONDS),
        (Second, -DAY_SECONDS),
        (First, -2 * DAY_SECONDS),
    ] {
        let machine = cluster.servers.machine(side);
        let step = format!(
            "was=$(date +%s); date -s @$((was + {seconds})); is=$(date +%s); \
             test $(((is - was) / 3600)) -ne 0"
        );
        machine.run(&step)?;
        let long_enough = LEASE_SECONDS.max(HEARTBEAT_TIMEOUT_SECONDS) + 5;
        let since = machine.run("cut -d. -f1 /proc/uptime")?;
        let later = format!(
            "test $(cut -d. -f1 /proc/uptime) -ge $(({} + {long_enough}))",
            since.trim()
        );
        machine.until("the end of every time-out", &later)?;
        let count = cluster.servers.acknowledged(First).len();
        cluster.servers.wait_commits(First, count + 3)?;
    }
    let after = [moves(First)?, moves(Second)?];
    ensure!(
        before == after,
        "the group was moved, or started again: {}{}",
        cluster.story(First),
        cluster.story(Second)
    );
    let acknowledged = cluster.servers.acknowledged(First);
    cluster.servers.expect_commits(First, &acknowledged)
}
