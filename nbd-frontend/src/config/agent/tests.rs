//! The agent's sections as an operator would write them, everything that can be wrong with them, and
//! every warning with a file that earns it and one that does not.

use std::path::Path;
use std::time::Duration;

use mirror_core::volume::config::LeaseCheck;

use super::*;
use crate::config::{Config, Machine, PeerLoss, Problems};

mod bad_values;
mod between_keys;
mod warnings;

/// A pair with everything: no problem and no warning.
const GOOD: &str = r#"
[cluster]
name = "cluster1"
key_file = "/etc/mirror/cluster.key"

[[node]]
name = "server1"
[[node]]
name = "server2"

[[mirror]]
name = "md1"

[mirror.on.server1]
data = "/dev/vdb1"
metadata = "/dev/vdb2"
replication = "10.5.0.5:29051"

[mirror.on.server2]
data = "/dev/vdb1"
metadata = "internal"
replication = "10.5.0.6:29051"

[heartbeat]
interval = "3s"
timeout = "90s"

[[heartbeat.path]]
name = "interconnect"
on = { server1 = "10.5.0.5:29002", server2 = "10.5.0.6:29002" }

[[heartbeat.path]]
name = "public"
on = { server1 = "192.0.2.5:29002", server2 = "192.0.2.6:29002" }

[partition]
need = "all"
isolation_timeout = "20s"
action = "reboot"

[[partition.resolver]]
kind = "ping"
targets = ["192.0.2.1", "192.0.2.2"]
need = "all"
interval = "2s"
timeout = "1s"

[[partition.resolver]]
kind = "witness"

[forced_stop]
kind = "aws"
timeout = "60s"
stop_wait = "4s"
region = "eu-central-1"

[forced_stop.on.server1]
instance = "i-0123456789abcdef0"
[forced_stop.on.server2]
instance = "i-0123456789abcdef1"

[arbiter]
url = "http://192.0.2.9:29004"
lease = "12s"

[[group]]
name = "failover1"
nodes = ["server2", "server1"]

[[group.resource]]
kind = "mirror-disk"
name = "disk"
mirror = "md1"
mount = "/srv/data"

[[group.resource]]
kind = "floating-ip"
name = "address"
address = "192.0.2.100/24"
interface = "eth0"

[[group.resource]]
kind = "exec"
name = "app"
depends_on = ["disk"]
start = ["/usr/local/bin/app", "start"]
stop = ["/usr/local/bin/app", "stop"]

[[group.resource]]
kind = "systemd"
name = "database"
depends_on = ["disk", "address"]
unit = "postgresql.service"

[[group.resource]]
kind = "probe-port"
name = "probe"
http = "0.0.0.0:29010"

[[monitor]]
kind = "process"
name = "app-runs"
group = "failover1"
resource = "app"
command = "/usr/local/bin/app"

[[monitor]]
kind = "network-link"
name = "link"
interface.on = { server1 = "eth0", server2 = "eth1" }
"#;

fn parse(text: &str) -> Result<Config, Problems> {
    Config::parse(Path::new("cluster.toml"), text)
}

/// `text` with `from`, which must be in it, replaced by `to`.
#[track_caller]
fn with(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from:?} is not in the file");
    text.replacen(from, to, 1)
}

/// Replaces `from` in the good file and expects one problem that holds all of `parts`.
#[track_caller]
fn refused(from: &str, to: &str, parts: &[&str]) {
    let problems = parse(&with(GOOD, from, to)).expect_err("the file is wrong");
    let found = problems
        .iter()
        .map(ToString::to_string)
        .any(|problem| parts.iter().all(|part| problem.contains(part)));
    assert!(found, "no problem has all of {parts:?}:\n{problems}");
}

/// Adds `lines` below `section`, the first line of which is in the good file.
#[track_caller]
fn refused_below(section: &str, lines: &str, parts: &[&str]) {
    refused(section, &format!("{section}\n{lines}\n"), parts);
}

