//! Whole clusters: agents on two machines, a witness on this host, and final actions that really end a machine.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use agent::control::{ClusterStatus, State};
use anyhow::{Context, Result, ensure};
use local_pair::Side::{self, First, Second};
use local_pair::{Deadline, Programs};
use tempfile::TempDir;

use crate::bed::{Card, PATIENCE};
use crate::servers::{Options, Servers};

const GROUP: &str = "failover1";

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

fn sections(port: &str, action: &str) -> String {
    format!(
        r#"
[agent]
alert_log = "/run/alert.log"

[heartbeat]
interval = "500ms"
timeout = "20s"

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
lease = "15s"
timeout = "4s"

[[group]]
name = "{GROUP}"
final_action = "none"

[[group.resource]]
kind = "mirror-disk"
name = "disk"
mirror = "md1"
attach = "kernel"
mount = "/mnt"
start_timeout = "5m"
stop_timeout = "2m"
fsck_timeout = "2m"
unmount_interval = "500ms"
"#
    )
}

struct Cluster {
    // Before the machines: what they ask is of no more use.
    witness: Witness,
    servers: Servers,
}

impl Cluster {
    /// The group runs on the first server, with a data base at work on it.
    fn at_work(action: &str) -> Result<Self> {
        let (folder, port) = Witness::prepare()?;
        let mut servers = Servers::in_step(&Options {
            mirror: "peer_loss = \"hold\"".into(),
            ..Options::default()
        })?;
        // As an operator does it once, before the agents' time.
        servers.machine(First).run("mkfs.ext4 -q /dev/nbd0")?;
        servers.ctl(First, "demote md1")?;
        for side in Side::BOTH {
            servers.stop_mirrord(side)?;
        }
        let witness = Witness::start(folder, port, servers.key())?;
        servers.add_to_config(&sections(&witness.port, action))?;
        for side in Side::BOTH {
            servers.machine(side).run("load-softdog")?;
            servers.start_mirrord(side)?;
            let script = "setsid mirror-agent >>/run/agent.log 2>&1 & echo $! >/run/agent.pid";
            servers.machine(side).run(script)?;
        }
        let cluster = Self { witness, servers };
        cluster.wait_online(First)?;
        cluster.servers.start_commits(First)?;
        cluster.servers.wait_commits(First, 5)?;
        Ok(cluster)
    }

    fn wait_online(&self, side: Side) -> Result<()> {
        let machine = self.servers.machine(side);
        let found = Deadline::after(PATIENCE).until("the group", || {
            let ran = machine.try_run("mirrorctl --json status 2>/dev/null")?;
            let Ok(status) = serde_json::from_str::<ClusterStatus>(&ran.said) else {
                return Ok(None);
            };
            let mut groups = status.groups.iter();
            let online = groups.any(|group| group.name == GROUP && group.state == State::Online);
            Ok(online.then_some(()))
        });
        found.with_context(|| self.story(side))
    }

    fn story(&self, side: Side) -> String {
        let script = "tail -n 30 /run/agent.log; tail -n 20 /run/alert.log; mirrorctl status";
        let ran = self.servers.machine(side).try_run(script);
        let said = ran.map_or_else(|error| format!("{error:#}"), |ran| ran.said);
        let witness = self.witness.log();
        format!("{said}\n{}\n-- witness:\n{witness}", self.servers.log(side))
    }
}

/// The first server is cut off from everybody. It ends itself as it was told, and the other one goes on.
pub fn an_isolated_server_ends_itself(action: &str, trace: &str) -> Result<()> {
    let mut cluster = Cluster::at_work(action)?;
    for card in [Card::Link, Card::Outside] {
        cluster.servers.machine(First).set_link(card, false)?;
    }
    let ended = cluster.servers.machine_mut(First).wait_end(41);
    ended.with_context(|| cluster.witness.log())?;
    let console = cluster.servers.machine(First).console();
    ensure!(console.contains(trace), "nothing says {trace:?}: {console}");
    let acknowledged = cluster.servers.acknowledged(First);
    cluster.wait_online(Second)?;
    let kept = cluster.servers.expect_commits(Second, &acknowledged);
    kept.with_context(|| cluster.story(Second))
}

/// The first server is paused from outside for longer than its lease, so that the other one takes over. When it goes
/// on, it has no time to notice before it could answer, and it must not.
pub fn a_machine_paused_past_its_lease_answers_nothing_alone() -> Result<()> {
    let cluster = Cluster::at_work("none")?;
    cluster.servers.machine(First).pause()?;
    let before = cluster.servers.acknowledged(First);
    cluster.wait_online(Second)?;
    cluster.servers.start_commits(Second)?;
    cluster.servers.wait_commits(Second, 3)?;
    cluster.servers.machine(First).go_on()?;
    // It finds out, and takes itself back.
    let gone = "mirrorctl --json mdstat | grep -q '\"role\":\"secondary\"'";
    let found = cluster
        .servers
        .machine(First)
        .until("the first server's retreat", gone);
    found.with_context(|| cluster.story(First))?;
    let after = cluster.servers.acknowledged(First);
    ensure!(
        after.difference(&before).count() <= 1,
        "it acknowledged {after:?} after {before:?}"
    );
    let count = cluster.servers.acknowledged(Second).len();
    cluster.servers.wait_commits(Second, count + 3)?;
    cluster.servers.expect_commits(Second, &before)
}

/// Leases, heartbeats and time-outs count another clock: whoever sets the wall clock of a server, by however much and in
/// either direction, changes nothing.
pub fn a_wall_clock_that_is_stepped_is_noticed_by_nobody() -> Result<()> {
    const DAY_SECONDS: i64 = 24 * 60 * 60;
    let cluster = Cluster::at_work("none")?;
    // A busy host lets machines stand still, which the arbiter's alerts tell of; no group may move or start again.
    let moves = |side| {
        let machine = cluster.servers.machine(side);
        machine.run("grep -c ' 14[0-9][0-9] ' /run/alert.log || true", 60)
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
        machine.run(&step, 60)?;
        // Longer than the lease and the time-out of the heartbeat.
        let since = machine.run("cut -d. -f1 /proc/uptime", 60)?;
        let later = format!(
            "test $(cut -d. -f1 /proc/uptime) -ge $(({} + 8))",
            since.trim()
        );
        machine.until("the end of every time-out", &later, 90)?;
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
