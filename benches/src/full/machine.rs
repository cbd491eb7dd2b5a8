//! What the figures were measured on.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use super::contender::Medium;

const TOOLS: [&str; 3] = ["fio", "nbdkit", "qemu-nbd"];

/// A list in Markdown.
pub fn describe() -> Result<String> {
    let cpu = fs::read_to_string("/proc/cpuinfo")?;
    let model = field(&cpu, "model name").unwrap_or("unknown");
    let cores = std::thread::available_parallelism()?;
    let memory = fs::read_to_string("/proc/meminfo")?;
    let memory = field(&memory, "MemTotal").context("the kernel tells its memory")?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let load = fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default();
    let mut lines = vec![
        format!("processor: {model}, {cores} cores"),
        format!("memory: {memory}"),
        format!("kernel: {}", kernel.trim()),
        format!("load before it began, in running processes: {load}"),
    ];
    for medium in Medium::BOTH {
        let folder = medium.folder().display().to_string();
        let found = said("df", &["--output=fstype,source", &folder]);
        let found = found.lines().last().unwrap_or_default().trim().to_owned();
        lines.push(format!("{folder}: {found}"));
    }
    let versions = TOOLS.map(|tool| {
        let version = said(tool, &["--version"]);
        version.lines().next().unwrap_or("unknown").to_owned()
    });
    lines.push(format!("peers and client: {}", versions.join(", ")));
    lines.push(format!("mirrord: {}", env!("CARGO_PKG_VERSION")));
    Ok(lines.iter().map(|line| format!("- {line}\n")).collect())
}

/// What a tool prints, if it is there.
fn said(tool: &str, words: &[&str]) -> String {
    let output = Command::new(tool).args(words).output();
    output.map_or(String::new(), |output| {
        String::from_utf8_lossy(&output.stdout).into_owned()
    })
}

/// Value of the first line `NAME : VALUE`.
fn field<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found.trim() == name).then(|| value.trim())
    })
}
