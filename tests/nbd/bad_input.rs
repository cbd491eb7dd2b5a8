//! Wrong files, keys, sizes and identities: a clear error, and nothing half-done.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use local_pair::{Deadline, MIRROR, Pair, PairOptions, Programs, Side};
use mirror_core::control::Connection;
use mirror_core::layout::geometry::{METADATA_BLOCK_BYTES, SUPERBLOCK_OFFSETS};
use mirror_core::layout::internal;
use mirror_core::layout::superblock::Superblock;

use crate::client::qemu_io;
use crate::{MIB, small};

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
pub fn change_config(pair: &mut Pair, side: Side, from: &str, to: &str) -> Result<()> {
    let node = pair.node_mut(side);
    let text = fs::read_to_string(&node.config)?;
    ensure!(text.contains(from), "the configuration lacks {from:?}");
    let own = node.folder.join("cluster.toml");
    fs::write(&own, text.replace(from, to))?;
    node.config = own;
    Ok(())
}

pub fn create() -> Result<Pair> {
    Pair::create(Programs::fresh()?, &small())
}

/// Starts a node that must end by itself with exit code 1, and say all these words.
pub fn assert_refused(pair: &mut Pair, side: Side, words: &[&str]) -> Result<()> {
    pair.spawn(side)?;
    let code = pair
        .node_mut(side)
        .wait_end(Deadline::after_seconds(20))
        .with_context(|| pair.node(side).log_tail())?;
    ensure!(code == Some(1), "ended with {code:?}");
    let log = pair.node(side).log();
    for word in words {
        ensure!(log.contains(word), "the log does not say {word:?}: {log}");
    }
    Ok(())
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_one() -> Result<()> {
    let mut pair = create()?;
    change_config(&mut pair, Side::First, "peer_loss", "peer_los")?;
    assert_refused(
        &mut pair,
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
    let metadata = metadata_path(&pair, Side::First)?.display().to_string();
    assert_refused(
        &mut pair,
        Side::First,
        &[
            MIRROR,
            &metadata,
            "there is no mirror metadata",
            "`mirrorctl init`",
        ],
    )
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
    for side in Side::BOTH {
        wait_logged(
            &pair,
            side,
            &[
                "link-refused",
                "another cluster key",
                "copy the key file of one node to the other",
            ],
        )?;
        let status = pair.status(side)?;
        ensure!(status.connection == Connection::Connecting, "{status:?}");
    }
    Ok(())
}

#[test]
fn sides_of_different_size_agree_on_the_smaller() -> Result<()> {
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
    assert_refused(
        &mut pair,
        Side::First,
        &[
            "cluster.toml:9: node name",
            "\"server1\" is the name of the node on line 6 too",
            "give each node its own name",
        ],
    )
}

/// Both nodes are told the same about each other, whichever of them sees it first.
fn assert_handshake_refused(pair: &mut Pair, words: &[&str]) -> Result<()> {
    for side in Side::BOTH {
        pair.init(side, &[]).done()?;
    }
    for side in Side::BOTH {
        pair.start(side)?;
    }
    for side in Side::BOTH {
        wait_logged(pair, side, words)?;
    }
    Ok(())
}

/// The file of the second node with the names of the two exchanged, and everything else as it was.
fn exchange_names(pair: &mut Pair) -> Result<()> {
    for (before, after) in [("name = \"", "\""), ("mirror.on.", "]")] {
        let named = |name: &str| format!("{before}{name}{after}");
        let steps = [
            ("server1", "third"),
            ("server2", "server1"),
            ("third", "server2"),
        ];
        for (from, to) in steps {
            change_config(pair, Side::Second, &named(from), &named(to))?;
        }
    }
    Ok(())
}

#[test]
fn nodes_that_run_under_one_name_say_so() -> Result<()> {
    let mut pair = create()?;
    exchange_names(&mut pair)?;
    pair.node_mut(Side::Second).name = "server1";
    assert_handshake_refused(&mut pair, &["same identity", "--node"])
}

#[test]
fn nodes_that_stand_in_another_order_say_so() -> Result<()> {
    let mut pair = create()?;
    let nodes =
        |one: &str, two: &str| format!("[[node]]\nname = \"{one}\"\n\n[[node]]\nname = \"{two}\"");
    let (from, to) = (nodes("server1", "server2"), nodes("server2", "server1"));
    change_config(&mut pair, Side::Second, &from, &to)?;
    assert_handshake_refused(&mut pair, &["another order", "same file"])
}

/// Metadata that was written under another configuration: `from` was `to` in it.
fn assert_foreign(from: &str, to: &str, mirror: &str, what: &str) -> Result<()> {
    let mut pair = create()?;
    let right = pair.node(Side::First).config.clone();
    change_config(&mut pair, Side::First, from, to)?;
    pair.ctl(Side::First, &["init", mirror]).done()?;
    pair.node_mut(Side::First).config = right;
    assert_foreign_refused(&mut pair, what)
}

fn assert_foreign_refused(pair: &mut Pair, what: &str) -> Result<()> {
    let path = metadata_path(pair, Side::First)?;
    let before = fs::read(&path)?;
    assert_refused(
        pair,
        Side::First,
        &[
            &format!(
                "the metadata on {} belongs to another {what} than {MIRROR} on node server1",
                path.display()
            ),
            "correct the path",
            "`mirrorctl init --force`",
        ],
    )?;
    ensure!(fs::read(&path)? == before, "refused metadata was changed");
    Ok(())
}

#[test]
fn metadata_of_another_cluster_is_refused() -> Result<()> {
    assert_foreign("name = \"local\"", "name = \"remote\"", MIRROR, "cluster")
}

#[test]
fn metadata_of_another_mirror_is_refused() -> Result<()> {
    assert_foreign("name = \"md1\"", "name = \"md2\"", "md2", "mirror")
}

#[test]
fn metadata_of_the_other_node_is_refused() -> Result<()> {
    let mut pair = create()?;
    for side in Side::BOTH {
        pair.init(side, &[]).done()?;
    }
    fs::copy(
        metadata_path(&pair, Side::Second)?,
        metadata_path(&pair, Side::First)?,
    )?;
    assert_foreign_refused(&mut pair, "node")
}

fn metadata_path(pair: &Pair, side: Side) -> Result<PathBuf> {
    pair.node(side)
        .metadata
        .clone()
        .context("the metadata has a place of its own")
}

/// Writes well-formed superblocks that a later version could have written.
fn change_superblocks(
    path: &Path,
    area_offset: u64,
    change: impl Fn(&mut Superblock),
) -> Result<()> {
    let file = fs::File::options().read(true).write(true).open(path)?;
    for offset in SUPERBLOCK_OFFSETS {
        let mut block = vec![0; METADATA_BLOCK_BYTES as usize];
        file.read_exact_at(&mut block, area_offset + offset)?;
        let mut superblock = Superblock::decode(&block)?;
        change(&mut superblock);
        file.write_all_at(&superblock.encode(), area_offset + offset)?;
    }
    file.sync_all()?;
    Ok(())
}

/// Metadata with these features is neither used nor changed, wherever it lies.
fn assert_newer_refused(change: impl Fn(&mut Superblock), words: &[&str]) -> Result<()> {
    for internal_metadata in [false, true] {
        let options = PairOptions {
            internal_metadata,
            ..small()
        };
        let mut pair = Pair::create(Programs::fresh()?, &options)?;
        pair.init(Side::First, &[]).done()?;
        let node = pair.node(Side::First);
        let (path, offset) = match node.metadata.clone() {
            Some(path) => (path, 0),
            None => (
                node.data.clone(),
                internal::placement(64 * MIB)?.area_offset(),
            ),
        };
        change_superblocks(&path, offset, &change)?;
        let before = fs::read(&path)?;
        let named = path.display().to_string();
        assert_refused(&mut pair, Side::First, &[&[MIRROR, &named], words].concat())?;
        ensure!(fs::read(&path)? == before, "refused metadata was changed");
        pair.init(Side::First, &[]).refused(&["--force", &named])?;
    }
    Ok(())
}

#[test]
fn metadata_of_an_incompatible_newer_format_is_refused_and_kept() -> Result<()> {
    assert_newer_refused(
        |superblock| superblock.features_incompatible |= 1 << 9,
        &[
            "unknown incompatible features 0x200",
            "written by a newer version",
            "use that version",
        ],
    )
}

#[test]
fn metadata_that_may_only_be_read_is_refused_and_kept() -> Result<()> {
    assert_newer_refused(
        |superblock| superblock.features_read_only |= 1 << 4,
        &[
            "read-only features 0x10",
            "use the version that wrote it",
            "mirror-inspect",
        ],
    )
}

#[test]
fn garbage_in_place_of_metadata_is_refused_and_kept() -> Result<()> {
    let mut pair = create()?;
    pair.init(Side::First, &[]).done()?;
    let metadata = metadata_path(&pair, Side::First)?;
    let mut bytes = fs::read(&metadata)?;
    for block in bytes.chunks_mut(4096).take(70) {
        block[64..512].fill(0xa5);
    }
    fs::write(&metadata, &bytes)?;
    assert_refused(
        &mut pair,
        Side::First,
        &[
            &metadata.display().to_string(),
            "both superblock copies are bad",
            "mirror-inspect",
            "mirrorctl init --force",
        ],
    )?;
    ensure!(
        fs::read(&metadata)? == bytes,
        "refused metadata was changed"
    );
    Ok(())
}
