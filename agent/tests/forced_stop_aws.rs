//! The agent's forced stop of an EC2 instance, from the configuration to the word that it is down.

#![cfg(feature = "aws")]

use std::process::Command;
use std::time::{Duration, Instant};

use agent::fencing::Stopped;
use agent::io::forced_stop::{ForcedStopDriver, Servers};
use local_ec2::{Moto, REGION};
use nbd_frontend::config::agent::{AwsAction, ForcedStop, ForcedStopKind};

const LONG: Duration = Duration::from_secs(60);
/// What the test hands to itself, run once more with the environment that an agent has.
const ENDPOINT: &str = "TEST_ENDPOINT";
const INSTANCES: &str = "TEST_INSTANCES";
const ACTION: &str = "TEST_ACTION";

#[test]
fn the_other_node_is_stopped_or_terminated_and_then_known_to_be_down() {
    if let Ok(endpoint) = std::env::var(ENDPOINT) {
        return stop_the_other(endpoint);
    }
    let moto = Moto::shared();
    for (action, end) in [("stop", "stopped"), ("terminate", "terminated")] {
        let instances = moto.run_instances();
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "the_other_node_is_stopped_or_terminated_and_then_known_to_be_down",
                "--exact",
                "--nocapture",
            ])
            .env_clear()
            .env("AWS_ACCESS_KEY_ID", "AKIAANY")
            .env("AWS_SECRET_ACCESS_KEY", "any")
            .env(ENDPOINT, moto.url())
            .env(INSTANCES, instances.join(" "))
            .env(ACTION, action)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{action}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(moto.state(&instances[0]), end);
        assert_eq!(moto.state(&instances[1]), "running", "its own is untouched");
    }
}

fn stop_the_other(endpoint: String) {
    let instances = std::env::var(INSTANCES).unwrap();
    let (other, own) = instances.split_once(' ').unwrap();
    let action = match std::env::var(ACTION).unwrap().as_str() {
        "stop" => AwsAction::Stop,
        _ => AwsAction::Terminate,
    };
    let config = ForcedStop {
        kind: ForcedStopKind::Aws {
            instances: [other.into(), own.into()],
            action,
            region: Some(REGION.into()),
            endpoint: Some(endpoint),
            profile: None,
        },
        timeout: LONG,
        retries: 0,
        stop_wait: LONG,
        fence_delay: Duration::ZERO,
        check_interval: LONG,
        failover_on_failure: false,
    };
    let servers = Servers {
        cluster: "bakery".into(),
        nodes: ["oven".into(), "counter".into()],
        local: 1,
    };
    let driver = ForcedStopDriver::new(&config, servers).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        driver.check(0).await.unwrap();
        assert!(!driver.is_down(0).await.unwrap(), "a check stops nothing");
        assert_eq!(driver.stop(0).await.unwrap(), Stopped::Accepted);
        let began = Instant::now();
        while !driver.is_down(0).await.unwrap() {
            assert!(began.elapsed() < LONG);
        }
    });
}
