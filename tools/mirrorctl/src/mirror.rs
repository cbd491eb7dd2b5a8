//! Commands that go to the daemon as they are: promote, demote, connect and their like.

use mirror_core::control::{CommandRequest, DeviceRequest};

use crate::arguments::Global;
use crate::loss;
use crate::outcome::Outcome;
use crate::wait::find;

pub async fn run(global: &Global, mirror: &str, request: &CommandRequest) -> Outcome {
    let client = global.client();
    let mut may_lose = None;
    if let CommandRequest::Promote { force: true, .. } = request {
        // What the step may cost has to be asked before it is taken.
        let loss = loss::of_forced_promotion(&find(client.status().await?, mirror)?);
        if !global.json {
            eprintln!("promote --force {mirror} may lose: {loss}");
        }
        may_lose = Some(loss);
    }
    let reply = client.command(mirror, request).await?;
    if global.json {
        let mut report = serde_json::json!({ "message": reply.message });
        if let Some(loss) = may_lose {
            report["may_lose"] = loss.into();
        }
        println!("{report}");
    } else if !global.quiet {
        println!("{}", reply.message);
    }
    Ok(())
}

pub async fn device(global: &Global, mirror: &str, request: DeviceRequest) -> Outcome {
    let reply = global.client().device(mirror, &request).await?;
    if global.json {
        println!("{}", serde_json::json!({ "message": reply.message }));
    } else if !global.quiet {
        println!("{}", reply.message);
    }
    Ok(())
}
