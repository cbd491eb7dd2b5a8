//! `verify`: starts the comparison, shows how far it is, and says what it found.

use mirror_core::control::{CommandRequest, MirrorStatus, Refusal, SyncKind};
use tokio::time::Instant;

use crate::arguments::Global;
use crate::outcome::{Failure, Outcome};
use crate::progress::Progress;
use crate::wait::{POLL_INTERVAL, find};

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
    let mut progress = Progress::new(global);
    let status = loop {
        let status = find(client.status().await?, mirror)?;
        let Some(sync) = status
            .sync
            .as_ref()
            .filter(|sync| sync.kind == SyncKind::Verify)
        else {
            break status;
        };
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            progress.clear();
            return Err(Failure::TimedOut(format!(
                "the verify of {mirror} is not done in time; it goes on, \
                 see `mirrorctl mdstat {mirror}`"
            )));
        }
        progress.show(mirror, Some(sync));
        tokio::time::sleep(POLL_INTERVAL).await;
    };
    progress.clear();
    report(global, &status, repair)
}

fn report(global: &Global, status: &MirrorStatus, repair: bool) -> Outcome {
    let name = &status.name;
    let Some(mismatch_bytes) = status.last_verify_mismatch_bytes else {
        return Err(Failure::Refused(Refusal::new(
            "verify-interrupted",
            format!("the verify of {name} ended before it was through"),
            format!(
                "look at `mirrorctl mdstat {name}` and `mirrorctl events`, then start it again"
            ),
        )));
    };
    if global.json {
        println!(
            "{}",
            serde_json::json!({ "mismatch_bytes": mismatch_bytes, "repaired": repair })
        );
    }
    match (mismatch_bytes, repair) {
        (0, _) => {
            if !global.json && !global.quiet {
                println!("{name}: both sides hold the same data");
            }
            Ok(())
        }
        (bytes, true) => {
            if !global.json && !global.quiet {
                println!("{name}: {bytes} bytes differed and were repaired");
            }
            Ok(())
        }
        (bytes, false) => Err(Failure::Refused(Refusal::new(
            "verify-mismatch",
            format!("{name}: {bytes} bytes are in blocks that differ between the sides"),
            format!(
                "see which with `mirrorctl events`, and copy this side's blocks over them with \
                 `mirrorctl verify {name} --repair`"
            ),
        ))),
    }
}
