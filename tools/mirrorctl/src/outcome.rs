//! How a command ends: what standard error says and which exit code scripts see.

use std::process::ExitCode;

use mirror_core::control::Refusal;
use nbd_frontend::chain;
use nbd_frontend::control::client::ClientError;

pub type Outcome<T = ()> = Result<T, Failure>;

/// Everything but success.
#[derive(Debug)]
pub enum Failure {
    /// Exit code 1, by a rule.
    Refused(Refusal),
    /// Exit code 1.
    Failed(anyhow::Error),
    /// Exit code 3.
    Unreachable(anyhow::Error),
    /// Exit code 4.
    TimedOut(String),
}

impl Failure {
    /// Says what went wrong, once, and returns the exit code.
    pub fn report(&self, json: bool) -> ExitCode {
        let (code, rule) = match self {
            Self::Refused(refusal) => (1, refusal.rule.as_str()),
            Self::Failed(_) => (1, "failed"),
            Self::Unreachable(_) => (3, "unreachable"),
            Self::TimedOut(_) => (4, "timed-out"),
        };
        let (reason, remedy) = match self {
            Self::Refused(refusal) => (refusal.reason.clone(), Some(refusal.remedy.clone())),
            Self::Failed(error) | Self::Unreachable(error) => (chain::text(error.as_ref()), None),
            Self::TimedOut(reason) => (reason.clone(), None),
        };
        if json {
            let report = serde_json::json!({
                "error": { "rule": rule, "reason": reason, "remedy": remedy }
            });
            eprintln!("{report}");
        } else if let Some(remedy) = remedy {
            eprintln!("mirrorctl: {reason} (rule {rule})\n  next: {remedy}");
        } else {
            eprintln!("mirrorctl: {reason}");
        }
        ExitCode::from(code)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(refusal) => Self::Refused(refusal),
            ClientError::TimedOut { .. } => Self::TimedOut(error.to_string()),
            // The message holds its source already.
            ClientError::Unreachable { .. } => Self::Unreachable(anyhow::anyhow!("{error}")),
            // It was reached, and may have done what it was told.
            ClientError::Broken { .. } => Self::Failed(anyhow::anyhow!("{error}")),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.into())
    }
}
