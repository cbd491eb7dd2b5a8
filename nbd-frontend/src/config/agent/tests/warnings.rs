//! Every warning: a file that earns it, beside one that does not.

use super::*;

fn warnings_on(machine: Machine, text: &str) -> Vec<String> {
    let config = Config::parse_for(machine, Path::new("cluster.toml"), text);
    let config = config.unwrap_or_else(|problems| panic!("{problems}"));
    config.warnings.iter().map(ToString::to_string).collect()
}

/// `text` earns one warning with all of `parts`, and `mended` none with the first of them.
#[track_caller]
fn warned(text: &str, mended: &str, parts: &[&str]) {
    let found = warnings_on(Machine::Virtual, text);
    let whole = found
        .iter()
        .filter(|warning| parts.iter().all(|part| warning.contains(part)));
    assert_eq!(whole.count(), 1, "one warning with {parts:?}: {found:#?}");
    let found = warnings_on(Machine::Virtual, mended);
    assert!(
        !found.iter().any(|warning| warning.contains(parts[0])),
        "{found:#?}"
    );
}

/// The good file without the sections from `from` up to `to`.
fn without(text: &str, from: &str, to: &str) -> String {
    let start = text.find(from).expect("it is in the file");
    let end = start + text[start..].find(to).expect("it is in the file");
    format!("{}{}", &text[..start], &text[end..])
}

const WITNESS: &str = "\n[[partition.resolver]]\nkind = \"witness\"\n";
const MD1: &str = "name = \"md1\"";

/// Ping and forced stop.
fn classic() -> String {
    without(&with(GOOD, WITNESS, ""), "[arbiter]", "[[group]]")
}

/// Ping and witness.
fn witness() -> String {
    without(GOOD, "[forced_stop]", "[arbiter]")
}

/// Ping alone.
fn bare() -> String {
    without(&classic(), "[forced_stop]", "[[group]]")
}

fn with_resolvers(text: &str, resolvers: &str) -> String {
    let end = if text.contains("[forced_stop]") {
        "[forced_stop]"
    } else if text.contains("[arbiter]") {
        "[arbiter]"
    } else {
        "[[group]]"
    };
    let none = without(text, "[[partition.resolver]]", end);
    with(&none, end, &format!("{resolvers}\n{end}"))
}

#[test]
fn complete_set_ups_earn_no_warning() {
    for text in [GOOD.to_owned(), classic(), witness()] {
        for machine in [Machine::Virtual, Machine::Physical] {
            let found = warnings_on(machine, &text);
            assert!(found.is_empty(), "{found:#?}");
        }
    }
}

#[test]
fn a_pair_without_resolver() {
    let both = "both nodes can become active";
    let title = "no network-partition resolver";
    for base in [classic(), bare()] {
        warned(
            &with_resolvers(&base, ""),
            &base,
            &[title, "cluster.toml:", both, "kind = \"ping\""],
        );
        let none = "[[partition.resolver]]\nkind = \"none\"\n";
        warned(
            &with_resolvers(&base, none),
            &base,
            &[title, "resolver \"none\"", both],
        );
    }
    // The lease keeps one of the two from answering.
    let found = warnings_on(Machine::Virtual, &with_resolvers(&witness(), ""));
    assert!(
        found[0].contains(title) && !found[0].contains(both),
        "{found:#?}"
    );
}

#[test]
fn a_resolver_whose_target_is_in_the_cluster() {
    let title = "is inside the cluster";
    for (target, owner) in [
        ("192.0.2.5", "heartbeat.path \"public\" on \"server1\""),
        (
            "10.5.0.6",
            "the replication of mirror \"md1\" on \"server2\"",
        ),
        ("192.0.2.100", "group \"failover1\" resource \"address\""),
        ("127.0.0.1", "this node itself"),
        ("::1", "this node itself"),
    ] {
        let text = with(GOOD, "\"192.0.2.1\",", &format!("{target:?},"));
        warned(
            &text,
            GOOD,
            &[title, target, owner, "both nodes can become active"],
        );
    }
    for (url, owner) in [
        (
            "http://192.0.2.6:8080/",
            "heartbeat.path \"public\" on \"server2\"",
        ),
        ("https://Server1/", "the node \"server1\""),
        ("http://localhost/", "this node itself"),
        ("http://[::1]:80/", "this node itself"),
    ] {
        let text = with(
            GOOD,
            "kind = \"witness\"",
            &format!("kind = \"http\"\ntargets = [{url:?}]"),
        );
        let outside = text.replace(url, "http://192.0.2.1/");
        warned(&text, &outside, &[title, url, owner]);
    }
}

