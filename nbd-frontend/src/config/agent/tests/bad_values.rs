//! For every key what is refused, with the reason and the remedy.

use super::*;

const PATH: &str = "name = \"public\"";
const PING: &str = "kind = \"ping\"";
const STOP: &str = "kind = \"aws\"";
const ARBITER: &str = "[arbiter]";
const DISK: &str = "name = \"disk\"";
const ADDRESS: &str = "name = \"address\"";
const APP: &str = "name = \"app\"\n";
const PROBE: &str = "name = \"probe\"";
const PROCESS: &str = "name = \"app-runs\"";
const LINK: &str = "name = \"link\"";

#[test]
fn unknown_keys_name_their_line_and_the_nearest_one() {
    for (section, near) in [
        ("[heartbeat]", "interval"),
        (PATH, "name"),
        ("[partition]", "action"),
        (PING, "targets"),
        (STOP, "stop_wait"),
        ("[forced_stop.on.server1]", "instance"),
        (ARBITER, "lease"),
        (DISK, "mount"),
        (ADDRESS, "address"),
        (APP, "start"),
        ("unit = \"postgresql.service\"", "unit"),
        (PROBE, "http"),
        (PROCESS, "command"),
        (LINK, "interface"),
    ] {
        let remedy = format!("did you mean {near:?}?");
        refused_below(
            section,
            &format!("{near}x = 1"),
            &["cluster.toml:", &remedy],
        );
    }
    refused(
        "[heartbeat]",
        "[heartbeet]\n[heartbeat]",
        &["cluster.toml:", "did you mean \"heartbeat\"?"],
    );
    refused(
        "nodes = ",
        "nods = ",
        &["group \"failover1\" nods", "did you mean \"nodes\"?"],
    );
    refused(
        "[heartbeat]",
        "[agent]\nalert_lgo = \"/x\"\n[heartbeat]",
        &["did you mean \"alert_log\"?"],
    );
    // A key of another kind is as unknown as any.
    refused_below(
        STOP,
        "script = \"/etc/stop\"",
        &["forced_stop script", "is not a known key here"],
    );
    refused_below(
        DISK,
        "unit = \"a.service\"",
        &["resource \"disk\" unit", "known here: "],
    );
}

#[test]
fn unknown_kinds_name_the_nearest_one_and_nothing_else() {
    for (from, to, near) in [
        (PING, "kind = \"pnig\"", "ping"),
        (STOP, "kind = \"awss\"", "aws"),
        (
            "kind = \"mirror-disk\"",
            "kind = \"mirrordisk\"",
            "mirror-disk",
        ),
        ("kind = \"process\"", "kind = \"proces\"", "process"),
    ] {
        let problems = parse(&with(GOOD, from, to)).unwrap_err().into_vec();
        let [problem] = &problems[..] else {
            panic!("one problem for {to}: {problems:?}")
        };
        let text = problem.to_string();
        assert!(text.contains(&format!("did you mean {near:?}?")), "{text}");
    }
    for kind in ["ipmi", "azure"] {
        let parts = [
            &format!("{kind:?} is none of custom, aws; ")[..],
            "write kind = \"custom\" and a script",
            "docs/forced-stop.md",
        ];
        refused(STOP, &format!("kind = {kind:?}"), &parts);
    }
    for (kind, other) in [
        ("virtual-ip", "write \"floating-ip\""),
        ("filesystem", "write \"mirror-disk\""),
        ("service", "write \"systemd\""),
        ("script", "write \"exec\""),
        ("database", "\"exec\", with a command to start"),
    ] {
        let none = format!("{kind:?} is none of mirror-disk, floating-ip, ");
        refused(
            "kind = \"floating-ip\"",
            &format!("kind = {kind:?}"),
            &[&none, other],
        );
    }
    refused_below(
        DISK,
        "fsck = \"perhaps\"",
        &["is none of always, auto, never; write one of these"],
    );
    refused(PING, "kind = 3", &["an integer, not a string"]);
}