fn agent(text: &str) -> AgentConfig {
    let config = parse(text).unwrap_or_else(|problems| panic!("{problems}"));
    config.agent.expect("there is [heartbeat]")
}

#[test]
fn a_full_file_is_taken_as_written() {
    let agent = agent(GOOD);
    assert_eq!(agent.heartbeat.interval, Duration::from_secs(3));
    assert_eq!(agent.heartbeat.timeout, Duration::from_secs(90));
    let paths: Vec<_> = agent
        .heartbeat
        .paths
        .iter()
        .map(|path| &path.name[..])
        .collect();
    assert_eq!(paths, ["interconnect", "public"]);
    let public = agent.heartbeat.paths[1]
        .addresses
        .map(|address| address.to_string());
    assert_eq!(public, ["192.0.2.5:29002", "192.0.2.6:29002"]);

    assert_eq!(agent.partition.need, Need::All);
    assert_eq!(agent.partition.isolation_timeout, Duration::from_secs(20));
    assert_eq!(agent.partition.action, FinalAction::Reboot);
    let [ping, witness] = &agent.partition.resolvers[..] else {
        panic!("two resolvers")
    };
    let ResolverKind::Ping { targets, need } = &ping.kind else {
        panic!("a ping resolver")
    };
    assert_eq!(
        (ping.name.as_str(), targets.len(), *need),
        ("ping", 2, Need::All)
    );
    assert_eq!(ping.interval, Duration::from_secs(2));
    assert_eq!(ping.timeout, Duration::from_secs(1));
    assert_eq!(
        (&witness.kind, &witness.name[..]),
        (&ResolverKind::Witness, "witness")
    );

    let stop = agent.forced_stop.unwrap();
    let ForcedStopKind::Aws {
        instances, region, ..
    } = &stop.kind
    else {
        panic!("a forced stop of EC2")
    };
    assert_eq!(instances, &["i-0123456789abcdef0", "i-0123456789abcdef1"]);
    assert_eq!(region.as_deref(), Some("eu-central-1"));
    let arbiter = agent.arbiter.unwrap();
    assert_eq!(arbiter.lease, Duration::from_secs(12));

    let [group] = &agent.groups[..] else {
        panic!("one group")
    };
    assert_eq!(group.nodes, [1, 0]);
    let needs: Vec<_> = group
        .resources
        .iter()
        .map(|resource| &resource.depends_on[..])
        .collect();
    assert_eq!(needs, [&[][..], &[0], &[0], &[0, 1], &[3]]);
    let ResourceKind::FloatingIp(ip) = &group.resources[1].kind else {
        panic!("a floating address")
    };
    assert_eq!(
        (ip.prefix, &ip.interfaces),
        (24, &["eth0".into(), "eth0".into()])
    );

    let [process, link] = &agent.monitors[..] else {
        panic!("two monitors")
    };
    assert_eq!((process.group, process.resource), (Some(0), Some(2)));
    assert_eq!(
        link.kind,
        MonitorKind::NetworkLink {
            interfaces: ["eth0".into(), "eth1".into()]
        }
    );
}

