//! Stops an EC2 instance from outside: the `aws` kind of the agent's forced stop.
//!
//! A crate of its own, because what it builds on takes minutes and gigabytes to compile. It knows two
//! instances and how to ask for their stop, their state, and whether a stop would be allowed. It does not
//! know when a node must be stopped, and tries nothing twice beyond what the SDK does within one call.
//!
//! Region, credentials and endpoint come from where every AWS program takes them; what the configuration
//! of the cluster says comes first. Every call ends within [`Settings::timeout`].

mod error;
#[cfg(test)]
mod tests;

use std::time::Duration;

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::SharedCredentialsProvider;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::types::{InstanceState, InstanceStateChange, InstanceStateName};
use aws_smithy_http_client::Builder as HttpClient;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use error::Asked;
pub use error::Error;

const DESCRIBE: &str = "ec2:DescribeInstances";

#[derive(Debug, Clone)]
pub struct Settings {
    /// Ids, in the order of the nodes.
    pub instances: [String; 2],
    pub action: Action,
    /// What is absent is found as the SDK finds it.
    pub region: Option<String>,
    pub endpoint: Option<String>,
    pub profile: Option<String>,
    /// Longest that one call may take, looking for credentials included.
    pub timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Stop,
    Terminate,
}

impl Action {
    /// As a policy calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Stop => "ec2:StopInstances",
            Self::Terminate => "ec2:TerminateInstances",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It goes down; [`Stopper::is_down`] tells when it is.
    Accepted,
    /// It is down.
    Confirmed,
}

/// Stops either of two instances.
#[derive(Debug)]
pub struct Stopper {
    settings: Settings,
    /// Instead of the usual places.
    credentials: Option<SharedCredentialsProvider>,
    /// Made by the first call that finds a region.
    connection: OnceCell<Connection>,
}

#[derive(Debug)]
struct Connection {
    client: Client,
    place: String,
}