#[test]
fn a_pair_with_neither_forced_stop_nor_arbiter() {
    let parts = [
        "neither a forced stop nor an arbiter",
        "both nodes can become active",
        "add [arbiter]",
    ];
    for mended in [classic(), witness()] {
        warned(&bare(), &mended, &parts);
    }
}

#[test]
fn a_failover_after_a_failed_stop() {
    let risky = |text: &str| {
        with(
            text,
            "kind = \"aws\"",
            "kind = \"aws\"\nfailover_on_failure = true",
        )
    };
    let parts = [
        "failover_on_failure",
        "both nodes can become active",
        "add [arbiter]",
    ];
    warned(&risky(&classic()), &classic(), &parts);
    warned(&risky(&classic()), &risky(GOOD), &parts);
}

#[test]
fn two_nodes_that_stop_each_other() {
    let delay = |text: &str, delay: &str| {
        with(
            text,
            "[forced_stop]",
            &format!("[forced_stop]\nfence_delay = {delay:?}"),
        )
    };
    let parts = ["fence_delay", "stop each other", "write 66 s or more"];
    warned(&delay(&classic(), "0"), &delay(&classic(), "63s"), &parts);
    warned(&delay(&classic(), "62999ms"), &classic(), &parts);
    // The arbiter lets only one of them go that far.
    warned(&delay(&classic(), "0"), &delay(GOOD, "0"), &parts);
    // A script may take all of its time-out until it hits.
    let script = |timeout: &str| {
        let script = format!("kind = \"custom\"\nscript = \"/x\"\ntimeout = {timeout:?}\n");
        let text = without(&classic(), "kind = \"aws\"", "[[group]]");
        with(
            &text,
            "[forced_stop]\n",
            &format!("[forced_stop]\n{script}"),
        )
    };
    let parts = [
        "fence_delay",
        "stop each other",
        "606 s or more",
        "`timeout`",
    ];
    let slow = delay(&script("10m"), "3s");
    warned(&slow, &script("10m"), &parts);
    warned(&slow, &delay(&script("10s"), "13s"), &parts);
    for (text, seconds) in [(script("10s"), 16), (classic(), 66), (GOOD.to_owned(), 6)] {
        let stop = agent(&text).forced_stop.expect("it is in the file");
        assert_eq!(stop.fence_delay, Duration::from_secs(seconds));
    }
}

#[test]
fn a_start_up_delay_below_the_sum() {
    let delay = |delay: &str| {
        with(
            GOOD,
            "[heartbeat]",
            &format!("[agent]\nservice_startup_delay = {delay:?}\n[heartbeat]"),
        )
    };
    let parts = [
        "service_startup_delay",
        "168 s is too short (169 s = 2 × 6 s fence delay + 60 s forced stop",
        "\"auto\"",
    ];
    warned(&delay("168s"), &delay("169s"), &parts);
    warned(&delay("168s"), &delay("auto"), &parts);
}

#[test]
fn a_mirror_that_goes_on_alone() {
    let written = |text: &str| with(text, MD1, "name = \"md1\"\npeer_loss = \"continue\"");
    let parts = [
        "peer_loss",
        "both nodes can become active",
        "remove peer_loss",
    ];
    for base in [GOOD.to_owned(), classic(), witness()] {
        warned(&written(&base), &base, &parts);
    }
    let hold = with(&bare(), MD1, "name = \"md1\"\npeer_loss = \"hold\"");
    warned(
        &bare(),
        &hold,
        &["peer_loss", "both nodes can become active", "add [arbiter]"],
    );
}

