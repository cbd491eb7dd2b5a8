//! `promote --force` says what it may cost before it is done.

use anyhow::{Result, ensure};
use local_pair::{MIRROR, Pair, Programs, Side};

use crate::client::qemu_io;
use crate::small;

/// What `promote --force` says on standard error before it is done.
fn forced(pair: &Pair, side: Side) -> Result<String> {
    let outcome = pair.ctl(side, &["promote", MIRROR, "--force"]);
    let said = outcome.stderr.clone();
    outcome.done()?;
    Ok(said)
}

#[test]
fn a_forced_promotion_says_in_every_state_what_may_be_lost() -> Result<()> {
    let mut pair = Pair::connected(Programs::fresh()?, &small())?;
    let said = forced(&pair, Side::First)?;
    ensure!(
        said.contains("may lose: whatever the data partition of server2 holds"),
        "{said}"
    );
    pair.wait_synced()?;
    let said = forced(&pair, Side::First)?;
    ensure!(
        said.contains("may lose: nothing, this side is primary already"),
        "{said}"
    );

    // The second side is left behind, and then alone.
    pair.node_mut(Side::Second).stop()?;
    pair.wait_alone(Side::First)?;
    qemu_io(&pair.uri(Side::First), &["write -P 1 0 1M", "flush"])?;
    pair.node_mut(Side::First).kill()?;
    pair.start(Side::Second)?;
    let said = forced(&pair, Side::Second)?;
    ensure!(
        said.contains("may lose: what server1 answered without this side"),
        "{said}"
    );
    Ok(())
}
