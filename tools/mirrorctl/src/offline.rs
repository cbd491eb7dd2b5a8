//! Commands that need no daemon: keygen, init, completions.

use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;
use mirror_core::io::init::{InitSettings, init_mirror};
use nbd_frontend::config::{Config, key};

use crate::arguments::{Arguments, Global};
use crate::outcome::Outcome;

pub fn keygen(global: &Global, file: &Path) -> Outcome {
    key::generate(file).map_err(|error| anyhow::anyhow!("{error}"))?;
    if !global.quiet {
        println!(
            "{} holds a new cluster key; copy it to the other node with the same mode",
            file.display()
        );
    }
    Ok(())
}

pub fn completions(shell: clap_complete::Shell) {
    let mut command = Arguments::command();
    clap_complete::generate(shell, &mut command, "mirrorctl", &mut std::io::stdout());
}

pub fn init(global: &Global, name: &str, adopt: bool, force: bool) -> Outcome {
    let config = Config::load(&global.config).map_err(anyhow::Error::from)?;
    let node = config
        .node_index(global.node.as_deref())
        .map_err(anyhow::Error::from)?;
    let names = || {
        let names: Vec<_> = config
            .mirrors
            .iter()
            .map(|mirror| mirror.name.as_str())
            .collect();
        names.join(", ")
    };
    let mirror = config.mirror(name).with_context(|| {
        format!(
            "{} has no mirror {name:?}; its mirrors are: {}",
            config.path.display(),
            names()
        )
    })?;
    let side = &mirror.sides[node];
    let settings = InitSettings {
        cluster: config.cluster_id(),
        mirror: config.mirror_id(mirror),
        node: config.node_id(node),
        peer: config.node_id(1 - node),
        data: side.data.clone(),
        metadata: side.metadata.clone(),
        adopt,
        force,
    };
    let report = init_mirror(&settings)
        .map_err(|error| anyhow::Error::new(error).context(format!("cannot initialise {name}")))?;
    let generation = report.generation.map(|generation| generation.to_string());
    if global.json {
        println!(
            "{}",
            serde_json::json!({
                "usable_bytes": report.usable_bytes,
                "metadata_bytes": report.metadata_bytes,
                "logical_block_bytes": report.logical_block_bytes,
                "generation": generation,
            })
        );
    } else if !global.quiet {
        println!(
            "{name} on {}: {} KiB for data, {} KiB of metadata written",
            config.nodes[node],
            report.usable_bytes >> 10,
            report.metadata_bytes >> 10
        );
        if let Some(generation) = generation {
            println!(
                "the data on {} is kept, as generation {generation}",
                side.data.display()
            );
        }
    }
    Ok(())
}