#[test]
fn a_virtual_machine_that_trusts_its_clock() {
    let clock = |text: &str| with(text, "lease = \"12s\"", "lease_check = \"clock\"");
    let parts = [
        "lease_check",
        "paused",
        "both nodes can become active",
        "add [forced_stop]",
    ];
    warned(&clock(&witness()), &witness(), &parts);
    warned(&clock(&witness()), &clock(GOOD), &parts);
    let unsure = with(
        GOOD,
        "[forced_stop]",
        "[forced_stop]\nfailover_on_failure = true",
    );
    warned(&clock(&unsure), &clock(GOOD), &parts);
    let physical = warnings_on(Machine::Physical, &clock(&witness()));
    assert!(physical.is_empty(), "{physical:#?}");
}

#[test]
fn an_arbiter_on_one_of_the_nodes_or_with_a_long_lease() {
    for host in ["192.0.2.5", "10.5.0.6", "127.0.0.1", "server2"] {
        let text = with(GOOD, "192.0.2.9", host);
        warned(
            &text,
            GOOD,
            &["the arbiter is inside the cluster", "third host"],
        );
    }
    let text = with(GOOD, "lease = \"12s\"", "lease = \"91s\"");
    let mended = with(GOOD, "lease = \"12s\"", "lease = \"90s\"");
    warned(
        &text,
        &mended,
        &["outlives the heartbeat timeout", "91 s", "90 s"],
    );
}

#[test]
fn heartbeat_paths_that_fail_together() {
    let one = without(GOOD, "[[heartbeat.path]]\nname = \"public\"", "[partition]");
    warned(
        &one,
        GOOD,
        &["the only heartbeat path", "second [[heartbeat.path]]"],
    );
    warned(&one, GOOD, &["in the network of the replication"]);
    let same = with(GOOD, "192.0.2.5:29002", "10.5.0.5:29003");
    warned(
        &same,
        GOOD,
        &[
            "in the network of the replication",
            "network of the clients",
        ],
    );
    let same = GOOD
        .replace("10.5.0.", "fd00::")
        .replace("fd00::5:", "[fd00::5]:")
        .replace("fd00::6:", "[fd00::6]:")
        .replace("192.0.2.5:29002", "[fd00::7]:29002")
        .replace("192.0.2.6:29002", "[fd00::8]:29002");
    warned(&same, GOOD, &["in the network of the replication"]);
}

#[test]
fn mirrors_and_groups_that_do_not_belong_together() {
    let group = GOOD.find("[[group]]").unwrap();
    warned(
        &GOOD[..group],
        GOOD,
        &["no group has it", "mirror \"md1\"", "by hand"],
    );
    let other = format!(
        "{GOOD}[[group]]\nname = \"web\"\n[[group.resource]]\nkind = \"systemd\"\n\
         name = \"server\"\nunit = \"nginx.service\"\n"
    );
    let parts = [
        "it has no mirror-disk",
        "group \"web\"",
        "both become active",
    ];
    warned(&other, GOOD, &parts);
    warned(
        &other,
        &with(&other, "name = \"web\"", "name = \"web\"\nfailover = false"),
        &parts,
    );
    let short = with(
        GOOD,
        "name = \"disk\"",
        "name = \"disk\"\nstart_timeout = \"1h\"",
    );
    let parts = [
        "start_timeout",
        "3600 s ends before a check of the file system",
        "7200 s",
    ];
    warned(&short, GOOD, &parts);
    warned(
        &short,
        &with(
            &short,
            "name = \"disk\"",
            "name = \"disk\"\nfsck = \"never\"",
        ),
        &parts,
    );
}

#[test]
fn the_set_ups_of_the_reference_earn_no_warning() {
    let page = include_str!("../../../../../docs/configuration.md");
    let blocks: Vec<&str> = page
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    let block = |part: &str| {
        let mut found = blocks.iter().filter(|block| block.contains(part));
        *found.next().expect("the page has it")
    };
    let base = block("[cluster]");
    let classic = format!("{base}\n{}", block("kind = \"custom\""));
    let in_place = |sections: &str| {
        let rest = without(&classic, "[[partition.resolver]]", "[[group]]");
        with(&rest, "[[group]]", &format!("{sections}\n[[group]]"))
    };
    let witness = in_place(block("[arbiter]"));
    let both = in_place(block("kind = \"aws\""));
    assert!(!witness.contains("[forced_stop]") && both.contains("[arbiter]"));
    for text in [classic.clone(), witness, both] {
        let found = warnings_on(Machine::Virtual, &text);
        assert!(found.is_empty(), "{text}\n{found:#?}");
    }
}
