//! `mirrord` with the rights that its unit gives it, and no others: a pair comes up, replicates and is served.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use local_pair::{MIRROR, Pair, Programs, Side};

use crate::client::{qemu_io, run};
use crate::small;

/// From `linux/capability.h`.
const NUMBERS: [(&str, u64); 5] = [
    ("CAP_DAC_READ_SEARCH", 2),
    ("CAP_NET_BIND_SERVICE", 10),
    ("CAP_SYS_PTRACE", 19),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_SYS_RESOURCE", 24),
];

/// The words of `key` in the unit, those of all its lines.
fn words(key: &str) -> Result<Vec<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let unit = root.context("the package lies in the workspace")?;
    let text = fs::read_to_string(unit.join("packaging/mirrord.service"))?;
    let values = text
        .lines()
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    Ok(values
        .flat_map(str::split_whitespace)
        .map(str::to_owned)
        .collect())
}

/// System calls of a set of systemd's, and of the sets in it.
fn calls_of(set: &str) -> Result<BTreeSet<String>> {
    let said = run("systemd-analyze", &["syscall-filter", set])?;
    let mut calls = BTreeSet::new();
    for word in said.lines().map(str::trim).filter(|word| *word != set) {
        if word.starts_with('@') {
            calls.extend(calls_of(word)?);
        } else if !word.is_empty() && !word.starts_with('#') {
            calls.insert(word.to_owned());
        }
    }
    Ok(calls)
}

/// What `SystemCallFilter=` lets through.
fn allowed_calls() -> Result<BTreeSet<String>> {
    let mut allowed = BTreeSet::new();
    let mut forbids = false;
    for word in words("SystemCallFilter")? {
        forbids |= word.starts_with('~');
        let set = word.trim_start_matches('~');
        let calls = match set.starts_with('@') {
            true => calls_of(set)?,
            false => [set.to_owned()].into(),
        };
        if forbids {
            allowed.retain(|call| !calls.contains(call));
        } else {
            allowed.extend(calls);
        }
    }
    Ok(allowed)
}

/// The calls of a trace, from the start of `mirrord` on.
fn calls_in(trace: &str) -> BTreeSet<String> {
    let begins = |line: &str| {
        let (_, rest) = line.split_once("execve(\"")?;
        rest.split_once('"')?.0.ends_with("/mirrord").then_some(())
    };
    let lines = trace.lines().skip_while(|line| begins(line).is_none());
    let call = |line: &str| {
        let (_, rest) = line.split_once(char::is_whitespace)?;
        let (name, _) = rest.trim_start().split_once('(')?;
        let is_name = name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        (is_name && !name.is_empty()).then(|| name.to_owned())
    };
    lines.skip(1).filter_map(call).collect()
}

#[test]
fn a_pair_needs_no_right_that_the_unit_does_not_give() -> Result<()> {
    let capabilities = words("CapabilityBoundingSet")?;
    ensure!(!capabilities.is_empty(), "the unit bounds no capabilities");
    let bounded: String = capabilities
        .iter()
        .map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase()))
        .collect();
    let bounded = format!("--bounding-set=-all{bounded}");
    let setpriv = [
        "setpriv",
        &bounded,
        "--inh-caps=-all",
        "--no-new-privs",
        "--",
    ];
    let mut pair = Pair::create(Programs::fresh()?, &small())?;
    let trace = pair.folder().join("trace");
    let trace_path = trace.display().to_string();
    // A tracer beside it, so that the process is still the one that was started.
    let strace = ["strace", "-D", "-f", "-qq", "-s", "256", "-o", &trace_path];
    pair.set_wrapper(Side::First, &[&strace[..], &setpriv[..]].concat());
    pair.set_wrapper(Side::Second, &setpriv);
    pair.bring_up()?;
    pair.promote_first()?;
    qemu_io(
        &pair.uri(Side::First),
        &[
            "write -P 7 1M 2M",
            "flush",
            "discard 0 1M",
            "read -P 7 1M 2M",
        ],
    )?;
    run("nbdinfo", &["--size", &pair.tcp_uri(Side::First)])?;
    pair.ctl(Side::First, &["verify", MIRROR]).done()?;
    let process = pair.node(Side::Second).process_id().context("it runs")?;
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim).unwrap_or_default().to_owned()
    };
    ensure!(field("NoNewPrivs:") == "1", "{status}");
    let effective = u64::from_str_radix(&field("CapEff:"), 16)?;
    // What this machine may not give, it need not have.
    let bounds = capabilities.iter().map(|name| {
        let found = NUMBERS.iter().find(|(known, _)| known == name);
        found.map(|(_, number)| 1 << number)
    });
    let bounds: u64 = bounds.sum::<Option<u64>>().context("no number is known")?;
    ensure!(
        effective & !bounds == 0 && effective != 0,
        "{capabilities:?} are not {effective:x}"
    );
    for side in Side::BOTH {
        pair.node_mut(side).stop()?;
    }
    let used = calls_in(&fs::read_to_string(&trace)?);
    ensure!(used.contains("io_uring_enter"), "not traced: {used:?}");
    let allowed = allowed_calls()?;
    let refused: Vec<_> = used.difference(&allowed).collect();
    ensure!(refused.is_empty(), "the unit would refuse {refused:?}");
    Ok(())
}
