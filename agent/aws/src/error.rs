//! What may go wrong between the agent and EC2, sorted by what a person does about it.

use std::error::Error as StdError;
use std::time::Duration;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};

type Source = Box<dyn StdError + Send + Sync>;

/// `place` is the region, and the endpoint where one is set.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "no AWS region is known; set `region` in [forced_stop], or AWS_REGION in the environment of \
         mirror-agent"
    )]
    NoRegion,
    #[error(
        "no AWS credentials to stop {instance} with: {}; give this machine an instance role, or set \
         `profile` in [forced_stop]",
        innermost(source)
    )]
    NoCredentials { instance: String, source: Source },
    #[error(
        "AWS does not accept the credentials ({code}: {message}); check the key of the role or \
         profile, the clock of this machine, and that the account has enabled {place}"
    )]
    BadCredentials {
        place: String,
        code: String,
        message: String,
    },
    #[error(
        "the AWS credentials have expired ({code}: {message}); renew them, or give this machine an \
         instance role, whose credentials renew themselves"
    )]
    ExpiredCredentials { code: String, message: String },
    #[error(
        "the AWS credentials do not allow {action} of {instance} ({code}: {message}); add it to \
         their policy"
    )]
    NotAllowed {
        action: &'static str,
        instance: String,
        code: String,
        message: String,
    },
    #[error(
        "there is no instance {instance} in {place} ({code}); correct its `instance` or the `region` in \
         [forced_stop]"
    )]
    UnknownInstance {
        instance: String,
        place: String,
        code: String,
    },
    #[error(
        "instance {instance} is protected against {action} ({message}); switch its protection off, \
         or a forced stop cannot work"
    )]
    Protected {
        instance: String,
        action: &'static str,
        message: String,
    },
    #[error(
        "instance {instance} is {state}; if it was replaced, correct its `instance` in [forced_stop]"
    )]
    Unusable { instance: String, state: String },
    #[error(
        "EC2 in {place} is not reachable: {}; check `region` and `endpoint` in [forced_stop], and \
         this machine's route and name resolution",
        innermost(source)
    )]
    Unreachable { place: String, source: Source },
    #[error("EC2 in {place} did not answer {action} of {instance} within {} ms", timeout.as_millis())]
    TimedOut {
        place: String,
        action: &'static str,
        instance: String,
        timeout: Duration,
    },
    #[error(
        "what {place} answers is not EC2's: {}; check `endpoint` in [forced_stop]",
        innermost(source)
    )]
    Garbled { place: String, source: Source },
    #[error(
        "{place} carried out {action} of {instance} although it was asked for a trial only; correct \
         `endpoint` in [forced_stop], and look after that instance"
    )]
    TrialIgnored {
        place: String,
        action: &'static str,
        instance: String,
    },
    #[error("EC2 refused {action} of {instance}: {code}: {message}")]
    Refused {
        action: &'static str,
        instance: String,
        code: String,
        message: String,
    },
}

/// What was asked of whom, for the words of an error.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub action: &'static str,
    pub instance: &'a str,
    pub place: &'a str,
    pub timeout: Duration,
}

impl Asked<'_> {
    pub fn timed_out(&self) -> Error {
        Error::TimedOut {
            place: self.place.into(),
            action: self.action,
            instance: self.instance.into(),
            timeout: self.timeout,
        }
    }

    pub fn fault<E>(&self, error: SdkError<E>) -> Error
    where
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        let place = self.place.to_owned();
        match &error {
            // A refusal without a code is not one of EC2's.
            SdkError::ServiceError(_) if error.code().is_some() => {
                let code = error.code().unwrap_or_default().to_owned();
                let message = error.message().unwrap_or("no message").to_owned();
                self.refusal(code, message)
            }
            SdkError::TimeoutError(_) => self.timed_out(),
            SdkError::ConstructionFailure(_) | SdkError::DispatchFailure(_) => {
                let source: Source = Box::new(error);
                if causes(&*source).any(|cause| cause.is::<CredentialsError>()) {
                    Error::NoCredentials {
                        instance: self.instance.into(),
                        source,
                    }
                } else {
                    Error::Unreachable { place, source }
                }
            }
            _ => Error::Garbled {
                place,
                source: Box::new(error),
            },
        }
    }

    /// By the codes of the EC2 reference, and those that endpoints in front of it use.
    fn refusal(&self, code: String, message: String) -> Error {
        let instance = self.instance.to_owned();
        let place = self.place.to_owned();
        let action = self.action;
        match code.as_str() {
            "RequestExpired" | "ExpiredToken" | "ExpiredTokenException" => {
                Error::ExpiredCredentials { code, message }
            }
            "AuthFailure"
            | "OptInRequired"
            | "InvalidClientTokenId"
            | "UnrecognizedClientException"
            | "SignatureDoesNotMatch"
            | "IncompleteSignature"
            | "MissingAuthenticationToken"
            | "Blocked" => Error::BadCredentials {
                place,
                code,
                message,
            },
            "UnauthorizedOperation" | "AccessDenied" | "AccessDeniedException" => {
                Error::NotAllowed {
                    action,
                    instance,
                    code,
                    message,
                }
            }
            "InvalidInstanceID.NotFound" | "InvalidInstanceID.Malformed" => {
                Error::UnknownInstance {
                    instance,
                    place,
                    code,
                }
            }
            "OperationNotPermitted" => Error::Protected {
                instance,
                action,
                message,
            },
            _ => Error::Refused {
                action,
                instance,
                code,
                message,
            },
        }
    }
}

fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| {
        (*error).source()
    })
}

/// The outer layers of the SDK's errors say only that something failed.
fn innermost(source: &Source) -> String {
    let source: &(dyn StdError + 'static) = &**source;
    causes(source)
        .last()
        .map_or_else(String::new, ToString::to_string)
}
