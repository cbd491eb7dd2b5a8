//! The configuration of nodes and of a witness, as anybody could write it.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use mirror_core::units::Uuid;
use nbd_frontend::config::witness::WitnessConfig;
use nbd_frontend::config::{Config, Machine};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let path = Path::new("file");
    for machine in [Machine::Virtual, Machine::Physical] {
        match Config::parse_for(machine, path, text) {
            Ok(config) => {
                assert_ne!(config.nodes[0], config.nodes[1]);
                for mirror in &config.mirrors {
                    // What a daemon starts with.
                    for node in [0, 1] {
                        assert_ne!(config.volume_config(mirror, node).node, Uuid([0; 16]));
                    }
                }
            }
            Err(problems) => assert!(problems.iter().all(|problem| {
                let said = problem.to_string();
                said.starts_with("file") && said.len() > 10
            })),
        }
    }
    match WitnessConfig::parse(path, text) {
        Ok(config) => assert!(!config.clusters.is_empty()),
        Err(problems) => assert!(problems.iter().next().is_some()),
    }
});