#[test]
fn what_must_be_there_shows_an_example() {
    let on = "on = { server1 = \"192.0.2.5:29002\", server2 = \"192.0.2.6:29002\" }";
    for (line, key) in [
        (PATH, "heartbeat.path name"),
        (on, "heartbeat.path \"public\" on"),
        (PING, "partition.resolver kind"),
        (
            "targets = [\"192.0.2.1\", \"192.0.2.2\"]",
            "partition.resolver targets",
        ),
        (STOP, "forced_stop kind"),
        (
            "instance = \"i-0123456789abcdef0\"",
            "forced_stop on \"server1\" instance",
        ),
        ("url = \"http://192.0.2.9:29004\"", "arbiter url"),
        ("name = \"failover1\"", "group name"),
        ("kind = \"mirror-disk\"", "resource \"disk\" kind"),
        (DISK, "group \"failover1\" resource name"),
        ("mirror = \"md1\"", "resource \"disk\" mirror"),
        (
            "address = \"192.0.2.100/24\"",
            "resource \"address\" address",
        ),
        ("interface = \"eth0\"", "resource \"address\" interface"),
        (
            "start = [\"/usr/local/bin/app\", \"start\"]",
            "resource \"app\" start",
        ),
        (
            "stop = [\"/usr/local/bin/app\", \"stop\"]",
            "resource \"app\" stop",
        ),
        (
            "unit = \"postgresql.service\"",
            "resource \"database\" unit",
        ),
        ("kind = \"process\"", "monitor \"app-runs\" kind"),
        (PROCESS, "monitor name"),
        (
            "command = \"/usr/local/bin/app\"",
            "monitor \"app-runs\" command",
        ),
        (
            "interface.on = { server1 = \"eth0\", server2 = \"eth1\" }",
            "monitor \"link\" interface",
        ),
    ] {
        refused(line, "", &["cluster.toml:", key, "missing", "add a"]);
    }
    for (kind, key) in [
        ("exec", "command"),
        ("tcp", "address"),
        ("http", "url"),
        ("disk", "folder"),
        ("mirror-disk", "mirror"),
        ("mirror-link", "mirror"),
    ] {
        let monitor = format!("[[monitor]]\nkind = {kind:?}\nname = \"m\"\n");
        let problems = parse(&format!("{GOOD}{monitor}")).unwrap_err().to_string();
        let key = format!("monitor \"m\" {key}: the key is missing");
        assert!(problems.contains(&key), "{problems}");
    }
    let custom = GOOD.find("[forced_stop]").unwrap();
    let arbiter = GOOD.find("[arbiter]").unwrap();
    let text = format!(
        "{}[forced_stop]\nkind = \"custom\"\n{}",
        &GOOD[..custom],
        &GOOD[arbiter..]
    );
    let problems = parse(&text).unwrap_err().to_string();
    assert!(
        problems.contains("forced_stop script: the key is missing"),
        "{problems}"
    );
}

#[test]
fn durations_and_numbers_keep_within_their_range() {
    for (from, to, parts) in [
        (
            "interval = \"3s\"",
            "interval = \"9ms\"",
            "between 10ms and 1m",
        ),
        (
            "timeout = \"90s\"",
            "timeout = \"2h\"",
            "between 30ms and 1h",
        ),
        (
            "isolation_timeout = \"20s\"",
            "isolation_timeout = \"2h\"",
            "between 0s and 1h",
        ),
        (
            "interval = \"2s\"",
            "interval = \"1ms\"",
            "between 10ms and 10m",
        ),
        (
            "timeout = \"1s\"",
            "timeout = \"11m\"",
            "between 10ms and 10m",
        ),
        (
            "timeout = \"60s\"",
            "timeout = \"99ms\"",
            "between 100ms and 1h",
        ),
        (
            "stop_wait = \"4s\"",
            "stop_wait = \"61m\"",
            "between 0s and 1h",
        ),
        (
            "lease = \"12s\"",
            "lease = \"11m\"",
            "between 100ms and 10m",
        ),
    ] {
        refused(from, to, &["out of range", parts]);
    }
    for (section, line, parts) in [
        (STOP, "fence_delay = \"3h\"", "between 0s and 2h"),
        (STOP, "check_interval = \"1ms\"", "between 100ms and 1day"),
        (STOP, "retries = 11", "between 0 and 10"),
        (ARBITER, "timeout = \"2m\"", "between 10ms and 1m"),
        (ARBITER, "drift_ppm_max = 0", "between 1 and 100000"),
        (
            "name = \"failover1\"",
            "failovers_max = 1001",
            "between 0 and 1000",
        ),
        (
            "name = \"failover1\"",
            "failover_window = \"0\"",
            "between 1s and 30days",
        ),
        (
            "name = \"failover1\"",
            "failure_reset = \"721h\"",
            "between 0s and 30days",
        ),
        (DISK, "start_timeout = \"1ms\"", "between 100ms and 1day"),
        (DISK, "stop_timeout = \"25h\"", "between 100ms and 1day"),
        (DISK, "start_retries = 101", "between 0 and 100"),
        (DISK, "fsck_timeout = \"1ms\"", "between 100ms and 1day"),
        (DISK, "unmount_retries = -1", "between 0 and 100"),
        (DISK, "unmount_interval = \"1ms\"", "between 10ms and 10m"),
        (PROCESS, "interval = \"1ms\"", "between 10ms and 1day"),
        (PROCESS, "timeout = \"1ms\"", "between 10ms and 1day"),
        (PROCESS, "retries = 1001", "between 0 and 1000"),
        (PROCESS, "restarts_max = 1001", "between 0 and 1000"),
        (PROCESS, "failovers_max = 99999999999", "between 0 and 1000"),
        (PROCESS, "count_min = 0", "between 1 and 100000"),
    ] {
        refused_below(section, line, &["out of range", parts]);
    }
    refused(
        "[heartbeat]",
        "[agent]\nservice_startup_delay = \"3h\"\n[heartbeat]",
        &["out of range"],
    );
    refused(
        "interval = \"3s\"",
        "interval = 3",
        &["an integer, not a string", "\"3…\""],
    );
    refused(
        "interval = \"3s\"",
        "interval = \"3\"",
        &["\"3\" has no unit"],
    );
    refused_below(
        STOP,
        "retries = \"1\"",
        &["a string, not a whole number", "without quotes"],
    );
    let http =
        "[[monitor]]\nkind = \"http\"\nname = \"m\"\nurl = \"http://127.0.0.1/\"\nstatus = 99\n";
    let problems = parse(&format!("{GOOD}{http}")).unwrap_err().to_string();
    assert!(problems.contains("between 200 and 599"), "{problems}");
}

