//! Wrong files, keys, sizes and identities: a clear error, and nothing half-done.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use local_pair::{Deadline, MIRROR, Pair, PairOptions, Programs, Side};
use mirror_core::control::Connection;

use crate::client::{qemu_io, run, run_failing};
use crate::{MIB, assert_same_data, small, synced};

/// Waits until the log of a node says all these words.
fn wait_logged(pair: &Pair, side: Side, words: &[&str]) -> Result<()> {
    let log = || pair.node(side).log().to_lowercase();
    Deadline::after_seconds(20)
        .until(&format!("{words:?} in the log"), || {
            let log = log();
            Ok(words.iter().all(|word| log.contains(word)).then_some(()))
        })
        .with_context(|| pair.node(side).log_tail())
}

/// Gives one side a configuration of its own, with one piece of text replaced.
fn change_config(pair: &mut Pair, side: Side, from: &str, to: &str) -> Result<()> {
    let node = pair.node_mut(side);
    let text = fs::read_to_string(&node.config)?;
    ensure!(text.contains(from), "the configuration lacks {from:?}");
    let own = node.folder.join("cluster.toml");
    fs::write(&own, text.replace(from, to))?;
    node.config = own;
    Ok(())
}

fn create() -> Result<Pair> {
    Pair::create(Programs::fresh()?, &small())
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_one() -> Result<()> {
    let mut pair = create()?;
    change_config(&mut pair, Side::First, "peer_loss", "peer_los")?;
    pair.spawn(Side::First)?;
    let code = pair
        .node_mut(Side::First)
        .wait_end(Deadline::after_seconds(10))?;
    ensure!(code == Some(1) || code == Some(2), "ended with {code:?}");
    wait_logged(
        &pair,
        Side::First,
        &[
            "cluster.toml:",
            "\"peer_los\"",
            "did you mean \"peer_loss\"",
        ],
    )
}

#[test]
fn a_daemon_without_metadata_says_to_run_init() -> Result<()> {
    let mut pair = create()?;
    pair.spawn(Side::First)?;
    wait_logged(&pair, Side::First, &["init", MIRROR])
}

#[test]
fn a_wrong_cluster_key_keeps_the_nodes_apart() -> Result<()> {
    let mut pair = create()?;
    let key = pair.node(Side::Second).folder.join("other.key");
    pair.ctl(Side::Second, &["keygen", &key.display().to_string()])
        .done()?;
    for side in Side::BOTH {
        pair.init(side, &[]).done()?;
    }
    let right = pair.folder().join("cluster.key").display().to_string();
    change_config(&mut pair, Side::Second, &right, &key.display().to_string())?;
    for side in Side::BOTH {
        pair.start(side)?;
    }
    wait_logged(&pair, Side::First, &["key"])?;
    let status = pair.status(Side::First)?;
    ensure!(status.connection != Connection::Connected, "{status:?}");
    Ok(())
}

#[test]
fn sides_of_different_size_agree_on_the_smaller_or_say_why_not() -> Result<()> {
    let mut pair = Pair::create(
        Programs::fresh()?,
        &PairOptions {
            data_bytes: [64 * MIB, 48 * MIB],
            ..small()
        },
    )?;
    pair.bring_up()?;
    pair.promote_first()?;
    let status = pair.status(Side::First)?;
    ensure!(status.size_bytes == 48 * MIB, "{status:?}");
    qemu_io(
        &pair.uri(Side::First),
        &["write -P 1 47M 1M", "read -P 1 47M 1M"],
    )
}

#[test]
fn two_nodes_of_the_same_name_are_refused() -> Result<()> {
    let mut pair = create()?;
    change_config(
        &mut pair,
        Side::First,
        "[[node]]\nname = \"server2\"",
        "[[node]]\nname = \"server1\"",
    )?;
    pair.spawn(Side::First)?;
    let code = pair
        .node_mut(Side::First)
        .wait_end(Deadline::after_seconds(10))?;
    ensure!(
        code != Some(0),
        "a configuration with one name twice was taken"
    );
    wait_logged(&pair, Side::First, &["server1"])
}

#[test]
fn metadata_of_the_other_node_is_refused() -> Result<()> {
    let mut pair = create()?;
    for side in Side::BOTH {
        pair.init(side, &[]).done()?;
    }
    let [first, second] = Side::BOTH.map(|side| pair.node(side).metadata.clone());
    let (first, second) = first.zip(second).context("external metadata")?;
    fs::copy(&second, &first)?;
    pair.spawn(Side::First)?;
    wait_logged(&pair, Side::First, &["metadata"])?;
    ensure!(
        fs::read(&first)? == fs::read(&second)?,
        "refused metadata was changed"
    );
    Ok(())
}

#[test]
fn metadata_of_a_newer_format_or_garbage_is_refused_and_kept() -> Result<()> {
    let mut pair = create()?;
    pair.init(Side::First, &[]).done()?;
    let metadata = pair
        .node(Side::First)
        .metadata
        .clone()
        .context("external metadata")?;
    let mut bytes = fs::read(&metadata)?;
    for block in bytes.chunks_mut(4096).take(70) {
        block[..512].fill(0xa5);
    }
    fs::write(&metadata, &bytes)?;
    pair.spawn(Side::First)?;
    wait_logged(&pair, Side::First, &["metadata"])?;
    ensure!(
        fs::read(&metadata)? == bytes,
        "refused metadata was changed"
    );
    Ok(())
}

/// An ext4 file system in a file, mounted in a folder; unmounted when dropped.
struct SmallDisk {
    mounted: std::path::PathBuf,
}

impl SmallDisk {
    fn mount(folder: &Path, megabytes: u32) -> Result<Self> {
        let mounted = folder.join("small");
        fs::create_dir(&mounted)?;
        let size = format!("size={megabytes}m");
        run(
            "mount",
            &[
                "-t",
                "tmpfs",
                "-o",
                &size,
                "tmpfs",
                &mounted.display().to_string(),
            ],
        )?;
        Ok(Self { mounted })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = run("umount", &["--lazy", &self.mounted.display().to_string()]);
    }
}

#[test]
fn a_secondary_whose_disk_is_full_is_left_behind_and_nothing_is_lost() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this test mounts a small disk; run it as root"
    );
    let folder = tempfile::tempdir()?;
    let disk = SmallDisk::mount(folder.path(), 16)?;
    let options = PairOptions {
        preallocate: false,
        data_path: [None, Some(disk.mounted.join("data"))],
        ..small()
    };
    let mut pair = synced(&options)?;
    qemu_io(&pair.uri(Side::First), &["write -P 1 0 32M", "flush"])?;
    let status = pair.wait_for(Side::First, "the failed disk of the peer", 30, |s| {
        s.peer.disk != mirror_core::control::DiskState::UpToDate
    })?;
    ensure!(status.out_of_sync_bytes > 0, "{status:?}");
    qemu_io(&pair.uri(Side::First), &["read -P 1 0 32M"])?;
    pair.node_mut(Side::Second).kill()?;
    drop(pair);
    Ok(())
}

#[test]
fn a_primary_whose_disk_is_full_says_so_and_keeps_the_sides_the_same() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this test mounts a small disk; run it as root"
    );
    let folder = tempfile::tempdir()?;
    let disk = SmallDisk::mount(folder.path(), 16)?;
    let options = PairOptions {
        preallocate: false,
        data_path: [Some(disk.mounted.join("data")), None],
        ..small()
    };
    let mut pair = synced(&options)?;
    let uri = pair.uri(Side::First);
    let said = run_failing("qemu-io", &["-f", "raw", "-c", "write -P 1 0 32M", &uri])?;
    ensure!(said.contains("No space"), "{said}");
    // Giving space back makes the mirror whole again, without a command.
    qemu_io(
        &uri,
        &[
            "write -z -u 0 32M",
            "write -P 2 0 4M",
            "flush",
            "read -P 2 0 4M",
        ],
    )?;
    pair.wait_synced()?;
    ensure!(pair.verify(Side::First, &[])? == 0, "the sides differ");
    assert_same_data(&mut pair)
}
