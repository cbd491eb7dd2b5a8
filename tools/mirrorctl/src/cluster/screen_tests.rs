//! The screen, letter by letter.

use agent::control::{LeaseStatus, StartupStatus};
use mirror_core::control::{MirrorStatus, Role};

use super::*;

fn health(name: &str, kind: &str, health: Health) -> HealthStatus {
    HealthStatus {
        name: name.into(),
        kind: kind.into(),
        health,
        detail: None,
    }
}

fn node(name: &str, state: NodeState) -> NodeStatus {
    NodeStatus {
        name: name.into(),
        state,
        standby: false,
        paths: Vec::new(),
        resolvers: Vec::new(),
    }
}

/// Two nodes and a group in order, as server1 sees them.
fn sample() -> ClusterStatus {
    let mut nodes = vec![
        node("server1", NodeState::Online),
        node("server2", NodeState::Online),
    ];
    nodes[0].resolvers = vec![health("ping1", "ping", Health::Normal)];
    nodes[1].paths = vec![health("interconnect", "LAN heartbeat", Health::Normal)];
    let resource = |name: &str, kind: &str| ResourceStatus {
        name: name.into(),
        kind: kind.into(),
        state: State::Online,
        error: None,
    };
    ClusterStatus {
        cluster: "cluster1".into(),
        node: "server1".into(),
        nodes,
        groups: vec![GroupStatus {
            name: "failover1".into(),
            state: State::Online,
            states: vec![State::Online, State::Offline],
            current: vec!["server1".into()],
            waits_for: None,
            mirrors: vec!["md1".into()],
            resources: vec![
                resource("disk", "mirror-disk"),
                resource("address", "floating-ip"),
            ],
        }],
        monitors: vec![MonitorStatus {
            name: "mdw1".into(),
            kind: "mirror-disk".into(),
            health: Health::Normal,
            detail: None,
        }],
        monitors_suspended: false,
        mirrors: vec![MirrorStatus::in_step("md1", Role::Primary, "server2")],
        arbiter: None,
        forced_stop: None,
        startup: None,
        warnings: Vec::new(),
    }
}

#[track_caller]
fn check(change: impl FnOnce(&mut ClusterStatus), expected: &str) {
    let mut status = sample();
    change(&mut status);
    let screen = render(&status);
    assert_eq!(screen, expected, "\n{screen}");
}

#[test]
fn a_cluster_in_order_is_one_screen() {
    check(
        |_| {},
        " ========================  CLUSTER STATUS  ===========================
  Cluster : cluster1
  <server>
   *server1 ........: Online
      ping1          : Normal           ping
    server2 ........: Online
      interconnect   : Normal           LAN heartbeat
  <group>
    failover1 ......: Online
      current        : server1
      disk           : Online           mirror-disk
      address        : Online           floating-ip
  <monitor>
    mdw1             : Normal           mirror-disk
  <mirror>
    md1 : active sync primary server1[P] server2[S]
          1048576 KiB  generation 9f3c0123…  [UU]
 =====================================================================
",
    );
}

#[test]
fn both_nodes_active_is_the_first_thing_seen_and_comes_with_its_command() {
    check(
        |status| {
            status.warnings = vec!["server2 is not heard, and nothing stopped it".into()];
            status.nodes[1].state = NodeState::Lost;
            status.groups[0].states = vec![State::Online; 2];
            status.groups[0].current = vec!["server1".into(), "server2".into()];
            status.groups[0].resources.clear();
            status.monitors.clear();
            status.mirrors.clear();
        },
        " ========================  CLUSTER STATUS  ===========================
  !!! BOTH NODES ARE ACTIVE: failover1 runs on server1 and server2
  !!!   choose the side to keep, then: mirrorctl group resolve failover1 --keep NODE
  !!! server2 is not heard, and nothing stopped it
  Cluster : cluster1
  <server>
   *server1 ........: Online
      ping1          : Normal           ping
    server2 ........: Lost
      interconnect   : Normal           LAN heartbeat
  <group>
    failover1 ......: Online  !!! on both nodes
      current        : server1, server2
 =====================================================================
",
    );
}

