//! The mirror as a block device of a real kernel: attach, detach, restarts under load, growth, and what is refused.

use anyhow::{Context, Result, ensure};
use local_pair::Side::{First, Second};

use crate::servers::{MIB, Options, Servers};

/// A file of random writes with checksums, read back at the end.
const LOAD: &str = "fio --name=load --filename=/mnt/load --size=12m --rw=randwrite --bsrange=4k-64k \
    --ioengine=libaio --direct=1 --iodepth=16 --verify=crc32c --do_verify=1 --verify_fatal=1 \
    --fsync=64 --loops=3 --output-format=json --output=/run/load.json 2>&1";

fn mount(servers: &Servers, filesystem: &str) -> Result<()> {
    // Without a discard of it all, which would put all of it in doubt when mirrord is killed.
    let make = match filesystem {
        "ext4" => "mkfs.ext4 -q -E nodiscard /dev/nbd0",
        _ => "load-xfs; mkfs.xfs -q -K /dev/nbd0",
    };
    let script = format!("{make} && mount -t {filesystem} /dev/nbd0 /mnt");
    servers.machine(First).run(&script, 90).map(drop)
}

/// Milliseconds of the longest request that the load waited for.
fn longest_wait_ms(servers: &Servers) -> Result<f64> {
    let text = servers.machine(First).run("cat /run/load.json", 30)?;
    let start = text.find('{').context("the load reports in JSON")?;
    let report: serde_json::Value = serde_json::from_str(&text[start..])?;
    let job = &report["jobs"][0];
    let longest = ["write", "read"].map(|kind| job[kind]["lat_ns"]["max"].as_f64());
    let longest = longest.into_iter().flatten().fold(0.0, f64::max);
    Ok(longest / 1e6)
}

fn survives_restarts(filesystem: &str) -> Result<()> {
    let mut options = Options::default();
    if filesystem == "xfs" {
        // It is made no smaller.
        options.data_bytes = 320 * MIB;
        options.mirror = "device_timeout = \"3m\"".into();
    }
    let servers = Servers::in_step(&options)?;
    mount(&servers, filesystem)?;
    let load = servers.machine(First).start(LOAD)?;
    for _ in 0..3 {
        servers.machine(First).run("sleep 3", 30)?;
        ensure!(
            servers.machine(First).look(load)?.is_none(),
            "the load is too short"
        );
        servers.kill_mirrord(First)?;
        servers.start_mirrord(First)?;
        servers.wait_attached(First)?;
    }
    let ran = servers.machine(First).wait(load, "the load", 300)?;
    ran.done().with_context(|| servers.log(First))?;
    servers.expect_no_errors(First)?;
    let resumed = servers
        .machine(First)
        .run("grep -E 'goes on|released' /run/mirrord.log", 30)?;
    eprintln!("{resumed}");
    eprintln!(
        "{filesystem}: longest wait of a request: {:.0} ms",
        longest_wait_ms(&servers)?
    );
    servers.machine(First).run("umount /mnt", 60)?;
    servers.expect_equal()?;
    servers.ctl(First, "demote md1")?;
    let said = servers.machine(First).run("cat /sys/block/nbd0/size", 30)?;
    ensure!(
        said.trim() == "0",
        "the device is gone with the role: {said}"
    );
    Ok(())
}

#[test]
fn ext4_sees_a_pause_and_no_error_when_mirrord_is_killed_under_load() -> Result<()> {
    survives_restarts("ext4")
}

pub fn xfs_sees_a_pause_and_no_error() -> Result<()> {
    survives_restarts("xfs")
}

pub fn a_mounted_file_system_grows_with_its_mirror() -> Result<()> {
    let servers = Servers::in_step(&Options {
        data_bytes: 128 * MIB,
        file_mib: Some(48),
        ..Options::default()
    })?;
    mount(&servers, "ext4")?;
    let first = servers.machine(First);
    let load = first.start(LOAD)?;
    for side in [First, Second] {
        servers
            .machine(side)
            .run("fallocate -l 96m /srv/data", 60)?;
    }
    servers.ctl(First, "resize md1")?;
    let size = format!("test $(cat /sys/block/nbd0/size) = {}", 96 << 11);
    first.until("the larger device", &size, 60)?;
    first.run("resize2fs /dev/nbd0 2>&1", 90)?;
    first.run(
        "dd if=/dev/zero of=/mnt/fill bs=1M count=50 2>&1 && sync",
        120,
    )?;
    first.wait(load, "the load", 300)?.done()?;
    servers.expect_no_errors(First)?;
    first.run("umount /mnt && e2fsck -f -n /dev/nbd0", 60)?;
    servers.expect_equal()
}

pub fn what_cannot_be_attached_or_detached_is_said_with_a_remedy() -> Result<()> {
    let servers = Servers::in_step(&Options::default())?;
    let first = servers.machine(First);
    mount(&servers, "ext4")?;
    servers.refused(
        First,
        "detach md1",
        &["/dev/nbd0 is in use", "umount /mnt", "--force"],
    )?;
    servers.refused(
        First,
        "demote md1",
        &["/dev/nbd0 is in use", "mounted on /mnt"],
    )?;
    // A stop is refused as well, and it serves on.
    first.run("kill $(cat /run/mirrord.pid)", 30)?;
    first.until(
        "the refusal to stop",
        "grep -q 'not stopping.*umount /mnt' /run/mirrord.log",
        30,
    )?;
    first.run("echo still >/mnt/here && sync && umount /mnt", 60)?;
    first.run("sleep 60 </dev/nbd0 & echo $! >/run/reader", 30)?;
    servers.refused(First, "detach md1", &["process", "has it open"])?;
    first.run("kill $(cat /run/reader)", 30)?;
    first.until("a detach", "mirrorctl detach md1", 30)?;
    let refused = first.try_run("head -c 4096 /dev/nbd0 | wc -c", 30)?;
    ensure!(refused.said.trim().ends_with('0'), "{refused:?}");
    servers.ctl(First, "attach md1")?;
    first.run(
        "mount /dev/nbd0 /mnt && grep -q still /mnt/here && umount /mnt",
        60,
    )?;
    servers.ctl(First, "demote md1")?;
    servers.refused(
        First,
        "attach md1",
        &["only a primary", "mirrorctl promote"],
    )?;

    // The kernel of the other side has no driver at first.
    let second = servers.machine(Second);
    second.run("rmmod nbd", 60)?;
    servers.ctl(Second, "promote md1")?;
    second.until("a complaint", "grep -q 'modprobe nbd' /run/mirrord.log", 30)?;
    servers.refused(Second, "attach md1", &["no NBD driver", "modprobe nbd"])?;
    second.run("test -S /run/mirror/md1.nbd && load-nbd nbds_max=2", 30)?;
    servers.ctl(Second, "attach md1")?;
    second.run(
        "mount /dev/nbd0 /mnt && grep -q still /mnt/here && umount /mnt",
        60,
    )?;
    Ok(())
}
