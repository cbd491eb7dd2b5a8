//! What must not be done is refused with exit code 1, the rule and the next step.

use anyhow::{Context, Result, ensure};
use local_pair::{MIRROR, Pair, Programs, Side};

use crate::client::qemu_io;
use crate::{small, synced};

#[test]
fn a_promotion_against_a_connected_primary_is_refused() -> Result<()> {
    let pair = synced(&small())?;
    for flags in [&[][..], &["--peer-down"]] {
        let mut words = vec!["promote", MIRROR];
        words.extend(flags);
        pair.ctl(Side::Second, &words).refused(&[
            "server1 is primary",
            "rule peer-is-primary",
            "demote it on server1",
        ])?;
    }
    Ok(())
}

#[test]
fn a_promotion_of_fresh_metadata_is_refused() -> Result<()> {
    let pair = Pair::connected(Programs::fresh()?, &small())?;
    for flags in [&[][..], &["--peer-down"]] {
        let mut words = vec!["promote", MIRROR];
        words.extend(flags);
        pair.ctl(Side::First, &words)
            .refused(&["rule no-data-yet", "promote with --force"])?;
    }
    Ok(())
}

#[test]
fn a_secondary_whose_peer_vanished_wants_the_operators_word() -> Result<()> {
    let mut pair = synced(&small())?;
    pair.node_mut(Side::First).kill()?;
    pair.wait_alone(Side::Second)?;
    pair.ctl(Side::Second, &["promote", MIRROR]).refused(&[
        "server1 was lost and may have gone on alone",
        "rule peer-may-be-ahead",
        "--peer-down",
    ])?;
    pair.ctl(Side::Second, &["promote", MIRROR, "--peer-down"])
        .done()?;
    Ok(())
}

#[test]
fn an_outdated_side_is_not_promoted_even_when_the_peer_is_down() -> Result<()> {
    let mut pair = synced(&small())?;
    pair.node_mut(Side::Second).stop()?;
    pair.wait_alone(Side::First)?;
    qemu_io(&pair.uri(Side::First), &["write -P 1 0 1M", "flush"])?;
    pair.node_mut(Side::First).kill()?;
    pair.start(Side::Second)?;
    for flags in [&[][..], &["--peer-down"]] {
        let command: Vec<&str> = ["promote", MIRROR].iter().chain(flags).copied().collect();
        pair.ctl(Side::Second, &command)
            .refused(&["peer-not-seen", "may be ahead", "--force"])?;
    }
    Ok(())
}

#[test]
fn init_refuses_a_side_that_has_metadata() -> Result<()> {
    let mut pair = synced(&small())?;
    for side in Side::BOTH {
        pair.node_mut(side).stop()?;
    }
    pair.init(Side::First, &[])
        .refused(&["already has metadata of this mirror", "use `--force`"])?;
    pair.init(Side::First, &["--force"]).done()?;
    Ok(())
}

#[test]
fn init_refuses_a_foreign_file_system_and_adopts_it_on_demand() -> Result<()> {
    let pair = Pair::create(Programs::fresh()?, &small())?;
    let data = pair.node(Side::First).data.display().to_string();
    crate::client::run("/sbin/mke2fs", &["-q", "-t", "ext4", "-F", &data])?;
    pair.init(Side::First, &[]).refused(&["ext4", "--adopt"])?;
    pair.init(Side::First, &["--adopt"]).done()?;
    crate::client::run("/sbin/e2fsck", &["-f", "-n", &data])?;
    Ok(())
}

#[test]
fn a_run_directory_in_use_is_refused_and_the_first_daemon_goes_on() -> Result<()> {
    let pair = synced(&small())?;
    let node = pair.node(Side::First);
    let said = crate::client::run_failing(
        &pair.programs().mirrord.display().to_string(),
        &[
            "--config",
            &node.config.display().to_string(),
            "--node",
            node.name,
            "--run-dir",
            &node.run_dir().display().to_string(),
        ],
    )?;
    let owner = node.process_id().context("the first daemon runs")?;
    for words in [
        format!("the run directory {}", node.run_dir().display()),
        format!("in use by process {owner}"),
        "stop that daemon, or choose another folder with --run-dir".into(),
    ] {
        ensure!(said.contains(&words), "no {words:?} in {said}");
    }
    qemu_io(
        &pair.uri(Side::First),
        &["write -P 1 0 1M", "read -P 1 0 1M"],
    )
}
