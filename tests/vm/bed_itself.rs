//! The bed does what the cases rely on. A bed that forgets too little would make every other test worthless.

use anyhow::{Result, ensure};

use crate::bed::{self, Card, Spec};

const MIB: usize = 1 << 20;

fn spec() -> Spec {
    Spec {
        memory_mib: 256,
        systemd: false,
        disk_bytes: vec![64 * MIB],
    }
}

#[test]
fn a_power_cut_keeps_what_was_flushed_and_not_all_of_the_rest() -> Result<()> {
    let mut bed = bed::start(1, &spec())?;
    let machine = &mut bed.machines[0];
    let ran = machine.try_run("echo heard; exit 3")?;
    ensure!(ran.code == 3 && ran.said == "heard\n", "{ran:?}");
    machine.run(
        "tr '\\0' a </dev/zero | dd of=/dev/vdb bs=1M count=8 iflag=fullblock conv=fsync
         xfs_io -d -c 'pwrite -S 0x62 -b 1m 8m 8m' /dev/vdb",
    )?;
    let loss = machine.cut_power(7)?;
    ensure!(loss.sectors_at_risk == 8 * MIB / 512, "{loss:?}");
    ensure!(loss.sectors_lost > 0, "{loss:?}");
    machine.boot()?;
    let counts = machine.run(
        "dd if=/dev/vdb bs=1M count=8 | tr -cd a | wc -c
         dd if=/dev/vdb bs=1M skip=8 count=8 | tr -cd b | wc -c",
    )?;
    let numbers: Vec<usize> = counts
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect();
    ensure!(
        numbers == [8 * MIB, 8 * MIB - loss.sectors_lost * 512],
        "{counts} after {loss:?}"
    );
    Ok(())
}

#[test]
fn two_machines_reach_each_other_until_the_cable_is_cut_or_one_is_paused() -> Result<()> {
    let mut bed = bed::start(2, &spec())?;
    let ping = "ping -c 1 -W 2 10.77.0.2";
    let [first, second] = &mut bed.machines[..] else {
        anyhow::bail!("two machines were asked for");
    };
    first.until("an answer over the cable", ping)?;
    first.set_link(Card::Link, false)?;
    ensure!(first.try_run(ping)?.code != 0, "the cable is cut");
    first.set_link(Card::Link, true)?;
    first.until("an answer over the mended cable", ping)?;
    second.pause()?;
    ensure!(first.try_run(ping)?.code != 0, "it is paused");
    second.go_on()?;
    first.until("an answer of what goes on", ping)?;
    first.until("an answer of this host", "ping -c 1 -W 2 10.0.2.2")?;
    second.cut_power(1)?;
    second.boot()?;
    first.until("an answer after a restart", ping)?;
    Ok(())
}

#[test]
fn a_machine_that_panics_ends() -> Result<()> {
    let mut bed = bed::start(1, &spec())?;
    let machine = &mut bed.machines[0];
    machine.start("echo c >/proc/sysrq-trigger")?;
    machine.wait_end(1)?;
    ensure!(
        machine.console().contains("sysrq triggered crash"),
        "{}",
        machine.console()
    );
    Ok(())
}
