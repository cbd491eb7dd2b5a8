//! The file as an operator would write it, and everything that can be wrong with it.

use super::*;
use crate::kernel::found::DeviceNumber;

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
mode = "sync"
peer_timeout = "3s"
resync_rate_max = "100MiB/s"

[mirror.on.server1]
data = "/dev/vdb1"
metadata = "/dev/vdb2"
replication = "10.5.0.5:29051"
nbd = ["unix", "tcp:127.0.0.1:10809"]

[mirror.on.server2]
data = "/dev/vdb1"
metadata = "internal"
replication = "10.5.0.6:29051"
"#;

fn parse(text: &str) -> Result<Config, Problems> {
    Config::parse(Path::new("cluster.toml"), text)
}

/// Replaces `from` in the good file and expects one problem that holds all of `parts`.
#[track_caller]
fn check(from: &str, to: &str, parts: &[&str]) {
    assert!(GOOD.contains(from), "{from:?} is not in the good file");
    let text = GOOD.replacen(from, to, 1);
    let problems = parse(&text).expect_err("the file is wrong");
    let found = problems
        .iter()
        .map(ToString::to_string)
        .any(|problem| parts.iter().all(|part| problem.contains(part)));
    assert!(found, "no problem has all of {parts:?}:\n{problems}");
}

#[test]
fn a_good_file_is_taken_with_its_defaults() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.nodes, ["server1", "server2"]);
    let mirror = config.mirror("md1").unwrap();
    assert_eq!(mirror.mode, Mode::Sync);
    assert_eq!(mirror.initial_sync, InitialSync::Full);
    assert_eq!(mirror.peer_loss, PeerLoss::Continue);
    assert_eq!(mirror.encryption, Encryption::Tls);
    assert_eq!(mirror.peer_timeout, Duration::from_secs(3));
    assert_eq!(mirror.stop_timeout, Duration::from_secs(10));
    assert_eq!(mirror.resync_rate_min, 4 << 20);
    assert_eq!(mirror.resync_rate_max, 100 << 20);
    assert_eq!(mirror.buffer_memory, 48 << 20);
    assert_eq!(mirror.busy_poll, Duration::from_micros(200));
    assert_eq!(
        mirror.sides[0].metadata,
        MetadataPlace::Path("/dev/vdb2".into())
    );
    assert_eq!(mirror.sides[1].metadata, MetadataPlace::Internal);
    assert_eq!(mirror.sides[1].nbd, [NbdListen::Unix]);
    assert_eq!(mirror.sides[0].nbd.len(), 2);
}

#[test]
fn a_file_that_is_not_toml_has_that_problem_alone() {
    for (from, to, line) in [
        ("[cluster]", "[cluster", "cluster.toml:2"),
        (
            "mode = \"sync\"",
            "mode = \"sync\"\nmode = \"sync\"",
            "cluster.toml:14",
        ),
        ("key_file = ", "key_file ", "cluster.toml:4"),
    ] {
        let problems = parse(&GOOD.replacen(from, to, 1)).unwrap_err().into_vec();
        let [problem] = &problems[..] else {
            panic!("{problems:#?}")
        };
        let problem = problem.to_string();
        assert!(
            problem.starts_with(&format!("{line}: this is not TOML")),
            "{problem}"
        );
    }
}

#[test]
fn nodes_with_one_name_are_the_one_problem_as_long_as_they_have_it() {
    let text = GOOD.replacen("\"server2\"", "\"server1\"", 1);
    let problems = parse(&text).unwrap_err().into_vec();
    let [problem] = &problems[..] else {
        panic!("{problems:#?}")
    };
    assert!(problem.message.contains("is the name of the node on line"));
    assert!(problem.remedy.contains("give each node its own name"));
}

#[test]
fn an_unknown_key_names_its_line_and_the_nearest_one() {
    check(
        "peer_timeout =",
        "peer_time_out =",
        &[
            "cluster.toml:14",
            "\"peer_time_out\" is not a known key",
            "did you mean \"peer_timeout\"?",
        ],
    );
    check(
        "[cluster]",
        "[clutser]",
        &["cluster.toml:2", "did you mean \"cluster\"?"],
    );
    check(
        "data = \"/dev/vdb1\"\nmetadata = \"/dev/vdb2\"",
        "dat = \"/dev/vdb1\"\nmetadata = \"/dev/vdb2\"",
        &["cluster.toml:18", "did you mean \"data\"?"],
    );
    check(
        "key_file",
        "zzzzzzzzzzz",
        &["\"zzzzzzzzzzz\"", "known here: name, key_file"],
    );
}