impl Stopper {
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            credentials: None,
            connection: OnceCell::new(),
        }
    }

    /// Whether a stop of this node would work: the instance is there, and its stop would be allowed.
    pub async fn check(&self, target: usize) -> Result<(), Error> {
        self.bounded(self.settings.action.name(), target, self.try_out(target))
            .await
    }

    pub async fn stop(&self, target: usize) -> Result<Stopped, Error> {
        self.bounded(self.settings.action.name(), target, self.call(target))
            .await
    }

    /// True once EC2 says that it is stopped or terminated. Silence about it is no yes.
    pub async fn is_down(&self, target: usize) -> Result<bool, Error> {
        self.bounded(DESCRIBE, target, async {
            Ok(is_down(&self.state(target).await?))
        })
        .await
    }

    async fn bounded<T>(
        &self,
        action: &'static str,
        target: usize,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        match timeout(self.settings.timeout, work).await {
            Ok(result) => result,
            Err(_) => {
                let place = match self.connection.get() {
                    Some(connection) => connection.place.as_str(),
                    None => "a region that is not known yet",
                };
                Err(self.asked(action, target, place).timed_out())
            }
        }
    }

    async fn try_out(&self, target: usize) -> Result<(), Error> {
        // A trial of the stop alone would not notice that the instance is gone, or that the answer to
        // the stop could never be confirmed.
        let state = self.state(target).await?;
        if matches!(
            state,
            InstanceStateName::Terminated | InstanceStateName::ShuttingDown
        ) {
            return Err(self.unusable(target, &state));
        }
        let action = self.settings.action.name();
        let place = &self.connection().await?.place;
        match self.send(target, true).await {
            Ok(_) => Err(Error::TrialIgnored {
                place: place.clone(),
                action,
                instance: self.settings.instances[target].clone(),
            }),
            Err(Refusal::TrialPassed) => Ok(()),
            // It would be allowed, but not at this moment.
            Err(Refusal::WrongState) => Ok(()),
            Err(Refusal::Other(error)) => Err(error),
        }
    }

    async fn call(&self, target: usize) -> Result<Stopped, Error> {
        let state = match self.send(target, false).await {
            Ok(Some(state)) => state,
            Ok(None) => return Ok(Stopped::Accepted),
            // Whoever was quicker: it may be down already.
            Err(Refusal::WrongState | Refusal::TrialPassed) => {
                let state = self.state(target).await?;
                if !is_down(&state) && !goes_down(&state) {
                    return Err(self.unusable(target, &state));
                }
                state
            }
            Err(Refusal::Other(error)) => return Err(error),
        };
        Ok(if is_down(&state) {
            Stopped::Confirmed
        } else {
            Stopped::Accepted
        })
    }

    /// The state that the call leads to at once. Without a shutdown of the guest: one that hangs would
    /// make the other node wait, and one that works would write to disks that are not its own any more.
    async fn send(&self, target: usize, trial: bool) -> Result<Option<InstanceStateName>, Refusal> {
        let connection = self.connection().await.map_err(Refusal::Other)?;
        let instance = &self.settings.instances[target];
        let action = self.settings.action;
        let asked = self.asked(action.name(), target, &connection.place);
        let changes = match action {
            Action::Stop => connection
                .client
                .stop_instances()
                .instance_ids(instance)
                .force(true)
                .skip_os_shutdown(true)
                .dry_run(trial)
                .send()
                .await
                .map(|output| output.stopping_instances.unwrap_or_default())
                .map_err(|error| Refusal::of(error, &asked))?,
            Action::Terminate => connection
                .client
                .terminate_instances()
                .instance_ids(instance)
                .skip_os_shutdown(true)
                .dry_run(trial)
                .send()
                .await
                .map(|output| output.terminating_instances.unwrap_or_default())
                .map_err(|error| Refusal::of(error, &asked))?,
        };
        Ok(changes
            .iter()
            .find(|change| change.instance_id() == Some(instance))
            .and_then(InstanceStateChange::current_state)
            .and_then(InstanceState::name)
            .cloned())
    }

    async fn state(&self, target: usize) -> Result<InstanceStateName, Error> {
        let connection = self.connection().await?;
        let instance = &self.settings.instances[target];
        let asked = self.asked(DESCRIBE, target, &connection.place);
        let output = connection
            .client
            .describe_instances()
            .instance_ids(instance)
            .send()
            .await
            .map_err(|error| asked.fault(error))?;
        output
            .reservations()
            .iter()
            .flat_map(|reservation| reservation.instances())
            .find(|found| found.instance_id() == Some(instance))
            .and_then(|found| found.state())
            .and_then(InstanceState::name)
            .cloned()
            .ok_or_else(|| Error::UnknownInstance {
                instance: instance.clone(),
                place: connection.place.clone(),
                code: "an empty answer".into(),
            })
    }

    fn unusable(&self, target: usize, state: &InstanceStateName) -> Error {
        Error::Unusable {
            instance: self.settings.instances[target].clone(),
            state: state.as_str().into(),
        }
    }

    fn asked<'a>(&'a self, action: &'static str, target: usize, place: &'a str) -> Asked<'a> {
        Asked {
            action,
            instance: &self.settings.instances[target],
            place,
            timeout: self.settings.timeout,
        }
    }

    async fn connection(&self) -> Result<&Connection, Error> {
        self.connection.get_or_try_init(|| self.connect()).await
    }

    /// Reads files and the environment, and asks the metadata service of the machine for the region if
    /// nothing else names one. Credentials are looked for by the first call, and again when they expire.
    async fn connect(&self) -> Result<Connection, Error> {
        let http = HttpClient::new()
            .tls_provider(Provider::Rustls(CryptoMode::Ring))
            .build_https();
        let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http.clone());
        if let Some(region) = &self.settings.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(endpoint) = &self.settings.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        if let Some(profile) = &self.settings.profile {
            loader = loader.profile_name(profile);
        }
        let config = loader.load().await;
        let region = config.region().ok_or(Error::NoRegion)?;
        let place = match config.endpoint_url() {
            Some(endpoint) => format!("region {region} at {endpoint}"),
            None => format!("region {region}"),
        };
        let mut ec2 = aws_sdk_ec2::config::Builder::from(&config);
        if let Some(profile) = &self.settings.profile {
            // Named by the operator, it comes before keys that happen to be in the environment.
            let provider = ProviderConfig::without_region()
                .with_http_client(http)
                .with_region(Some(region.clone()));
            ec2 = ec2.credentials_provider(
                ProfileFileCredentialsProvider::builder()
                    .configure(&provider)
                    .profile_name(profile)
                    .build(),
            );
        }
        if let Some(credentials) = &self.credentials {
            ec2 = ec2.credentials_provider(credentials.clone());
        }
        Ok(Connection {
            client: Client::from_conf(ec2.build()),
            place,
        })
    }
}

/// Why a stop or its trial was not carried out.
enum Refusal {
    /// It would have been.
    TrialPassed,
    /// The instance is not in a state to be stopped from.
    WrongState,
    Other(Error),
}

impl Refusal {
    fn of<E>(error: SdkError<E>, asked: &Asked<'_>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        match error.code() {
            Some("DryRunOperation") => Self::TrialPassed,
            Some("IncorrectInstanceState" | "IncorrectState") => Self::WrongState,
            _ => Self::Other(asked.fault(error)),
        }
    }
}

fn is_down(state: &InstanceStateName) -> bool {
    matches!(
        state,
        InstanceStateName::Stopped | InstanceStateName::Terminated
    )
}

fn goes_down(state: &InstanceStateName) -> bool {
    matches!(
        state,
        InstanceStateName::Stopping | InstanceStateName::ShuttingDown
    )
}