#[test]
fn a_cloud_that_is_given_no_time_to_stop_an_instance_is_refused() {
    refused(
        "stop_wait = \"4s\"",
        "stop_wait = \"0\"",
        &["stop_wait", "no stop could be confirmed", "\"2m\""],
    );
}

#[test]
fn words_are_taken_from_their_list() {
    for (from, to, parts) in [
        (
            "need = \"all\"\nisolation",
            "need = \"both\"\nisolation",
            "none of any, all",
        ),
        (
            "action = \"reboot\"",
            "action = \"rebot\"",
            "did you mean \"reboot\"?",
        ),
        (
            "action = \"reboot\"",
            "action = \"stop-group\"",
            "none of none, stop-service",
        ),
        (
            "need = \"all\"\ninterval",
            "need = \"one\"\ninterval",
            "none of any, all",
        ),
    ] {
        refused(from, to, &[parts]);
    }
    for (section, line, parts) in [
        (STOP, "action = \"kill\"", "none of stop, terminate"),
        (STOP, "failover_on_failure = \"yes\"", "not a boolean"),
        (
            ARBITER,
            "lease_check = \"cloak\"",
            "did you mean \"clock\"?",
        ),
        (
            "name = \"failover1\"",
            "start = \"auto\"",
            "none of automatic, manual",
        ),
        ("name = \"failover1\"", "failover = 1", "not a boolean"),
        ("name = \"failover1\"", "failback = 1", "not a boolean"),
        (
            "name = \"failover1\"",
            "final_action = \"rebot\"",
            "did you mean \"reboot\"?",
        ),
        (DISK, "attach = \"nbd\"", "none of kernel, fuse"),
        (DISK, "filesystem = \"btrfs\"", "none of ext4, xfs"),
        (DISK, "fsck = \"yes\"", "none of always, auto, never"),
        (DISK, "options = \"\"", "empty"),
        (
            PROCESS,
            "final_action = \"die\"",
            "none of none, stop-group",
        ),
        (PROCESS, "warn_only = 1", "not a boolean"),
    ] {
        refused_below(section, line, &[parts]);
    }
}

