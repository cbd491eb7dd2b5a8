//! Carries out what `fencing` asks for: a script, or the interface of a cloud.
//!
//! Every call ends within the time-out of `[forced_stop]`, also when what it called hangs. A call that is
//! dropped leaves no process behind. Nothing here tries again or decides what an answer means for the
//! groups.

mod custom;

use std::path::PathBuf;
use std::time::Duration;

use nbd_frontend::config::agent::{ForcedStop, ForcedStopKind};
use nbd_frontend::config::trust::Exposure;

use crate::fencing::Stopped;
use crate::io::command::code_text;
pub use custom::{Custom, Mode};

/// Whether `kind = "aws"` works in this build.
pub const AWS_BUILT_IN: bool = cfg!(feature = "aws");

/// What to do about a program without it. `mirrorctl check` asks EC2 itself, so that both need it.
pub const AWS_BUILD: &str = "build mirror-agent and mirrorctl with `cargo xtask release`, or with `cargo build --release \
                             -p agent -p mirrorctl --features agent/aws`";

#[derive(Debug)]
pub enum ForcedStopDriver {
    Custom(Custom),
    #[cfg(feature = "aws")]
    Aws(mirror_aws::Stopper),
}

#[derive(Debug, thiserror::Error)]
pub enum StopError {
    #[error("kind = \"aws\" of [forced_stop] is not in this build of mirror-agent; {AWS_BUILD}")]
    NotBuiltIn,
    #[error("the forced stop script {} cannot be started: {fault}", script.display())]
    Script {
        script: PathBuf,
        fault: ScriptFault,
        source: std::io::Error,
    },
    #[error("the forced stop script {} {exposure}; {}", script.display(), exposure.remedy(script))]
    ScriptExposed { script: PathBuf, exposure: Exposure },
    #[error(
        "the forced stop script {} ended with {} in mode {mode}{}",
        script.display(),
        code_text(*code),
        said(output)
    )]
    ScriptFailed {
        script: PathBuf,
        mode: Mode,
        /// None: a signal ended it.
        code: Option<i32>,
        output: String,
    },
    #[error(
        "the forced stop script {} did not end within {} ms in mode {mode} and was killed{}",
        script.display(),
        timeout.as_millis(),
        said(output)
    )]
    ScriptTimedOut {
        script: PathBuf,
        mode: Mode,
        timeout: Duration,
        output: String,
    },
    #[error("the forced stop script {} could not be waited for", script.display())]
    ScriptLost {
        script: PathBuf,
        source: std::io::Error,
    },
    /// A script answers for good; there is nothing to ask it afterwards.
    #[error("a forced stop script cannot be asked whether the node is down")]
    NothingToAsk,
    #[cfg(feature = "aws")]
    #[error(transparent)]
    Aws(#[from] mirror_aws::Error),
}

/// What is wrong with a script that did not even start, and what to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScriptFault {
    #[error(
        "there is no such file; put it there on both nodes, or correct `script` in [forced_stop]"
    )]
    Missing,
    #[error("it is not an executable file; `chmod 755` it")]
    NotExecutable,
    #[error(
        "the interpreter in its first line is not installed; correct the line that begins with #!"
    )]
    NoInterpreter,
    #[error("it has no interpreter; begin it with a line such as #!/bin/sh")]
    NoFirstLine,
    #[error("the system refuses it")]
    Refused,
}

fn said(output: &str) -> String {
    match output {
        "" => ", without a word".into(),
        output => format!("; it said: {output}"),
    }
}

/// What a driver must know of the cluster.
#[derive(Debug, Clone)]
pub struct Servers {
    pub cluster: String,
    /// Names, in the order of the configuration.
    pub nodes: [String; 2],
    pub local: usize,
}

impl ForcedStopDriver {
    /// Fails only where this build cannot do what the configuration asks for.
    pub fn new(config: &ForcedStop, servers: Servers) -> Result<Self, StopError> {
        match &config.kind {
            ForcedStopKind::Custom { script } => Ok(Self::Custom(Custom::new(
                script.clone(),
                servers,
                config.timeout,
            ))),
            #[cfg(feature = "aws")]
            ForcedStopKind::Aws {
                instances,
                action,
                region,
                endpoint,
                profile,
            } => Ok(Self::Aws(mirror_aws::Stopper::new(mirror_aws::Settings {
                instances: instances.clone(),
                action: match action {
                    nbd_frontend::config::agent::AwsAction::Stop => mirror_aws::Action::Stop,
                    nbd_frontend::config::agent::AwsAction::Terminate => {
                        mirror_aws::Action::Terminate
                    }
                },
                region: region.clone(),
                endpoint: endpoint.clone(),
                profile: profile.clone(),
                timeout: config.timeout,
            }))),
            #[cfg(not(feature = "aws"))]
            ForcedStopKind::Aws { .. } => Err(StopError::NotBuiltIn),
        }
    }

    /// Whether a stop of this node would work. Stops nothing.
    pub async fn check(&self, target: usize) -> Result<(), StopError> {
        match self {
            Self::Custom(custom) => custom.run(target, Mode::Check).await,
            #[cfg(feature = "aws")]
            Self::Aws(aws) => Ok(aws.check(target).await?),
        }
    }

    pub async fn stop(&self, target: usize) -> Result<Stopped, StopError> {
        match self {
            Self::Custom(custom) => {
                custom.run(target, Mode::Stop).await?;
                Ok(Stopped::Confirmed)
            }
            #[cfg(feature = "aws")]
            Self::Aws(aws) => Ok(match aws.stop(target).await? {
                mirror_aws::Stopped::Accepted => Stopped::Accepted,
                mirror_aws::Stopped::Confirmed => Stopped::Confirmed,
            }),
        }
    }

    /// True only where it is certain; asked after a stop that was accepted.
    pub async fn is_down(&self, target: usize) -> Result<bool, StopError> {
        match self {
            Self::Custom(_) => {
                assert!(target < 2, "a cluster has two nodes");
                Err(StopError::NothingToAsk)
            }
            #[cfg(feature = "aws")]
            Self::Aws(aws) => Ok(aws.is_down(target).await?),
        }
    }
}
