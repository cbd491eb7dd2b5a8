//! Beside DRBD, the kernel's own mirror, in one virtual machine: disks of the same kind, the same rows of `fio`, both
//! replicated over loopback. Debian's kernel has DRBD 8.4; this system's needs none of it.
//!
//! Everything is set up at once (`set-up.sh`), and each row is measured on one after the other, round after round, so
//! that whatever else this host does weighs on all alike. The median of the rounds is shown.

mod apart;

use std::path::Path;

use anyhow::{Context, Result};
use local_machines::{Bed, Disk, Equipment, FileDisk, Image, Machine, Spec};

use crate::fio::{self, Reached};
use crate::full::median;
use crate::table;
use crate::throughput::{ALONE, Case, DEEP, LARGE, READ};

const SET_UP: &str = include_str!("set-up.sh");
const MEMORY_MIB: u32 = 1024;
const DISKS: usize = 8;
const DISK_BYTES: usize = 256 << 20;
const ROUNDS: usize = 3;
/// Of each row in each round. It takes as long again until `fio` has started and ended in there.
const SECONDS: f64 = 3.0;

/// Names the folder of packages that are unpacked and not installed. `cargo xtask` sets it.
const UNPACKED_VARIABLE: &str = "MIRROR_VM_PEERS";

struct Target {
    name: &'static str,
    device: &'static str,
}

const VIRTIO: Target = target("virtio disk", "vdb");
const NBDKIT: Target = target("nbdkit", "nbd2");
const DRBD: Target = target("DRBD", "drbd0");
const OURS: Target = target("ours", "nbd0");
const OURS_TLS: Target = target("ours, TLS", "nbd1");

const TARGETS: [Target; 5] = [VIRTIO, NBDKIT, DRBD, OURS, OURS_TLS];

const fn target(name: &'static str, device: &'static str) -> Target {
    Target { name, device }
}

const CASES: [Case; 4] = [ALONE, DEEP, LARGE, READ];

pub fn print(seconds: Option<f64>) -> Result<()> {
    let seconds = seconds.unwrap_or(SECONDS);
    let bed = start()?;
    let machine = &bed.machines[0];
    machine.run(SET_UP)?;
    compare(machine, seconds)?;
    apart::print(machine, seconds)?;
    println!(
        "\n{}",
        machine.run("cat /proc/version; head -n 1 /proc/drbd")?
    );
    Ok(())
}

fn start() -> Result<Bed> {
    let unpacked = std::env::var_os(UNPACKED_VARIABLE);
    let unpacked = unpacked.with_context(|| {
        format!("{UNPACKED_VARIABLE} is not set; run `cargo xtask bench --drbd`, which provides DRBD's tools")
    })?;
    let image = Image::fresh(&Equipment {
        name: "drbd",
        modules: &["nbd", "drbd"],
        tools: &[
            &["fio"],
            &["flock"],
            &["nbdkit"],
            &["/usr/lib/x86_64-linux-gnu/nbdkit/plugins/nbdkit-file-plugin.so"],
            &["/lib/drbd/drbdsetup-84"],
            &["/sbin/drbdmeta"],
            &["/sbin/nbd-client"],
        ],
        unpacked: Some(unpacked.into()),
        files: Vec::new(),
        linked: Vec::new(),
        texts: Vec::new(),
    })?;
    let spec = Spec {
        memory_mib: MEMORY_MIB,
        systemd: false,
        parallel: true,
        image,
    };
    Bed::start(1, &spec, |folder: &Path| {
        let disks = (0..DISKS).map(|number| {
            let disk = FileDisk::new(&folder.join(format!("disk{number}")), DISK_BYTES)?;
            Ok(Box::new(disk) as Box<dyn Disk>)
        });
        disks.collect()
    })
}

fn compare(machine: &Machine, seconds: f64) -> Result<()> {
    let mut rows = Vec::new();
    for case in &CASES {
        eprintln!("  {}", case.name);
        let mut reached = TARGETS.map(|_| Vec::new());
        for _ in 0..ROUNDS {
            for (target, reached) in TARGETS.iter().zip(&mut reached) {
                let found = run(machine, &on_device(target, case, seconds));
                let found = found.with_context(|| format!("{} on {}", case.name, target.name))?;
                reached.push(case.figure(&found));
            }
        }
        eprintln!("    {reached:.0?}");
        let [virtio, nbdkit, drbd, ours, tls] = reached.map(|values| median(values.into_iter()));
        rows.push(vec![
            case.name.into(),
            format!("{virtio:.0}"),
            format!("{nbdkit:.0}"),
            format!("{drbd:.0}"),
            format!("{ours:.0}"),
            format!("{:.2}", ours / drbd),
            format!("{tls:.0}"),
            format!("{:.2}", tls / drbd),
        ]);
    }
    // Whoever lost its other side was measured without it.
    let whole = "grep -q ' 0: cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate' /proc/drbd
        if dmesg | grep -E 'drbd .*(PingAck|conn\\()' | grep -v 'conn\\( .* -> Connected'; then exit 1; fi
        for mirror in plain tls; do
            mirrorctl --node server1 --run-dir /run/server1 --timeout 10s wait $mirror --for synced
        done";
    let said = machine.run(&format!("set -e\n{whole}"));
    said.context("a side was lost meanwhile; measure again when this host does less")?;
    let title = format!(
        "Beside DRBD in one emulated machine, both sides in it, median of {ROUNDS} rounds of {seconds} s"
    );
    let head = [
        "",
        "virtio disk",
        "nbdkit",
        "DRBD",
        "ours",
        "x DRBD",
        "ours, TLS",
        "x DRBD",
    ];
    table::print(&title, &head, &rows);
    Ok(())
}

fn on_device(target: &Target, case: &Case, seconds: f64) -> String {
    format!(
        "--filename=/dev/{} --direct=1 --ioengine=libaio {}",
        target.device,
        case.words(seconds).join(" ")
    )
}

fn run(machine: &Machine, words: &str) -> Result<Reached> {
    let script = format!("fio --name=bench --output-format=json {words}");
    Ok(Reached::of(&fio::parse(&machine.run(&script)?)?))
}