#[test]
fn what_is_not_written_has_its_default() {
    let heartbeat = GOOD.find("[heartbeat]").unwrap();
    let paths = GOOD.find("[[heartbeat.path]]").unwrap();
    let partition = GOOD.find("[partition]").unwrap();
    let text = format!(
        "{}[heartbeat]\n{}",
        &GOOD[..heartbeat],
        &GOOD[paths..partition]
    );
    let small = agent(&text);
    assert_eq!(small.heartbeat.interval, Duration::from_secs(3));
    assert_eq!(small.heartbeat.timeout, Duration::from_secs(90));
    assert!(small.partition.resolvers.is_empty() && small.groups.is_empty());
    assert_eq!(small.partition.isolation_timeout, Duration::from_secs(10));
    assert_eq!(small.partition.action, FinalAction::StopService);
    assert_eq!(small.startup_delay, Duration::from_secs(93));
    assert_eq!(small.alert_log, Path::new("/var/log/mirror/alert.log"));

    let full = agent(GOOD);
    let stop = full.forced_stop.unwrap();
    assert_eq!((stop.retries, stop.failover_on_failure), (0, false));
    assert_eq!(stop.fence_delay, Duration::from_secs(6));
    assert_eq!(stop.check_interval, Duration::from_secs(60));
    let arbiter = full.arbiter.unwrap();
    assert_eq!(arbiter.timeout, Duration::from_millis(2400));
    assert_eq!(arbiter.drift_ppm_max, 1000);
    let group = &full.groups[0];
    assert!(group.automatic_start && group.failover && !group.failback);
    assert_eq!(
        (group.failovers_max, group.failover_window.as_secs()),
        (3, 3600)
    );
    assert_eq!(group.failure_reset, Some(Duration::from_secs(3600)));
    let named = "name = \"failover1\"";
    let never = with(GOOD, named, &format!("{named}\nfailure_reset = \"0\""));
    let never = parse(&never).unwrap().agent.unwrap();
    assert_eq!(never.groups[0].failure_reset, None);
    assert_eq!(group.final_action, FinalAction::StopGroup);
    let disk = &group.resources[0];
    assert_eq!(disk.start_timeout, Duration::from_secs(7320));
    assert_eq!((disk.stop_timeout.as_secs(), disk.start_retries), (180, 0));
    let ResourceKind::MirrorDisk(disk) = &disk.kind else {
        panic!("a mirror disk")
    };
    assert_eq!(disk.attach, Attach::Fuse);
    assert_eq!((disk.filesystem, disk.fsck), (Filesystem::Ext4, Fsck::Auto));
    assert_eq!((&disk.options[..], disk.unmount_retries), ("rw", 3));
    let [process, link] = &full.monitors[..] else {
        panic!("two monitors")
    };
    assert_eq!(
        (process.interval.as_secs(), process.timeout.as_secs()),
        (30, 10)
    );
    assert_eq!(
        (process.retries, process.restarts_max, process.failovers_max),
        (1, 3, 1)
    );
    assert_eq!(process.final_action, FinalAction::StopGroup);
    assert_eq!((link.restarts_max, link.failovers_max), (0, 0));
    assert_eq!(link.final_action, FinalAction::None);
}

#[test]
fn a_file_without_heartbeats_has_no_agent_and_no_sections_of_it() {
    let plain = &GOOD[..GOOD.find("[heartbeat]").unwrap()];
    let config = parse(plain).unwrap();
    assert!(config.agent.is_none());
    assert_eq!(config.mirrors[0].peer_loss, PeerLoss::Continue);
    for section in [
        "[agent]\n",
        "[partition]\n",
        "[forced_stop]\nkind = \"custom\"\nscript = \"/x\"\n",
        "[arbiter]\nurl = \"http://192.0.2.9:1\"\n",
        "[[group]]\nname = \"failover1\"\n",
        "[[monitor]]\nkind = \"stall\"\nname = \"stall\"\n",
    ] {
        let problems = parse(&format!("{plain}{section}")).unwrap_err().to_string();
        assert!(
            problems.contains("there is no [heartbeat]") && problems.contains("add [heartbeat]"),
            "{problems}"
        );
    }
}

#[test]
fn a_mirror_holds_where_somebody_can_tell_what_became_of_its_peer() {
    let peer_loss = |text: &str| parse(text).unwrap().mirrors[0].peer_loss;
    assert_eq!(peer_loss(GOOD), PeerLoss::Hold);
    let written = with(
        GOOD,
        "name = \"md1\"",
        "name = \"md1\"\npeer_loss = \"continue\"",
    );
    assert_eq!(peer_loss(&written), PeerLoss::Continue);
    let forced_stop = GOOD.find("[forced_stop]").unwrap();
    let arbiter = GOOD.find("[arbiter]").unwrap();
    let group = GOOD.find("[[group]]").unwrap();
    let witness = "\n[[partition.resolver]]\nkind = \"witness\"\n";
    let without_both = format!("{}{}", &GOOD[..forced_stop], &GOOD[group..]);
    let without_both = with(&without_both, witness, "");
    assert_eq!(peer_loss(&without_both), PeerLoss::Continue);
    let stop_only = format!("{}{}", &GOOD[..arbiter], &GOOD[group..]);
    assert_eq!(peer_loss(&with(&stop_only, witness, "")), PeerLoss::Hold);
    let arbiter_only = format!("{}{}", &GOOD[..forced_stop], &GOOD[arbiter..]);
    assert_eq!(peer_loss(&arbiter_only), PeerLoss::Hold);
}