#[test]
fn missing_keys_show_an_example() {
    check(
        "key_file = \"/etc/mirror/cluster.key\"",
        "",
        &["cluster key_file", "missing", "add a line"],
    );
    check(
        "metadata = \"internal\"",
        "",
        &["mirror \"md1\" on \"server2\" metadata", "missing"],
    );
    check(
        "name = \"server2\"",
        "",
        &["node name", "cluster.toml:8", "missing"],
    );
}

#[test]
fn values_of_the_wrong_kind_are_refused() {
    check(
        "\"sync\"",
        "\"synch\"",
        &[
            "cluster.toml:13",
            "none of sync, semisync, async",
            "did you mean \"sync\"?",
        ],
    );
    check("\"sync\"", "3", &["an integer, not a string", "quotes"]);
    check(
        "peer_timeout = \"3s\"",
        "peer_timeout = 3",
        &["an integer", "\"3…\""],
    );
    check("\"3s\"", "\"3\"", &["\"3\" has no unit", "\"3s\""]);
    check("\"3s\"", "\"3 weeks\"", &["no unit of a duration"]);
    check(
        "\"3s\"",
        "\"1ms\"",
        &["1ms is out of range", "between 500ms and 10m"],
    );
    check("\"100MiB/s\"", "\"100\"", &["\"100\" has no unit"]);
    check(
        "mode = \"sync\"",
        "buffer_memory = \"1MiB\"",
        &["out of range", "16MiB"],
    );
    check(
        "mode = \"sync\"",
        "busy_poll = \"2ms\"",
        &["2ms is out of range", "between 0s and 1ms"],
    );
    check("mode = \"sync\"", "insecure = \"yes\"", &["not a boolean"]);
    check(
        "\"10.5.0.5:29051\"",
        "\"server1:29051\"",
        &["no IP address", "host names are not looked up"],
    );
    check("\"10.5.0.5:29051\"", "\"10.5.0.5:0\"", &["port 0"]);
    check(
        "\"10.5.0.5:29051\"",
        "\"0.0.0.0:29051\"",
        &["no address that the other node can connect to"],
    );
    check("\"/dev/vdb1\"", "\"vdb1\"", &["relative path"]);
    check("\"unix\"", "\"unixx\"", &["no kind of export"]);
    check(
        "[\"unix\", \"tcp:127.0.0.1:10809\"]",
        "\"unix\"",
        &["not a list"],
    );
    check("name = \"md1\"", "name = \"../md1\"", &["no valid name"]);
    check("name = \"md1\"", "name = \"\"", &["empty"]);
}

#[test]
fn the_rates_of_a_resync_fit_each_other() {
    let max = "resync_rate_max = \"100MiB/s\"";
    let with = |min: &str, max_is: &str| {
        let both = format!("resync_rate_min = \"{min}\"\nresync_rate_max = \"{max_is}\"");
        GOOD.replacen(max, &both, 1)
    };
    let rates = |text: &str| {
        let config = parse(text).unwrap();
        let rates = config.volume_config(&config.mirrors[0], 0).resync_rates;
        (rates.min, rates.max)
    };
    assert_eq!(rates(&with("8MiB/s", "9MiB/s")), (8 << 20, 9 << 20));
    assert_eq!(rates(&with("8MiB/s", "8MiB/s")), (8 << 20, 8 << 20));
    assert_eq!(rates(&with("8MiB/s", "0MiB/s")), (8 << 20, 0));
    assert_eq!(rates(&with("0MiB/s", "8MiB/s")), (0, 8 << 20));
    // Whoever writes only a low maximum has not asked for more than that.
    parse(&GOOD.replacen("100MiB/s", "1MiB/s", 1)).unwrap();
    let problems = parse(&with("10MiB/s", "9MiB/s")).unwrap_err().into_vec();
    let [problem] = &problems[..] else {
        panic!("{problems:#?}")
    };
    let problem = problem.to_string();
    for part in [
        "cluster.toml:15",
        "resync_rate_min",
        "resync_rate_max, on line 16",
    ] {
        assert!(problem.contains(part), "{problem}");
    }
}

