//! A partition that is in use is never touched, whatever the operator says.

use std::fs;

use anyhow::{Result, ensure};
use local_disks::LoopDisk;
use local_pair::{MIRROR, Pair, Side};

use crate::bad_input::{assert_refused, change_config, create};

const DISK_BYTES: u64 = 64 << 20;

/// A pair whose first side has its data on a block device with an ext4 file system.
fn with_ext4() -> Result<(LoopDisk, Pair)> {
    let disk = LoopDisk::with_ext4(DISK_BYTES)?;
    let mut pair = create()?;
    let file = pair.node(Side::First).data.display().to_string();
    change_config(&mut pair, Side::First, &file, disk.device())?;
    Ok((disk, pair))
}

#[test]
fn init_refuses_a_mounted_partition_even_by_force() -> Result<()> {
    let (disk, pair) = with_ext4()?;
    disk.mount()?;
    let point = disk.point();
    fs::write(point.join("file"), "kept")?;
    let in_use = format!(
        "{} is in use: it is mounted on {}",
        disk.device(),
        point.display()
    );
    let remedy = format!("unmount it with `umount {}`", point.display());
    for flags in [&[][..], &["--adopt"], &["--force"], &["--adopt", "--force"]] {
        pair.init(Side::First, flags).refused(&[&in_use, &remedy])?;
    }
    ensure!(fs::read_to_string(point.join("file"))? == "kept");
    disk.unmount()?;
    disk.check_ext4()?;
    pair.init(Side::First, &["--adopt"]).done()?;
    disk.check_ext4()
}

#[test]
fn mirrord_refuses_a_mounted_partition() -> Result<()> {
    let (disk, mut pair) = with_ext4()?;
    pair.init(Side::First, &["--adopt"]).done()?;
    disk.mount()?;
    let point = disk.point().display().to_string();
    assert_refused(
        &mut pair,
        Side::First,
        &[
            MIRROR,
            &format!("{} is in use: it is mounted on {point}", disk.device()),
            &format!("unmount it with `umount {point}`"),
        ],
    )?;
    disk.unmount()?;
    disk.check_ext4()?;
    pair.start(Side::First)?;
    pair.node_mut(Side::First).stop()
}

#[test]
fn a_file_under_a_loop_device_is_refused() -> Result<()> {
    let (disk, mut pair) = with_ext4()?;
    let image = disk.image().display().to_string();
    change_config(&mut pair, Side::First, disk.device(), &image)?;
    pair.init(Side::First, &["--force"]).refused(&[
        &format!("{image} is in use: it is attached to {}", disk.device()),
        "detach it with `losetup -d`",
    ])?;
    disk.check_ext4()
}
