//! The power goes, with a data base at work: whatever was acknowledged is there afterwards.

use anyhow::Result;
use local_pair::Side::{self, First, Second};

use crate::servers::{Options, Servers};

fn with_commits(peer_loss: &str) -> Result<Servers> {
    let servers = Servers::in_step(&Options {
        mirror: format!("peer_loss = {peer_loss:?}"),
        ..Options::default()
    })?;
    servers
        .machine(First)
        .run("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")?;
    servers.start_commits(First)?;
    servers.wait_commits(First, 10)?;
    Ok(servers)
}

fn mount(servers: &Servers, side: Side) -> Result<()> {
    servers.wait_attached(side)?;
    // The journal is replayed, and nothing else is wrong with it.
    servers.machine(side).run(
        "mount /dev/nbd0 /mnt && umount /mnt && e2fsck -f -n /dev/nbd0 && mount /dev/nbd0 /mnt",
    )?;
    Ok(())
}

#[test]
fn the_other_side_has_every_commit_when_the_primary_loses_its_power() -> Result<()> {
    // What the primary answers alone, because it misses the other side for a moment, nobody else can have.
    let mut servers = with_commits("hold")?;
    let loss = servers.machine_mut(First).cut_power_at_work(11)?;
    let acknowledged = servers.acknowledged(First);
    eprintln!("{} commits acknowledged, {loss:?}", acknowledged.len());
    servers.take_over(Second)?;
    mount(&servers, Second)?;
    servers.expect_commits(Second, &acknowledged)?;
    servers.start_commits(Second)?;
    servers.wait_commits(Second, 5)?;

    // It comes back, follows, and takes over in turn with all of both.
    servers.boot(First)?;
    servers.wait_synced()?;
    servers.machine_mut(Second).cut_power_at_work(12)?;
    let mut all = acknowledged;
    all.extend(servers.acknowledged(Second));
    servers.take_over(First)?;
    mount(&servers, First)?;
    servers.expect_commits(First, &all)
}

pub fn a_secondary_that_loses_its_power_is_missed_by_nobody() -> Result<()> {
    let mut servers = with_commits("continue")?;
    servers.machine_mut(Second).cut_power_at_work(21)?;
    let before = servers.acknowledged(First).len();
    servers.wait_commits(First, before + 5)?;
    servers.boot(Second)?;
    servers.wait_synced()?;
    let between = servers.acknowledged(First).len();
    servers.wait_commits(First, between + 5)?;
    servers.expect_no_errors(First)?;
    servers.machine_mut(First).cut_power_at_work(22)?;
    let acknowledged = servers.acknowledged(First);
    servers.take_over(Second)?;
    mount(&servers, Second)?;
    servers.expect_commits(Second, &acknowledged)
}

/// The one that is cut last had all to itself for a moment, and is the one to begin again.
pub fn both_lose_their_power(order: [Side; 2]) -> Result<()> {
    let mut servers = with_commits("continue")?;
    servers.machine_mut(order[0]).cut_power_at_work(31)?;
    let acknowledged = servers.acknowledged(First);
    servers.machine_mut(order[1]).cut_power(32)?;
    let mut all = acknowledged;
    all.extend(servers.acknowledged(First));
    for side in [First, Second] {
        servers.boot(side)?;
    }
    servers.wait_synced()?;
    servers.ctl(First, "promote md1")?;
    mount(&servers, First)?;
    servers.expect_commits(First, &all)?;
    servers.expect_equal(First)
}