#[test]
fn a_cluster_has_exactly_two_named_nodes() {
    check(
        "[[node]]\nname = \"server2\"\n",
        "",
        &["there are 1 nodes", "exactly two"],
    );
    check(
        "[[mirror]]",
        "[[node]]\nname = \"server3\"\n[[mirror]]",
        &["there are 3 nodes"],
    );
    check(
        "name = \"server2\"",
        "name = \"server1\"",
        &["on line 7 too"],
    );
}

#[test]
fn every_mirror_has_a_side_on_each_node() {
    check(
        "[mirror.on.server2]",
        "[mirror.on.server3]",
        &["\"server3\" is no node", "did you mean"],
    );
    check(
        "[mirror.on.server2]",
        "[mirror.on.server3]",
        &["no side on \"server2\""],
    );
}

#[test]
fn addresses_and_paths_do_not_clash() {
    check("10.5.0.6:29051", "10.5.0.5:29051", &["the other side too"]);
    check(
        "tcp:127.0.0.1:10809",
        "tcp:10.5.0.5:29051",
        &["taken by mirror \"md1\" on \"server1\" replication"],
    );
    check(
        "metadata = \"/dev/vdb2\"",
        "metadata = \"/dev/vdb1\"",
        &["the data partition itself", "\"internal\""],
    );
    check("[\"unix\", ", "[\"unix\", \"unix\", ", &["listed twice"]);
    let second = GOOD[GOOD.find("[[mirror]]").unwrap()..].replace("md1", "md2");
    let problems = parse(&format!("{GOOD}{second}")).unwrap_err().to_string();
    assert!(
        problems.contains("10.5.0.6:29051 is taken by mirror \"md1\" on \"server2\""),
        "{problems}"
    );
    assert!(
        problems.contains("/dev/vdb2 is taken by mirror \"md1\" on \"server1\" metadata"),
        "{problems}"
    );
    let problems = parse(&format!(
        "{GOOD}{}",
        GOOD[GOOD.find("[[mirror]]").unwrap()..].to_owned()
    ))
    .unwrap_err()
    .to_string();
    assert!(
        problems.contains("\"md1\" is the name of the mirror on line 12 too"),
        "{problems}"
    );
}

#[test]
fn an_export_to_the_network_must_be_called_insecure() {
    check(
        "tcp:127.0.0.1:10809",
        "tcp:10.5.0.5:10809",
        &["without authentication", "insecure = true"],
    );
    let text = GOOD
        .replace("tcp:127.0.0.1:10809", "tcp:10.5.0.5:10809")
        .replace("mode = \"sync\"", "insecure = true");
    parse(&text).unwrap();
}

const TLS: &str = "\
[nbd.tls]
certificate_file = \"/etc/mirror/nbd/cert.pem\"
key_file = \"/etc/mirror/nbd/key.pem\"
client_ca_file = \"/etc/mirror/nbd/clients.pem\"

[[node]]";

#[test]
fn tls_of_exports_is_read() {
    let config = parse(&GOOD.replacen("[[node]]", TLS, 1)).unwrap();
    let tls = config.nbd_tls.unwrap();
    let path = |name: &str| PathBuf::from("/etc/mirror/nbd").join(name);
    assert_eq!(tls.certificate_file.value, path("cert.pem"));
    assert_eq!(tls.key_file.value, path("key.pem"));
    assert_eq!(tls.client_ca_file.unwrap().value, path("clients.pem"));
    assert!(parse(GOOD).unwrap().nbd_tls.is_none());
    let empty = parse(&GOOD.replacen("[[node]]", "[nbd]\n[[node]]", 1)).unwrap();
    assert!(empty.nbd_tls.is_none());
}

