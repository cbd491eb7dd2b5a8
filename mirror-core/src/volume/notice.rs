//! What a volume reports of itself: each state change once, with its reason.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Info,
    Warning,
    Error,
}

/// One entry of `mirrorctl events`. `kind` is stable (`docs/operations/events.md`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    pub severity: Severity,
    pub kind: String,
    pub message: String,
}

impl Notice {
    pub fn info(kind: &str, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Info,
            kind: kind.into(),
            message: message.into(),
        }
    }

    pub fn warning(kind: &str, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            kind: kind.into(),
            message: message.into(),
        }
    }

    pub fn error(kind: &str, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            kind: kind.into(),
            message: message.into(),
        }
    }
}
