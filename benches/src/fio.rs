//! One run of `fio` against an NBD export.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use local_pair::run_tool;
use serde_json::Value;

/// What a run reached.
#[derive(Debug, Clone, Copy)]
pub struct Reached {
    pub operations_per_s: f64,
    pub bytes_per_s: f64,
}

/// Runs `fio` on an export with more arguments and takes its figures.
pub fn run(uri: &str, seconds_max: u64, arguments: &[String]) -> Result<Reached> {
    let uri = format!("--uri={uri}");
    let mut words = vec![
        "--name=bench",
        "--ioengine=nbd",
        "--output-format=json",
        &uri,
    ];
    words.extend(arguments.iter().map(String::as_str));
    let said = run_tool("fio", &words, Duration::from_secs(seconds_max))?;
    // fio may print notes before the JSON.
    let start = said.find('{').context("fio printed no JSON")?;
    let report: Value = serde_json::from_str(&said[start..]).context("the JSON of fio")?;
    let job = &report["jobs"][0];
    if job["error"] != 0 {
        bail!("fio {}: error {}", arguments.join(" "), job["error"]);
    }
    let sum = |field: &str| {
        ["read", "write"]
            .iter()
            .filter_map(|way| job[*way][field].as_f64())
            .sum()
    };
    Ok(Reached {
        operations_per_s: sum("iops"),
        bytes_per_s: sum("bw_bytes"),
    })
}