#[test]
fn tls_of_exports_is_checked_key_by_key() {
    let check = |from: &str, to: &str, parts: &[&str]| {
        assert!(TLS.contains(from), "{from:?} is not in the section");
        check("[[node]]", &TLS.replacen(from, to, 1), parts);
    };
    check(
        "client_ca_file",
        "client_caf_ile",
        &[
            "cluster.toml:9: nbd.tls client_caf_ile:",
            "did you mean \"client_ca_file\"?",
        ],
    );
    check(
        "[nbd.tls]",
        "[nbd.tsl]",
        &["cluster.toml:6: nbd tsl:", "did you mean \"tls\"?"],
    );
    check("[nbd.tls]", "[ndb.tls]", &["did you mean \"nbd\"?"]);
    check(
        "key_file = \"/etc/mirror/nbd/key.pem\"",
        "",
        &["cluster.toml:6: nbd.tls key_file:", "missing", "add a line"],
    );
    check(
        "certificate_file = \"/etc/mirror/nbd/cert.pem\"",
        "",
        &["nbd.tls certificate_file:", "missing", "add a line"],
    );
    check(
        "\"/etc/mirror/nbd/key.pem\"",
        "\"key.pem\"",
        &["cluster.toml:8: nbd.tls key_file:", "relative path"],
    );
    check(
        "[nbd.tls]",
        "[nbd]\ntls = true\n[cluster.x]",
        &["cluster.toml:7: nbd tls:", "[nbd.tls]"],
    );
}

#[test]
fn an_export_to_the_network_needs_tls_that_checks_its_clients() {
    let text = GOOD.replace("tcp:127.0.0.1:10809", "tcp:10.5.0.5:10809");
    let problems = parse(&text).unwrap_err().to_string();
    assert!(
        problems.contains("cluster.toml:21: mirror \"md1\" on \"server1\" nbd: 10.5.0.5:10809")
            && problems.contains("[nbd.tls] with client_ca_file"),
        "{problems}"
    );
    let with_tls = text.replacen("[[node]]", TLS, 1);
    assert_eq!(parse(&with_tls).unwrap().warnings.len(), 1);
    let unchecked = with_tls.replace("client_ca_file = \"/etc/mirror/nbd/clients.pem\"\n", "");
    let problems = parse(&unchecked).unwrap_err().to_string();
    assert!(
        problems.contains("without authentication of clients")
            && problems.contains("add client_ca_file to [nbd.tls]"),
        "{problems}"
    );
    let insecure = unchecked.replace("mode = \"sync\"", "insecure = true");
    let warnings = parse(&insecure).unwrap().warnings;
    assert!(
        warnings
            .iter()
            .any(|warning| warning.key.contains("insecure"))
    );
    let both = with_tls.replace("mode = \"sync\"", "insecure = true");
    assert_eq!(parse(&both).unwrap().warnings.len(), 1);
}

#[test]
fn modes_that_answer_ahead_name_what_they_may_lose() {
    let config = |lines: &str| parse(&GOOD.replace("mode = \"sync\"", lines)).unwrap();
    let warned = |config: &Config, key: &str| {
        config
            .warnings
            .iter()
            .any(|warning| warning.key == format!("mirror \"md1\" {key}"))
    };
    let ahead = config("mode = \"async\"\nqueue_size = \"8MiB\"\nqueue_full = \"degrade\"");
    let mirror = ahead.mirror("md1").unwrap();
    assert_eq!(mirror.mode, Mode::Async);
    assert_eq!(
        (mirror.queue_size, mirror.queue_full),
        (8 << 20, QueueFull::Degrade)
    );
    assert!(warned(&ahead, "mode") && warned(&ahead, "queue_full"));
    assert!(!warned(&ahead, "queue_size"));
    assert!(ahead.payload_memory(mirror) > (56 << 20));
    let half = config("mode = \"semisync\"\nqueue_full = \"block\"");
    assert!(warned(&half, "mode") && warned(&half, "queue_full"));
    let sync = config("mode = \"sync\"\nqueue_size = \"8MiB\"");
    assert!(warned(&sync, "queue_size") && !warned(&sync, "mode"));
    assert_eq!(sync.payload_memory(sync.mirror("md1").unwrap()), 48 << 20);
    check(
        "mode = \"sync\"",
        "bandwidth_max = \"1KiB/s\"",
        &["too little", "1MiB/s"],
    );
    check(
        "mode = \"sync\"",
        "queue_size = \"1KiB\"",
        &["out of range", "1MiB"],
    );
}

#[test]
fn compression_is_off_until_asked_for_and_may_differ_between_the_nodes() {
    let config = |lines: &str| parse(&GOOD.replace("mode = \"sync\"", lines)).unwrap();
    let plain = config("mode = \"sync\"");
    assert_eq!(plain.mirrors[0].compression, Compression::None);
    for (word, compression) in [
        ("none", Compression::None),
        ("data", Compression::Data),
        ("resync", Compression::Resync),
        ("both", Compression::Both),
    ] {
        let config = config(&format!("compression = {word:?}"));
        let mirror = &config.mirrors[0];
        assert_eq!(config.volume_config(mirror, 0).compression, compression);
        assert_eq!(config.digest(mirror), plain.digest(&plain.mirrors[0]));
    }
    check(
        "mode = \"sync\"",
        "compression = \"lz4\"",
        &["compression", "none of none, data, resync, both"],
    );
}

