//! What cannot be between keys: names, nodes, addresses, order and times that do not go together.

use super::*;

const PATH: &str = "name = \"public\"";
const ARBITER: &str = "[arbiter]";
const DISK: &str = "name = \"disk\"";
const ADDRESS: &str = "name = \"address\"";
const PROBE: &str = "name = \"probe\"";
const PROCESS: &str = "name = \"app-runs\"";
const LINK: &str = "name = \"link\"";

#[test]
fn names_are_unique_and_known() {
    refused(
        PATH,
        "name = \"interconnect\"",
        &["heartbeat.path name", "on line", "its own name"],
    );
    refused(PATH, "name = \"a b\"", &["no valid name"]);
    refused(
        "kind = \"witness\"",
        "kind = \"witness\"\nname = \"ping\"",
        &["partition.resolver name"],
    );
    refused(
        ADDRESS,
        DISK,
        &["group \"failover1\" resource name", "on line"],
    );
    refused(LINK, PROCESS, &["monitor name", "on line"]);
    let group = GOOD.find("[[group]]").unwrap();
    let monitor = GOOD.find("[[monitor]]").unwrap();
    let problems = parse(&format!("{GOOD}{}", &GOOD[group..monitor]))
        .unwrap_err()
        .to_string();
    for part in [
        "group name: \"failover1\" is on line",
        "mirror: \"md1\" belongs to group \"failover1\" resource \"disk\" already",
        "mount: /srv/data belongs to",
        "address: 192.0.2.100 is taken by group \"failover1\" resource \"address\"",
        "0.0.0.0:29010 is taken by group \"failover1\" resource \"probe\" http",
    ] {
        assert!(problems.contains(part), "{part}\n{problems}");
    }

    refused(
        "nodes = [\"server2\", \"server1\"]",
        "nodes = [\"server3\"]",
        &["no node", "did you mean"],
    );
    refused(
        "nodes = [\"server2\", \"server1\"]",
        "nodes = []",
        &["no node may run it"],
    );
    refused(
        "nodes = [\"server2\", \"server1\"]",
        "nodes = \"server1\"",
        &["not a list"],
    );
    refused(
        "\"server2\", \"server1\"",
        "\"server2\", \"server2\"",
        &["listed twice"],
    );
    refused(
        "mirror = \"md1\"\nmount",
        "mirror = \"md2\"\nmount",
        &["no mirror", "did you mean \"md1\"?"],
    );
    refused(
        "group = \"failover1\"",
        "group = \"failover2\"",
        &["no group", "did you mean \"failover1\"?"],
    );
    refused(
        "resource = \"app\"",
        "resource = \"ap\"",
        &["no resource of group", "did you mean \"app\"?"],
    );
    let monitor = "[[monitor]]\nkind = \"mirror-link\"\nname = \"m\"\nmirror = \"md9\"\n";
    let problems = parse(&format!("{GOOD}{monitor}")).unwrap_err().to_string();
    assert!(
        problems.contains("\"md9\" is no mirror of this file"),
        "{problems}"
    );
}

#[test]
fn what_differs_by_node_is_there_for_both_nodes_and_no_other() {
    refused(
        "on = { server1 = \"192.0.2.5:29002\", server2",
        "on = { server1 = \"192.0.2.5:29002\", server3",
        &[
            "heartbeat.path \"public\" on",
            "\"server3\" is no node",
            "did you mean",
        ],
    );
    refused(
        ", server2 = \"192.0.2.6:29002\" }",
        " }",
        &["no value for \"server2\"", "add server2 = …"],
    );
    refused(
        "on = { server1 = \"192.0.2.5:29002\", server2 = \"192.0.2.6:29002\" }",
        "on = \"192.0.2.5:29002\"",
        &["a value for each node"],
    );
    refused(
        "server1 = \"192.0.2.5:29002\"",
        "server1 = \"192.0.2.5\"",
        &["on \"server1\"", "no IP address with a port"],
    );
    refused(
        "[forced_stop.on.server2]",
        "[forced_stop.on.server3]",
        &["\"server3\" is no node"],
    );
    refused(
        "[forced_stop.on.server2]",
        "[forced_stop.on.server3]",
        &["no value for \"server2\""],
    );
    refused(
        ", server2 = \"eth1\" }",
        " }",
        &["monitor \"link\" interface on", "no value for \"server2\""],
    );
    refused(
        "interface = \"eth0\"",
        "interface = { eth0 = 1 }",
        &["interface on", "missing"],
    );
    refused(
        "[forced_stop.on.server1]\ninstance = \"i-0123456789abcdef0\"",
        "[forced_stop.on]\nserver1 = \"i-0123456789abcdef0\"",
        &["a section belongs"],
    );
}

