//! The mirror as a block device of a real kernel: attach, detach, restarts under load, growth, and what is refused.

use anyhow::{Result, ensure};
use local_pair::Side::{First, Second};

use crate::load::{Load, expect_built, longest_wait_ms};
use crate::servers::{MIB, Options, Servers, WAIT};

fn mount(servers: &Servers, filesystem: &str) -> Result<()> {
    // Without a discard of it all, which would put all of it in doubt when mirrord is killed.
    let make = match filesystem {
        "ext4" => "mkfs.ext4 -q -E nodiscard /dev/nbd0",
        _ => "load-xfs; mkfs.xfs -q -K /dev/nbd0",
    };
    let script = format!("{make} && mount -t {filesystem} /dev/nbd0 /mnt");
    servers.machine(First).run(&script).map(drop)
}

/// Kills `mirrord` three times while writes of the load are under way. Gives what the load's end gives.
fn kill_mirrord_under(servers: &Servers, load: Load) -> Result<u32> {
    for restart in 1..=3 {
        servers.kill_mirrord_at_work(First)?;
        servers.restart_mirrord(First)?;
        servers.wait_resumed(First, restart)?;
    }
    let rounds = load.finish(servers)?;
    servers.expect_no_errors(First)?;
    let resumed = servers
        .machine(First)
        .run("grep 'nbd0 goes on' /run/mirrord.log")?;
    ensure!(resumed.lines().count() == 3, "{resumed}");
    eprintln!("{resumed}");
    Ok(rounds)
}

fn survives_restarts(filesystem: &str) -> Result<()> {
    let mut options = Options {
        // The pause is as long as the unit makes it.
        systemd: true,
        ..Options::default()
    };
    if filesystem == "xfs" {
        // It is made no smaller.
        options.data_bytes = 320 * MIB;
    }
    let servers = Servers::in_step(&options)?;
    mount(&servers, filesystem)?;
    let load = Load::random_writes(&servers)?;
    let rounds = kill_mirrord_under(&servers, load)?;
    let longest_ms = longest_wait_ms(&servers, rounds)?;
    eprintln!("{filesystem}: longest wait of a request: {longest_ms:.0} ms");
    servers.machine(First).run("umount /mnt")?;
    servers.expect_equal(First)?;
    servers.ctl(First, "demote md1")?;
    let said = servers.machine(First).run("cat /sys/block/nbd0/size")?;
    ensure!(
        said.trim() == "0",
        "the device is gone with the role: {said}"
    );
    Ok(())
}

pub fn what_is_compiled_on_the_mirror_is_right() -> Result<()> {
    let servers = Servers::in_step(&Options::default())?;
    mount(&servers, "ext4")?;
    let load = Load::builds(&servers)?;
    let rounds = kill_mirrord_under(&servers, load)?;
    eprintln!("built {rounds} times");
    servers
        .machine(First)
        .run("umount /mnt && e2fsck -f -n /dev/nbd0 && mount /dev/nbd0 /mnt")?;
    expect_built(&servers)?;
    servers.machine(First).run("umount /mnt")?;
    servers.expect_equal(First)
}

#[test]
fn ext4_sees_a_pause_and_no_error_when_mirrord_is_killed_under_load() -> Result<()> {
    survives_restarts("ext4")
}

pub fn xfs_sees_a_pause_and_no_error() -> Result<()> {
    survives_restarts("xfs")
}

/// What waits in the device is sent to the mirror that comes back before that is primary again. It is not, and then the
/// kernel has to get rid of more than its socket holds.
#[test]
fn a_device_whose_peer_was_promoted_meanwhile_is_let_go_of() -> Result<()> {
    let servers = Servers::in_step(&Options::default())?;
    let first = servers.machine(First);
    let load = first.start(
        "fio --name=load --filename=/dev/nbd0 --rw=randwrite --bs=1m --ioengine=libaio --direct=1 --iodepth=16 \
            --time_based --runtime=1h >&2",
    )?;
    servers.kill_mirrord_at_work(First)?;
    servers.take_over(Second)?;
    servers.start_mirrord(First)?;
    let ended = first.wait(load, "the load")?;
    ensure!(ended.code != 0, "the load gets errors: {ended:?}");
    let gone =
        "[ $(cat /sys/block/nbd0/size) = 0 ] && grep -q 'nbd0 is let go of' /run/mirrord.log";
    first.until("the device to be gone", gone)?;
    first.run("! grep 'did not end within' /run/mirrord.log")?;
    first.run("! dmesg | grep -E 'hung_task|blocked for more'")?;
    // It is as good as new.
    servers.ctl(Second, &format!("wait md1 --for synced --timeout {WAIT}"))?;
    servers.ctl(Second, "demote md1")?;
    servers.ctl(First, "promote md1")?;
    servers.wait_attached(First)?;
    servers.expect_equal(First)
}

pub fn a_mounted_file_system_grows_with_its_mirror() -> Result<()> {
    let servers = Servers::in_step(&Options {
        data_bytes: 128 * MIB,
        file_mib: Some(48),
        ..Options::default()
    })?;
    mount(&servers, "ext4")?;
    let first = servers.machine(First);
    let load = Load::random_writes(&servers)?;
    for side in [First, Second] {
        servers.machine(side).run("fallocate -l 96m /srv/data")?;
    }
    servers.ctl(First, "resize md1")?;
    let size = format!("test $(cat /sys/block/nbd0/size) = {}", 96 << 11);
    first.until("the larger device", &size)?;
    first.run("resize2fs /dev/nbd0 2>&1")?;
    first.run("dd if=/dev/zero of=/mnt/fill bs=1M count=50 2>&1 && sync")?;
    load.finish(&servers)?;
    servers.expect_no_errors(First)?;
    first.run("umount /mnt && e2fsck -f -n /dev/nbd0")?;
    servers.expect_equal(First)
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
    first.run("kill $(pidof mirrord)")?;
    first.until(
        "the refusal to stop",
        "grep -q 'not stopping.*umount /mnt' /run/mirrord.log",
    )?;
    first.run("echo still >/mnt/here && sync && umount /mnt")?;
    first.run("sleep 3600 </dev/nbd0 & echo $! >/run/reader")?;
    servers.refused(First, "detach md1", &["process", "has it open"])?;
    first.run("kill $(cat /run/reader)")?;
    first.until("a detach", "mirrorctl detach md1")?;
    let refused = first.try_run("head -c 4096 /dev/nbd0 | wc -c")?;
    ensure!(refused.said.trim().ends_with('0'), "{refused:?}");
    servers.ctl(First, "attach md1")?;
    first.run("mount /dev/nbd0 /mnt && grep -q still /mnt/here && umount /mnt")?;
    servers.ctl(First, "demote md1")?;
    servers.refused(
        First,
        "attach md1",
        &["only a primary", "mirrorctl promote"],
    )?;

    // The kernel of the other side has no driver at first.
    let second = servers.machine(Second);
    second.run("rmmod nbd")?;
    servers.ctl(Second, "promote md1")?;
    second.until("a complaint", "grep -q 'modprobe nbd' /run/mirrord.log")?;
    servers.refused(Second, "attach md1", &["no NBD driver", "modprobe nbd"])?;
    second.run("test -S /run/mirror/md1.nbd && load-nbd nbds_max=2")?;
    servers.ctl(Second, "attach md1")?;
    second.run("mount /dev/nbd0 /mnt && grep -q still /mnt/here && umount /mnt")?;
    Ok(())
}