#[test]
fn a_device_of_the_kernel_is_named_by_its_path() {
    let with = |device: &str| GOOD.replace("nbd =", &format!("device = {device:?}\nnbd ="));
    let mirror = &parse(&with("/dev/nbd3")).unwrap().mirrors[0];
    assert_eq!(mirror.sides[0].device, Some(DeviceNumber(3)));
    assert_eq!(
        (mirror.device_timeout.as_secs(), mirror.device_connections),
        (60, 1)
    );
    let problems = parse(&with("/dev/drbd0")).unwrap_err().into_vec();
    assert!(
        problems[0].to_string().contains("write \"/dev/nbd0\""),
        "{}",
        problems[0]
    );
}

#[test]
fn all_problems_come_at_once_in_file_order() {
    let text = GOOD
        .replace("\"3s\"", "\"3\"")
        .replace("mode =", "mod =")
        .replace("\"/dev/vdb2\"", "\"vdb2\"");
    let problems: Vec<_> = parse(&text).unwrap_err().into_vec();
    let lines: Vec<_> = problems.iter().filter_map(|problem| problem.line).collect();
    assert_eq!(lines, [13, 14, 19], "{problems:?}");
}

#[test]
fn broken_toml_names_the_line() {
    let text = GOOD.replace("name = \"cluster1\"", "name = cluster1");
    let problems = parse(&text).unwrap_err().to_string();
    assert!(
        problems.contains("cluster.toml:3") && problems.contains("not TOML"),
        "{problems}"
    );
    let problems = parse("").unwrap_err().to_string();
    assert!(
        problems.contains("[cluster]")
            && problems.contains("exactly two")
            && problems.contains("no mirror"),
        "{problems}"
    );
}

#[test]
fn any_text_is_either_taken_or_refused_with_a_reason() {
    let pieces = [
        "[",
        "]",
        "=",
        "\"",
        "\n",
        "name",
        "mirror",
        "on",
        "1",
        "{",
        "}",
        ".",
        "é",
        "node",
        "[[node]]\n",
    ];
    let mut state = 1u64;
    for _ in 0..2_000 {
        let mut text = String::new();
        for _ in 0..(state % 24) {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            text.push_str(pieces[(state >> 33) as usize % pieces.len()]);
        }
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
        assert!(!parse(&text).unwrap_err().to_string().is_empty());
    }
}

#[test]
fn the_node_must_be_one_of_the_file() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.node_index(Some("server2")).unwrap(), 1);
    let error = config.node_index(Some("server9")).unwrap_err().to_string();
    assert!(
        error.contains("server9")
            && error.contains("server1 and server2")
            && error.contains("--node"),
        "{error}"
    );
}

#[test]
fn the_digest_covers_what_both_sides_must_share_and_nothing_local() {
    let digest = |text: &str| {
        let config = parse(text).unwrap();
        config.digest(&config.mirrors[0])
    };
    assert_eq!(
        digest(GOOD),
        digest(&GOOD.replace("/dev/vdb2", "/dev/vdc2"))
    );
    assert_eq!(digest(GOOD), digest(&GOOD.replace("\"3s\"", "\"4s\"")));
    assert_ne!(
        digest(GOOD),
        digest(&GOOD.replace("peer_timeout = \"3s\"", "encryption = \"off\""))
    );
    assert_ne!(digest(GOOD), digest(&GOOD.replace("\"sync\"", "\"async\"")));
    assert_ne!(digest(GOOD), digest(&GOOD.replace("server2", "server3")));
}

#[test]
fn choices_with_a_price_are_named_but_allowed() {
    let text = GOOD.replace("mode = \"sync\"", "encryption = \"off\"\ninsecure = true");
    let warnings: Vec<_> = parse(&text)
        .unwrap()
        .warnings
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    assert!(warnings[0].contains("answered writes can be lost"));
    let text = GOOD.replace("mode = \"sync\"", "peer_loss = \"hold\"");
    assert!(parse(&text).unwrap().warnings.is_empty());
}
