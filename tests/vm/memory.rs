//! Memory pressure: the kernel has to write pages to the mirror to get memory for whoever carries them.

use std::time::Instant;

use anyhow::{Result, ensure};
use local_pair::Side::First;

use crate::servers::{MIB, Options, Servers};

/// The page cache is dirtied as fast as it goes, without a flush, in a machine with less memory than that, beside a
/// process that takes what is left.
pub fn writes_more_than_memory(seconds: u64) -> Result<()> {
    let servers = Servers::in_step(&Options {
        memory_mib: 256,
        data_bytes: 640 * MIB,
        ..Options::default()
    })?;
    let first = servers.machine(First);
    first.run("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")?;
    first.run("sysctl -w vm.dirty_ratio=60 vm.dirty_background_ratio=50 >&2")?;
    // Half of what is free goes to a file that cannot be written back anywhere.
    first.run("dd if=/dev/zero of=/dev/shm/taken bs=1M count=40 2>&1")?;
    let begun = Instant::now();
    let mut rounds = 0;
    while begun.elapsed().as_secs() < seconds || rounds < 2 {
        let script = "dd if=/dev/urandom of=/mnt/seed bs=1M count=16 2>/dev/null
            for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28; do cat /mnt/seed; done >/mnt/big
            sync && cmp -n 16777216 /mnt/seed /mnt/big && rm /mnt/big";
        first.run(script)?;
        rounds += 1;
    }
    eprintln!("{rounds} rounds of 448 MiB in {:?}", begun.elapsed());
    servers.expect_no_errors(First)?;
    let locked = first.run("grep VmLck /proc/$(pidof mirrord)/status")?;
    ensure!(
        !locked.contains(" 0 kB"),
        "its memory is not locked: {locked}"
    );
    first.run("umount /mnt")?;
    servers.expect_equal(First)
}
