//! Commands that go to the daemon as they are: promote, demote, connect and their like.

use mirror_core::control::CommandRequest;

use crate::arguments::Global;
use crate::outcome::Outcome;

pub async fn run(global: &Global, mirror: &str, request: &CommandRequest) -> Outcome {
    let client = global.client();
    if let CommandRequest::Promote { force: true, .. } = request {
        // What the step may cost has to be asked before it is taken.
        let explanation = client.explain(mirror).await?;
        for choice in explanation
            .choices
            .iter()
            .filter(|choice| choice.command.contains("--force"))
        {
            eprintln!("promote --force {mirror} may lose: {}", choice.loses);
        }
    }
    let reply = client.command(mirror, request).await?;
    if global.json {
        println!("{}", serde_json::json!({ "message": reply.message }));
    } else if !global.quiet {
        println!("{}", reply.message);
    }
    Ok(())
}