#[test]
fn a_waiting_node_says_for_what_and_how_long() {
    check(
        |status| {
            status.startup = Some(StartupStatus {
                delay_ms: 126_000,
                remaining_ms: 57_250,
            });
            status.nodes[0].state = NodeState::Pending;
            status.nodes[0].resolvers.clear();
            status.nodes[1].state = NodeState::Unknown;
            status.nodes[1].standby = true;
            status.nodes[1].paths[0].health = Health::Error;
            status.nodes[1].paths[0].detail = Some("silent for 12 s".into());
            let group = &mut status.groups[0];
            group.state = State::Offline;
            group.states = vec![State::Offline, State::Unknown];
            group.current.clear();
            group.waits_for = Some("server2: its data may be newer".into());
            for resource in &mut group.resources {
                resource.state = State::Offline;
            }
            status.monitors_suspended = true;
            status.mirrors.clear();
            status.monitors.clear();
        },
        " ========================  CLUSTER STATUS  ===========================
  Cluster : cluster1
  Start-up delay : 57.250 s of 126.000 s left; no group starts before its end
  <server>
   *server1 ........: Pending
    server2 ........: Unknown, Standby
      interconnect   : Error            LAN heartbeat  silent for 12 s
  <group>
    failover1 ......: Unknown
      on server2     : Unknown
      waits for      : server2: its data may be newer
      disk           : Offline here     mirror-disk
      address        : Offline here     floating-ip
  <monitor>  suspended; they go on with: mirrorctl monitor resume
 =====================================================================
",
    );
}

#[test]
fn arbiter_leases_and_the_forced_stop_are_shown_and_long_names_push_on() {
    check(
        |status| {
            status.arbiter = Some(ArbiterStatus {
                url: "https://witness.example:29080".into(),
                health: Health::Normal,
                detail: None,
                leases: vec![LeaseStatus {
                    mirror: "md1".into(),
                    epoch: 4,
                    remaining_ms: 7_010,
                }],
            });
            status.forced_stop = Some(ForcedStopStatus {
                kind: "aws".into(),
                health: Health::Error,
                detail: Some("the credentials have expired".into()),
            });
            status.nodes.clear();
            status.mirrors.clear();
            status.monitors[0].health = Health::Caution;
            status.monitors[0].detail = Some("no answer within 5 s".into());
            let group = &mut status.groups[0];
            group.name = "a-group-with-a-long-name".into();
            group.state = State::Failed;
            group.states = vec![State::Failed, State::Offline];
            group.resources[0].state = State::Failed;
            group.resources[0].error = Some("/srv/data does not exist".into());
            group.resources[1].state = State::Offline;
        },
        " ========================  CLUSTER STATUS  ===========================
  Cluster : cluster1
  <server>
  <group>
    a-group-with-a-long-name .: Failed
      current        : server1
      disk           : Failed           mirror-disk  /srv/data does not exist
      address        : Offline          floating-ip
  <monitor>
    mdw1             : Caution          mirror-disk  no answer within 5 s
  <arbiter>
    https://witness.example:29080: Normal
      md1            : lease of epoch 4, 7.010 s left
  <forced stop>
    aws              : Error              the credentials have expired
 =====================================================================
",
    );
}

#[test]
fn a_group_is_as_alive_as_on_its_liveliest_node() {
    for (states, expected) in [
        (&[State::Offline, State::Online][..], State::Online),
        (&[State::Unknown, State::Online], State::Online),
        (&[State::Offline, State::Unknown], State::Unknown),
        (&[State::Failed, State::Unknown], State::Failed),
        (
            &[State::OfflinePending, State::Offline],
            State::OfflinePending,
        ),
        (&[], State::Offline),
    ] {
        assert_eq!(overall(states), expected, "{states:?}");
    }
}
