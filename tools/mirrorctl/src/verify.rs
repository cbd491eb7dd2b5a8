//! `verify`: starts the comparison, shows how far it is, and says what it found. With `--repair` it returns when
//! the repair is through as well, and says what came of it.

use mirror_core::control::{
    CommandRequest, Connection, DiskState, MirrorStatus, Refusal, SyncKind,
};
use nbd_frontend::control::client::Client;
use tokio::time::Instant;

use crate::arguments::{Condition, Global};
use crate::mdstat::connection_name;
use crate::outcome::{Failure, Outcome};
use crate::progress::Progress;
use crate::wait::{Look, POLL_INTERVAL, find, look};

pub async fn run(global: &Global, mirror: &str, repair: bool, no_wait: bool) -> Outcome {
    let deadline = global.timeout.map(|timeout| Instant::now() + timeout);
    let client = global.client();
    let reply = client
        .command(mirror, &CommandRequest::Verify { repair })
        .await?;
    if no_wait {
        if global.json {
            println!("{}", serde_json::json!({ "message": reply.message }));
        } else if !global.quiet {
            println!("{}", reply.message);
        }
        return Ok(());
    }
    let mut watch = Watch {
        client,
        mirror,
        deadline,
        progress: Progress::new(global.shows_progress()),
    };
    let mismatch_bytes = watch.comparison().await?;
    let repaired = match repair && mismatch_bytes > 0 {
        true => Some(watch.repair().await),
        false => None,
    };
    drop(watch);
    if global.json {
        let report = serde_json::json!({
            "mismatch_bytes": mismatch_bytes,
            "repaired": matches!(repaired, Some(Ok(()))),
        });
        println!("{report}");
    }
    conclude(global, mirror, mismatch_bytes, repaired)
}

/// Looks at one mirror until something is done, or the time is up.
struct Watch<'w> {
    client: Client,
    mirror: &'w str,
    deadline: Option<Instant>,
    progress: Progress,
}

impl Watch<'_> {
    /// Waits for the end of the comparison and gives the bytes that differed.
    async fn comparison(&mut self) -> Outcome<u64> {
        let mirror = self.mirror;
        loop {
            let status = find(self.client.status().await?, mirror)?;
            if status.sync.as_ref().map(|sync| sync.kind) != Some(SyncKind::Verify) {
                return status.last_verify_mismatch_bytes.ok_or_else(|| {
                    Failure::Refused(Refusal::new(
                        "verify-interrupted",
                        format!("the verify of {mirror} ended before it was through"),
                        format!(
                            "look at `mirrorctl mdstat {mirror}` and `mirrorctl events`, then start it again"
                        ),
                    ))
                });
            }
            self.pause(&status, "verify").await?;
        }
    }

    /// Waits until what differed has been copied over, and is durable there.
    async fn repair(&mut self) -> Outcome {
        loop {
            let status = find(self.client.status().await?, self.mirror)?;
            if matches!(look(&status, Condition::Synced), Look::Holds) {
                return Ok(());
            }
            if let Some(cause) = cannot_repair(&status) {
                return Err(Failure::Refused(Refusal::new(
                    "not-repaired",
                    format!("{} bytes still differ: {cause}", status.out_of_sync_bytes),
                    format!(
                        "they are marked and will be copied at the next resync; ask why it does not run with \
                         `mirrorctl explain {}`",
                        self.mirror
                    ),
                )));
            }
            self.pause(&status, "repair").await?;
        }
    }

    async fn pause(&mut self, status: &MirrorStatus, what: &str) -> Outcome {
        let mirror = self.mirror;
        if self
            .deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
        {
            self.progress.clear();
            return Err(Failure::TimedOut(format!(
                "the {what} of {mirror} is not done in time; it goes on, see `mirrorctl mdstat {mirror}`"
            )));
        }
        self.progress.show(mirror, status.sync.as_ref());
        tokio::time::sleep(POLL_INTERVAL).await;
        Ok(())
    }
}

/// What keeps the repair from going on by itself.
fn cannot_repair(status: &MirrorStatus) -> Option<String> {
    let peer = &status.peer.node;
    if status.connection != Connection::Connected {
        return Some(format!(
            "{peer} is gone ({})",
            connection_name(status.connection)
        ));
    }
    if status.disk == DiskState::Failed {
        return Some("the disk of this side failed".into());
    }
    (status.peer.disk == DiskState::Failed).then(|| format!("the disk of {peer} failed"))
}

fn conclude(
    global: &Global,
    name: &str,
    mismatch_bytes: u64,
    repaired: Option<Outcome>,
) -> Outcome {
    let say = |text: String| {
        if !global.json && !global.quiet {
            println!("{name}: {text}");
        }
    };
    match repaired {
        None if mismatch_bytes == 0 => say("both sides hold the same data".into()),
        None => {
            return Err(Failure::Refused(Refusal::new(
                "verify-mismatch",
                format!(
                    "{name}: {mismatch_bytes} bytes are in blocks that differ between the sides"
                ),
                format!(
                    "see which with `mirrorctl events`, and copy this side's blocks over them with \
                     `mirrorctl verify {name} --repair`"
                ),
            )));
        }
        Some(Ok(())) => say(format!("{mismatch_bytes} bytes differed and were repaired")),
        Some(failed) => {
            say(format!(
                "{mismatch_bytes} bytes differed and are not repaired yet"
            ));
            return failed;
        }
    }
    Ok(())
}
