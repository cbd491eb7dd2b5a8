//! One run of `fio`, on an NBD export or on anything else.

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
    let target = ["--ioengine=nbd".to_owned(), format!("--uri={uri}")];
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    on(&target, Duration::from_secs(seconds_max), &words)
}

/// The same on a target that is given as words for `fio`.
pub fn on(target: &[String], limit: Duration, words: &[&str]) -> Result<Reached> {
    let report = report(target, limit, words)?;
    let job = &report["jobs"][0];
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

/// All that `fio` has to say.
pub fn report(target: &[String], limit: Duration, words: &[&str]) -> Result<Value> {
    // A job that is a process of its own would outlive a run that takes too long and is killed.
    let mut all = vec!["--name=bench", "--output-format=json", "--thread"];
    all.extend(target.iter().map(String::as_str));
    all.extend(words);
    let said = run_tool("fio", &all, limit)?;
    // fio may print notes before the JSON.
    let start = said.find('{').context("fio printed no JSON")?;
    let report: Value = serde_json::from_str(&said[start..]).context("the JSON of fio")?;
    let error = &report["jobs"][0]["error"];
    if *error != 0 {
        bail!("fio {}: error {error}", words.join(" "));
    }
    Ok(report)
}
