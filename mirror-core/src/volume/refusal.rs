//! Why a command was refused: the rule that decided and what would change it.

use serde::{Deserialize, Serialize};

/// A refusal as the operator sees it. `rule` is stable and may be scripted against.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason} (rule {rule}); {remedy}")]
pub struct Refusal {
    pub rule: String,
    pub reason: String,
    pub remedy: String,
}

impl Refusal {
    pub fn new(rule: &str, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            rule: rule.into(),
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }
}
