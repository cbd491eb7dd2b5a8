//! The resource `floating-ip` between network namespaces: two nodes and a client on one bridge. Needs root.

mod ground;

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use agent::io::probe::ResolverProbe;
use agent::io::resource::{Permit, Presence, Resource};
use agent::node::event::Grant;
use nbd_frontend::config::agent::{
    FloatingIp, Need, Resolver, ResolverKind, Resource as Config, ResourceKind,
};

use ground::{LIMIT, Namespaces};

fn floating(address: &str, prefix: u8, interface: &str) -> Resource {
    let config = Config {
        name: "address".into(),
        kind: ResourceKind::FloatingIp(FloatingIp {
            address: address.parse().unwrap(),
            prefix,
            interfaces: [interface.into(), interface.into()],
        }),
        depends_on: Vec::new(),
        start_timeout: LIMIT,
        stop_timeout: LIMIT,
        start_retries: 0,
    };
    Resource::new(&config, "group", 0, Path::new("/nowhere"))
}

async fn ping(target: IpAddr, timeout: Duration) -> Result<(), String> {
    let resolver = Resolver {
        name: "ping".into(),
        kind: ResolverKind::Ping {
            targets: vec![target],
            need: Need::All,
        },
        interval: timeout,
        timeout,
    };
    ResolverProbe::new(&resolver).unwrap().probe().await
}

fn start(net: &Namespaces, node: usize, address: &str, prefix: u8) -> Result<(), String> {
    net.within(node, async {
        let resource = floating(address, prefix, "eth0");
        let started = resource.start(&Permit::default()).await;
        if started.is_ok() {
            resource.start(&Permit::default()).await.unwrap();
            resource.check().await.unwrap();
            assert_eq!(resource.probe_state().await.unwrap(), Presence::Online);
        }
        started.map_err(|error| error.to_string())
    })
}

fn stop(net: &Namespaces, node: usize, address: &str, prefix: u8) {
    net.within(node, async {
        let resource = floating(address, prefix, "eth0");
        resource.stop(false).await.unwrap();
        resource.stop(false).await.unwrap();
        assert!(resource.check().await.is_err());
        assert_eq!(resource.probe_state().await.unwrap(), Presence::Offline);
    });
}

/// The client learns the address on one node, and finds it on the other without being asked to look again.
fn check_move(address: &str, prefix: u8) {
    let net = Namespaces::new();
    let target: IpAddr = address.parse().unwrap();
    start(&net, 0, address, prefix).unwrap();
    net.within(2, async { ping(target, LIMIT).await.unwrap() });
    assert_eq!(net.neighbour(address), net.hardware(0));
    stop(&net, 0, address, prefix);
    start(&net, 1, address, prefix).unwrap();
    net.wait_for_neighbour(address, &net.hardware(1));
    net.within(2, async { ping(target, LIMIT).await.unwrap() });
}

#[test]
fn neighbours_learn_that_an_address_moved() {
    check_move("192.0.2.9", 24);
}

#[test]
fn neighbours_learn_that_an_address_of_version_6_moved() {
    check_move("2001:db8::9", 64);
}

#[test]
fn an_address_that_another_host_has_is_refused_unless_the_arbiter_granted_it() {
    let net = Namespaces::new();
    for (address, prefix) in [("192.0.2.9", 24), ("2001:db8::9", 64)] {
        start(&net, 0, address, prefix).unwrap();
        let error = start(&net, 1, address, prefix).unwrap_err();
        assert!(error.contains("is in use: the host"), "{error}");
        assert!(error.contains(&net.hardware(0)), "{error}");
        stop(&net, 1, address, prefix);
        net.within(1, async {
            let grant = Grant {
                epoch: 1,
                deadline_ms: u64::MAX,
            };
            let permit = Permit {
                grant: Some(grant),
                ..Permit::default()
            };
            let resource = floating(address, prefix, "eth0");
            resource.start(&permit).await.unwrap();
            resource.stop(true).await.unwrap();
        });
    }
}

#[test]
fn a_missing_interface_and_a_silent_target_are_named() {
    let net = Namespaces::new();
    net.within(0, async {
        let resource = floating("192.0.2.9", 24, "eth7");
        let error = resource.start(&Permit::default()).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("no interface eth7"), "{text}");
        assert!(text.contains("eth0"), "{text}");
        let silent = ping([192, 0, 2, 77].into(), Duration::from_millis(300)).await;
        let text = silent.unwrap_err();
        assert!(text.contains("192.0.2.77"), "{text}");
    });
}