#[test]
fn only_mirrors_of_a_group_wait_for_a_lease() {
    let arbitration = |text: &str| {
        let config = parse(text).unwrap();
        (
            config.arbitration(&config.mirrors[0]),
            config.digest(&config.mirrors[0]),
        )
    };
    let (with_arbiter, digest) = arbitration(GOOD);
    assert_eq!(with_arbiter, Some(LeaseCheck::RoundTrip));
    let clock = with(GOOD, "lease = \"12s\"", "lease_check = \"clock\"");
    assert_eq!(arbitration(&clock), (Some(LeaseCheck::Clock), digest));
    let group = GOOD.find("[[group]]").unwrap();
    let (no_group, other_digest) = arbitration(&GOOD[..group]);
    assert_eq!(no_group, None);
    assert_ne!(digest, other_digest);
}

#[test]
fn a_lease_is_checked_as_the_machine_needs_it() {
    for (machine, expected) in [
        (Machine::Virtual, LeaseCheck::RoundTrip),
        (Machine::Physical, LeaseCheck::Clock),
    ] {
        let config = Config::parse_for(machine, Path::new("cluster.toml"), GOOD).unwrap();
        assert_eq!(config.agent.unwrap().arbiter.unwrap().lease_check, expected);
    }
}

#[test]
fn the_start_up_delay_is_the_sum_of_what_the_other_node_may_need() {
    let explained = |text: &str| agent(text).startup_delay_explained();
    assert_eq!(
        explained(GOOD),
        "169 s = 2 × 6 s fence delay + 60 s forced stop + 4 s stop wait + 90 s heartbeat timeout + 3 s heartbeat interval"
    );
    let text = with(
        GOOD,
        "stop_wait = \"4s\"",
        "stop_wait = \"1s\"\nretries = 2",
    );
    assert!(
        explained(&text)
            .starts_with("286 s = 2 × 6 s fence delay + 3 × 60 s forced stop + 1 s stop wait")
    );
    let text = with(GOOD, "interval = \"3s\"", "interval = \"2500ms\"");
    assert!(explained(&text).starts_with("166500 ms = "));
    let written = with(
        GOOD,
        "[heartbeat]",
        "[agent]\nservice_startup_delay = \"200s\"\n[heartbeat]",
    );
    assert!(explained(&written).starts_with("200 s as written, where 169 s = "));
    assert_eq!(agent(&written).startup_delay, Duration::from_secs(200));
    assert_eq!(
        agent(&written).startup_delay_needed,
        Duration::from_secs(169)
    );
}

#[test]
fn times_of_milliseconds_are_enough_for_everything() {
    let text = GOOD
        .replace("interval = \"3s\"", "interval = \"10ms\"")
        .replace("timeout = \"90s\"", "timeout = \"30ms\"")
        .replace("interval = \"2s\"\ntimeout = \"1s\"", "")
        .replace("lease = \"12s\"", "lease = \"100ms\"");
    let agent = agent(&text);
    assert_eq!(agent.heartbeat.timeout, Duration::from_millis(30));
    let ping = &agent.partition.resolvers[0];
    assert_eq!(
        (ping.interval, ping.timeout),
        (Duration::from_millis(10), Duration::from_millis(10))
    );
    assert_eq!(agent.arbiter.unwrap().timeout, Duration::from_millis(20));
}