#[test]
fn addresses_are_such_and_nobody_elses() {
    let public = "server2 = \"192.0.2.6:29002\"";
    refused(
        public,
        "server2 = \"192.0.2.5:29002\"",
        &["the address of both nodes"],
    );
    refused(
        public,
        "server2 = \"[2001:db8::6]:29002\"",
        &["different families"],
    );
    refused(public, "server2 = \"127.0.0.1:29002\"", &["loopback"]);
    refused(
        public,
        "server2 = \"0.0.0.0:29002\"",
        &["no address that the other node can send to"],
    );
    refused(
        public,
        "server2 = \"10.5.0.6:29002\"",
        &["10.5.0.6:29002 is taken by heartbeat.path \"interconnect\" on \"server2\""],
    );
    refused(public, "server2 = \"192.0.2.6:0\"", &["port 0"]);
    refused(
        "http = \"0.0.0.0:29010\"",
        "tcp = \"0.0.0.0:29051\"",
        &[
            "is taken by group \"failover1\" resource \"probe\" tcp",
            "choose another port",
        ],
    );
    refused(
        "http = \"0.0.0.0:29010\"",
        "http = \"0.0.0.0:29010\"\ntcp = \"127.0.0.1:29010\"",
        &["taken by"],
    );
    refused(
        "http = \"0.0.0.0:29010\"",
        "",
        &["it listens nowhere", "add a line"],
    );
    refused(
        "http = \"0.0.0.0:29010\"",
        "http = \"29010\"",
        &["no IP address with a port"],
    );
    let ip = "\"192.0.2.100/24\"";
    refused(ip, "\"192.0.2.100\"", &["prefix length", "/24"]);
    refused(
        ip,
        "\"192.0.2.100/33\"",
        &["prefix of 33 bits", "between 1 and 32"],
    );
    refused(ip, "\"app.example/24\"", &["no IP address"]);
    refused(ip, "\"127.0.0.2/8\"", &["cannot be moved"]);
    refused(
        ip,
        "\"192.0.2.5/24\"",
        &["192.0.2.5 is taken by heartbeat.path \"public\""],
    );
    refused(
        ip,
        "\"10.5.0.6/24\"",
        &["10.5.0.6 is taken by the replication of mirror \"md1\""],
    );
    refused(
        "interface = \"eth0\"",
        "interface = \"\"",
        &["the value is empty"],
    );
    refused(
        "interface = \"eth0\"",
        "interface = \"a-name-that-is-too-long\"",
        &["no name of a network"],
    );
    refused(
        "server2 = \"eth1\"",
        "server2 = \"eth 1\"",
        &["no name of a network interface"],
    );
    refused(
        "\"192.0.2.1\", ",
        "\"router\", ",
        &["no IP address", "without a port"],
    );
    refused(
        "\"192.0.2.1\", ",
        "\"192.0.2.2\", ",
        &["same target is listed twice"],
    );
    refused(
        "\"192.0.2.1\", ",
        "\"0.0.0.0\", ",
        &["not the address of one device"],
    );
    refused(
        "[\"192.0.2.1\", \"192.0.2.2\"]",
        "[]",
        &["there are 0 targets"],
    );
    refused(
        "[\"192.0.2.1\", \"192.0.2.2\"]",
        "\"192.0.2.1\"",
        &["not a list", "[\"10.5.0.1\"]"],
    );
    refused(
        "kind = \"witness\"",
        "kind = \"http\"\ntargets = [\"192.0.2.1\"]",
        &["no http or https URL"],
    );
    for (url, reason) in [
        ("192.0.2.9", "no http or https URL"),
        ("ftp://192.0.2.9/", "no http or https URL"),
        ("http:///x", "no URL"),
        ("http://user:word@192.0.2.9/", "user name"),
        ("http://192.0.2.9 /", "no URL"),
    ] {
        refused("http://192.0.2.9:29004", url, &["arbiter url", reason]);
    }
    refused_below(
        STOP,
        "endpoint = \"localhost\"",
        &["forced_stop endpoint", "URL"],
    );
}

#[test]
fn paths_commands_and_ids_have_their_shape() {
    refused(
        "mount = \"/srv/data\"",
        "mount = \"srv/data\"",
        &["relative path"],
    );
    refused(
        "mount = \"/srv/data\"",
        "mount = \"/\"",
        &["no place to mount"],
    );
    refused(
        "mount = \"/srv/data\"",
        "mount = \"/srv/../etc\"",
        &["no place to mount"],
    );
    refused(
        "mount = \"/srv/data\"",
        "filesystem = \"xfs\"",
        &[
            "resource \"disk\" filesystem",
            "nothing is mounted",
            "add a line such as mount",
        ],
    );
    refused(
        "[heartbeat]",
        "[agent]\nalert_log = \"alert.log\"\n[heartbeat]",
        &["relative path"],
    );
    for (value, reason) in [
        ("\"/usr/local/bin/app start\"", "a string, not a list"),
        ("[]", "the list is empty"),
        ("[\"app\", \"start\"]", "\"app\" is a relative path"),
        ("[\"/app\", 3]", "there is an integer in the list"),
        ("[\"/app\", \"a\\u0000b\"]", "a zero byte"),
    ] {
        let line = format!("start = {value}");
        refused(
            "start = [\"/usr/local/bin/app\", \"start\"]",
            &line,
            &["\"app\" start", reason],
        );
    }
    refused(
        "unit = \"postgresql.service\"",
        "unit = \"postgresql\"",
        &["systemd unit", "whole name"],
    );
    refused(
        "unit = \"postgresql.service\"",
        "unit = \"a/b.service\"",
        &["systemd unit"],
    );
    for id in [
        "i-0123",
        "i-0123456789abcdef01",
        "i-0123456789ABCDEF0",
        "0123456789abcdef0",
    ] {
        refused(
            "i-0123456789abcdef0",
            id,
            &["no instance id", "i-0123456789abcdef0"],
        );
    }
    refused(
        "i-0123456789abcdef1",
        "i-0123456789abcdef0",
        &[
            "forced_stop on \"server2\" instance",
            "the instance of both nodes",
        ],
    );
    let stall = "[[monitor]]\nkind = \"stall\"\nname = \"m\"\nwatchdog = \"watchdog\"\n";
    let problems = parse(&format!("{GOOD}{stall}")).unwrap_err().to_string();
    assert!(problems.contains("relative path"), "{problems}");
}