#[test]
fn resources_start_in_an_order_that_exists() {
    let needs = |names: &str| format!("depends_on = [{names}]\nstart =");
    let from = "depends_on = [\"disk\"]\nstart =";
    refused(
        from,
        &needs("\"dsik\""),
        &["no resource of this group", "did you mean \"disk\"?"],
    );
    refused(from, &needs("\"app\""), &["depends on itself"]);
    refused(from, &needs("\"disk\", \"disk\""), &["listed twice"]);
    refused(
        from,
        &needs("\"probe\""),
        &["\"probe\" is written below it", "above this one"],
    );
    let text = with(GOOD, from, &needs("\"probe\""));
    let text = with(&text, PROBE, "name = \"probe\"\ndepends_on = [\"app\"]");
    let problems = parse(&text).unwrap_err().to_string();
    assert!(
        problems.contains("it and \"probe\" depend on each other"),
        "{problems}"
    );
    let monitor = GOOD.find("[[monitor]]").unwrap();
    let empty = format!("{}[[group]]\nname = \"empty\"\n", &GOOD[..monitor]);
    let problems = parse(&empty).unwrap_err().to_string();
    assert!(
        problems.contains("group \"empty\": it has no resources"),
        "{problems}"
    );
}

#[test]
fn times_fit_each_other() {
    refused(
        "timeout = \"90s\"",
        "timeout = \"8s\"",
        &["less than 3 intervals of 3 s", "at least 9 s"],
    );
    refused(
        "timeout = \"1s\"",
        "timeout = \"91s\"",
        &["longer than the heartbeat timeout of 90 s"],
    );
    refused_below(
        ARBITER,
        "timeout = \"5s\"",
        &["no room for two attempts of 5 s", "at least 15 s"],
    );
}

#[test]
fn resolvers_have_whom_they_ask() {
    let arbiter = GOOD.find("[arbiter]").unwrap();
    let group = GOOD.find("[[group]]").unwrap();
    let without = format!("{}{}", &GOOD[..arbiter], &GOOD[group..]);
    let problems = parse(&without).unwrap_err().to_string();
    assert!(
        problems.contains("there is no witness to ask") && problems.contains("add [arbiter]"),
        "{problems}"
    );
    let majority = with(&without, "kind = \"witness\"", "kind = \"majority\"");
    let problems = parse(&majority).unwrap_err().to_string();
    assert!(
        problems.contains("two nodes alone have no majority"),
        "{problems}"
    );
    refused(
        "kind = \"witness\"",
        "kind = \"none\"",
        &["\"none\" stands beside other resolvers"],
    );
    let resolver = "[[partition.resolver]]\nkind = \"majority\"\n";
    let many: String = (0..8)
        .map(|nth| format!("{resolver}name = \"r{nth}\"\n"))
        .collect();
    refused(
        "[forced_stop]\n",
        &format!("{many}[forced_stop]\n"),
        &["there are 10 resolvers", "at most 8"],
    );
}

#[test]
fn heartbeats_have_a_path_and_not_too_many() {
    let paths = GOOD.find("[[heartbeat.path]]").unwrap();
    let partition = GOOD.find("[partition]").unwrap();
    let none = format!("{}{}", &GOOD[..paths], &GOOD[partition..]);
    let problems = parse(&none).unwrap_err().to_string();
    assert!(
        problems.contains("there are 0 paths") && problems.contains("write 1 to 8"),
        "{problems}"
    );
    let more: String = (0..7)
        .map(|nth| {
            format!(
                "[[heartbeat.path]]\nname = \"p{nth}\"\n\
                 on.server1 = \"10.6.{nth}.1:1\"\non.server2 = \"10.6.{nth}.2:1\"\n"
            )
        })
        .collect();
    refused(
        "[partition]",
        &format!("{more}[partition]"),
        &["there are 9 paths"],
    );
}

#[test]
fn a_heartbeat_has_room_for_so_many_groups() {
    let more: String = (0..64)
        .map(|nth| {
            format!(
                "[[group]]\nname = \"g{nth}\"\n\
                 [[group.resource]]\nkind = \"exec\"\nname = \"a\"\n\
                 start = [\"/bin/true\"]\nstop = [\"/bin/true\"]\n"
            )
        })
        .collect();
    refused(
        "[[monitor]]",
        &format!("{more}[[monitor]]"),
        &["has room for 64", "[[group]]"],
    );
}

#[test]
fn a_monitor_without_a_group_says_nothing_about_one() {
    let from = "group = \"failover1\"\nresource = \"app\"\n";
    for line in [
        "resource = \"app\"",
        "restarts_max = 1",
        "failovers_max = 1",
        "final_action = \"stop-group\"",
    ] {
        refused(
            from,
            &format!("{line}\n"),
            &["this monitor is about no group", "group = "],
        );
    }
    let text = with(GOOD, from, "restarts_max = 0\nfinal_action = \"reboot\"\n");
    assert_eq!(agent(&text).monitors[0].final_action, FinalAction::Reboot);
}

#[test]
fn a_stall_is_of_the_agent_and_of_no_group() {
    let stall = "[[monitor]]\nkind = \"stall\"\nname = \"stall\"\nwatchdog = \"/dev/watchdog\"\n";
    let monitors = agent(&format!("{GOOD}{stall}")).monitors;
    let interval = monitors.last().unwrap().interval;
    assert_eq!(interval, std::time::Duration::from_secs(5));
    let problems = parse(&format!("{GOOD}{stall}group = \"failover1\"\n"));
    let problems = problems.unwrap_err().to_string();
    assert!(
        problems.contains("a stall is one of the agent itself"),
        "{problems}"
    );
}
