//! `explain`: why a mirror is in its state, and what can be done.

use std::fmt::Write as _;

use mirror_core::control::Explanation;

use crate::arguments::Global;
use crate::outcome::Outcome;

pub async fn run(global: &Global, mirror: &str) -> Outcome {
    let explanation = global.client().explain(mirror).await?;
    if global.json {
        let text = serde_json::to_string(&explanation).map_err(anyhow::Error::from)?;
        println!("{text}");
    } else {
        print!("{}", render(&explanation));
    }
    Ok(())
}

fn render(explanation: &Explanation) -> String {
    let mut text = format!("{}: {}\n", explanation.mirror, explanation.summary);
    // Writing to a string cannot fail.
    if let Some(rule) = &explanation.rule {
        let _ = writeln!(text, "  rule: {rule}");
    }
    for fact in &explanation.facts {
        let _ = writeln!(text, "  {fact}");
    }
    if !explanation.choices.is_empty() {
        text.push_str("What can be done:\n");
    }
    for choice in &explanation.choices {
        let _ = writeln!(
            text,
            "  {}\n      effect: {}\n      loses:  {}",
            choice.command, choice.effect, choice.loses
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use mirror_core::control::Choice;

    #[test]
    fn choices_come_with_effect_and_loss() {
        let explanation = Explanation {
            mirror: "md1".into(),
            rule: Some("split-brain".into()),
            summary: "both sides wrote alone".into(),
            facts: vec!["here: 3 MiB since 12:00".into()],
            choices: vec![Choice {
                command: "mirrorctl resync md1 --discard-local".into(),
                effect: "this side follows".into(),
                loses: "3 MiB written here".into(),
            }],
        };
        assert_eq!(
            render(&explanation),
            "md1: both sides wrote alone\n  rule: split-brain\n  here: 3 MiB since 12:00\n\
             What can be done:\n  mirrorctl resync md1 --discard-local\n      \
             effect: this side follows\n      loses:  3 MiB written here\n"
        );
    }
}
