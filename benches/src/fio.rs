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
    /// Mean of an operation, from its submission.
    pub latency_us: f64,
}

impl Reached {
    /// Of a job that only reads or only writes: of the other way all figures are zero.
    pub fn of(report: &Value) -> Self {
        let ways = ["read", "write"].map(|way| &report["jobs"][0][way]);
        let sum = |figure: fn(&Value) -> &Value| -> f64 {
            ways.iter().filter_map(|way| figure(way).as_f64()).sum()
        };
        Self {
            operations_per_s: sum(|way| &way["iops"]),
            bytes_per_s: sum(|way| &way["bw_bytes"]),
            latency_us: sum(|way| &way["lat_ns"]["mean"]) / 1e3,
        }
    }
}

/// Runs `fio` on an export with more arguments and takes its figures.
pub fn run(uri: &str, seconds_max: u64, arguments: &[String]) -> Result<Reached> {
    let target = ["--ioengine=nbd".to_owned(), format!("--uri={uri}")];
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    on(&target, Duration::from_secs(seconds_max), &words)
}

/// The same on a target that is given as words for `fio`.
pub fn on(target: &[String], limit: Duration, words: &[&str]) -> Result<Reached> {
    Ok(Reached::of(&report(target, limit, words)?))
}

/// All that `fio` has to say.
pub fn report(target: &[String], limit: Duration, words: &[&str]) -> Result<Value> {
    // A job that is a process of its own would outlive a run that takes too long and is killed.
    let mut all = vec!["--name=bench", "--output-format=json", "--thread"];
    all.extend(target.iter().map(String::as_str));
    all.extend(words);
    let said = run_tool("fio", &all, limit)?;
    parse(&said).with_context(|| format!("fio {}", words.join(" ")))
}

/// The same, of a run somewhere else.
pub fn parse(said: &str) -> Result<Value> {
    // fio may print notes before the JSON.
    let start = said.find('{').context("fio printed no JSON")?;
    let report: Value = serde_json::from_str(&said[start..]).context("the JSON of fio")?;
    let error = &report["jobs"][0]["error"];
    if *error != 0 {
        bail!("error {error}");
    }
    Ok(report)
}
