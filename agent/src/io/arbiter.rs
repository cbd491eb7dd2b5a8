//! Asks a witness over HTTP. One [`WitnessClient`] lives as long as its agent.
//!
//! It proves every request with the cluster key and believes no reply without a proof. Beats may
//! overtake one another and never wait behind anything else; all other requests go one after the other,
//! in order. A call that timed out leaves its connection closed: the next one opens its own. Whether a
//! call that failed was carried out is not known; every request is made so that it may be asked again.

use std::fs::File;
use std::io::{self, Read};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mirror_core::link::preface::ClusterKey;
use reqwest::{Client, Response, StatusCode, Url, header, redirect};
use tokio::sync::Semaphore;

use super::clock::boottime_ms;
use crate::arbiter::call::{Reply, Request};
use crate::arbiter::envelope::{
    Answer, Ask, Call, Denial, DenialKind, LEASE_MS_MAX, MESSAGE_BYTES_MAX, PROOF_HEADER, Proof,
    Session, WitnessKey, path_of,
};

/// Beats under way at once; more wait.
const BEATS_MAX: usize = 8;
/// Attempts of one call: the witness may have restarted, which ends connections and sessions.
const ATTEMPTS_MAX: u32 = 3;
/// An idle connection is dropped before the witness drops it, so that no call is sent into a closing one.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
const NONCE_BYTES: usize = 16;

/// A reply, with the moment from which a lease in it counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    pub reply: Reply,
    /// By [`boottime_ms`], just before the request was sent.
    pub sent_ms: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum ArbiterError {
    #[error(
        "{url:?} is no URL of a witness: {reason}; write one such as \"http://witness.example:29004\" as `arbiter` `url`"
    )]
    Url { url: String, reason: String },
    #[error(
        "a lease of {lease_ms} ms is out of range; set `arbiter` `lease` to at least 1ms and at most 1h"
    )]
    Lease { lease_ms: u64 },
    #[error(
        "cannot set up the connection to the witness {url}: {source}; for https, install the system's root certificates"
    )]
    SetUp { url: String, source: reqwest::Error },
    #[error("cannot read random numbers: {0}; see that /dev/urandom is there")]
    Random(io::Error),
    #[error("the witness {url} cannot be reached: {reason}; see that mirror-witness runs there, that no firewall stands between and, for https, that its certificate is valid", reason = innermost(.source))]
    Unreachable { url: String, source: reqwest::Error },
    #[error(
        "the witness {url} did not answer within {timeout_ms} ms; look at its load, its disk and the network, or raise `arbiter` `timeout`"
    )]
    TimedOut { url: String, timeout_ms: u128 },
    #[error(
        "the witness {url} does not know cluster {cluster}; add it as [[cluster]] to its configuration, or mend `cluster` `name` here"
    )]
    UnknownCluster { url: String, cluster: String },
    #[error(
        "the witness {url} says that this node's request was not made with the key of cluster {cluster}; copy the cluster's key file to the witness"
    )]
    WrongKey { url: String, cluster: String },
    #[error(
        "what answers at {url} did not prove that it has the key of cluster {cluster}, so it is not believed; see that the URL is the witness's own and that nothing alters its answers"
    )]
    Forged { url: String, cluster: String },
    #[error(
        "what answers at {url} is no witness of this version: {reason}; check the URL and that both run the same release"
    )]
    BadAnswer { url: String, reason: String },
    #[error(
        "another process speaks to the witness {url} in the name of node {node}; if no agent was just restarted, two machines have one name: give each its own --node"
    )]
    Displaced { url: String, node: String },
    #[error(
        "the witness {url} took a request for a copy of an older one; if this goes on, something repeats or reorders requests on the way"
    )]
    Replayed { url: String },
    #[error(
        "the witness {url} cannot store its record, so it changed nothing: {reason}; make room on its disk or mend it"
    )]
    NotRecorded { url: String, reason: String },
    #[error("the witness {url} refuses the request: {reason}")]
    BadCall { url: String, reason: String },
}

/// The system's words, without the library's around them.
fn innermost(error: &reqwest::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[derive(Debug, Default)]
struct Conversation {
    session: Option<Session>,
    sequence: u64,
}

#[derive(Debug)]
pub struct WitnessClient {
    http: Client,
    /// As configured, for messages.
    url: String,
    target: Url,
    node: String,
    key: WitnessKey,
    timeout: Duration,
    lease_ms: u64,
    conversation: Mutex<Conversation>,
    /// Held while a session is asked for, so that there is one.
    greeting: tokio::sync::Mutex<()>,
    /// Held by every call that is no beat.
    deeds: tokio::sync::Mutex<()>,
    beats: Semaphore,
}

/// How one attempt failed.
struct Failure {
    error: ArbiterError,
    /// A restart of the witness explains it, so that the next attempt may succeed.
    may_pass: bool,
}

impl From<ArbiterError> for Failure {
    fn from(error: ArbiterError) -> Self {
        // A connection that was used before and is closed now; a new one that fails will fail again.
        let may_pass =
            matches!(&error, ArbiterError::Unreachable { source, .. } if !source.is_connect());
        Self { error, may_pass }
    }
}

impl WitnessClient {
    /// `timeout` bounds a whole call. `lease_ms` is how long leases last that its calls are granted.
    pub fn new(
        url: &str,
        cluster: &str,
        node: &str,
        key: &ClusterKey,
        timeout: Duration,
        lease_ms: u64,
    ) -> Result<Self, ArbiterError> {
        if !(1..=LEASE_MS_MAX).contains(&lease_ms) {
            return Err(ArbiterError::Lease { lease_ms });
        }
        let refused = |reason: String| ArbiterError::Url {
            url: url.into(),
            reason,
        };
        let parsed = Url::parse(url).map_err(|error| refused(error.to_string()))?;
        if !["http", "https"].contains(&parsed.scheme()) || !parsed.has_host() {
            return Err(refused(
                "it does not begin with http:// or https:// and a host".into(),
            ));
        }
        if parsed.query().is_some() || parsed.fragment().is_some() {
            return Err(refused("it has a query or a fragment".into()));
        }
        let target = format!("{}{}", url.trim_end_matches('/'), path_of(cluster));
        let target = Url::parse(&target).map_err(|error| refused(error.to_string()))?;
        // A second call finds one in place already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = Client::builder()
            .redirect(redirect::Policy::none())
            .no_proxy()
            .connect_timeout(timeout)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(BEATS_MAX + 1)
            .tcp_nodelay(true)
            .tls_built_in_root_certs(parsed.scheme() == "https")
            .build()
            .map_err(|source| ArbiterError::SetUp {
                url: url.into(),
                source,
            })?;
        Ok(Self {
            http,
            url: url.into(),
            target,
            node: node.into(),
            key: WitnessKey::new(cluster, key),
            timeout,
            lease_ms,
            conversation: Mutex::default(),
            greeting: tokio::sync::Mutex::default(),
            deeds: tokio::sync::Mutex::default(),
            beats: Semaphore::new(BEATS_MAX),
        })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn lease_ms(&self) -> u64 {
        self.lease_ms
    }

    /// Asks once, and again only where the witness turns out to have restarted.
    pub async fn call(&self, request: Request) -> Result<Answered, ArbiterError> {
        self.in_time(self.call_in_turn(request)).await
    }

    /// Whether it is there, knows the cluster and has its key. Nothing changes there, not even for an
    /// agent that speaks to it under the same name: a session counts from its first call.
    pub async fn greet(&self) -> Result<(), ArbiterError> {
        self.in_time(async { self.next_turn().await.map(|_| ()) })
            .await
    }

    async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, ArbiterError>>,
    ) -> Result<T, ArbiterError> {
        tokio::time::timeout(self.timeout, work)
            .await
            .unwrap_or_else(|_| {
                Err(ArbiterError::TimedOut {
                    url: self.url.clone(),
                    timeout_ms: self.timeout.as_millis(),
                })
            })
    }

    async fn call_in_turn(&self, request: Request) -> Result<Answered, ArbiterError> {
        if matches!(request, Request::Beat { .. }) {
            let _turn = self.beats.acquire().await.expect("it is never closed");
            self.call_persistently(request).await
        } else {
            let _turn = self.deeds.lock().await;
            self.call_persistently(request).await
        }
    }

    async fn call_persistently(&self, request: Request) -> Result<Answered, ArbiterError> {
        let mut attempt = 1;
        loop {
            match self.attempt(&request).await {
                Ok(answered) => return Ok(answered),
                Err(failure) if failure.may_pass && attempt < ATTEMPTS_MAX => attempt += 1,
                Err(failure) => return Err(failure.error),
            }
        }
    }

    async fn attempt(&self, request: &Request) -> Result<Answered, Failure> {
        let (session, sequence) = self.next_turn().await?;
        let ask = Ask::Call(Call {
            node: self.node.clone(),
            session: session.clone(),
            sequence,
            lease_ms: self.lease_ms,
            request: request.clone(),
        });
        let sent_ms = boottime_ms();
        let url = self.url.clone();
        let error = match self.exchange(&ask).await? {
            Answer::Replied { reply } => return Ok(Answered { reply, sent_ms }),
            Answer::UnknownSession => {
                self.forget(&session);
                return Err(Failure {
                    error: self.bad_answer("it does not know the session that it gave".into()),
                    may_pass: true,
                });
            }
            Answer::Displaced => {
                self.forget(&session);
                ArbiterError::Displaced {
                    url,
                    node: self.node.clone(),
                }
            }
            Answer::Replayed => ArbiterError::Replayed { url },
            Answer::NotRecorded { reason } => ArbiterError::NotRecorded { url, reason },
            Answer::BadCall { reason } => ArbiterError::BadCall { url, reason },
            Answer::Welcome { .. } => self.bad_answer("it answered a call with a session".into()),
        };
        Err(Failure {
            error,
            may_pass: false,
        })
    }

    /// The session, asked for if there is none, and the next sequence number in it.
    async fn next_turn(&self) -> Result<(Session, u64), ArbiterError> {
        if let Some(turn) = self.take_turn() {
            return Ok(turn);
        }
        let _greeting = self.greeting.lock().await;
        if let Some(turn) = self.take_turn() {
            return Ok(turn);
        }
        let hello = Ask::Hello {
            node: self.node.clone(),
            nonce: nonce().map_err(ArbiterError::Random)?,
        };
        let url = self.url.clone();
        let session = match self.exchange(&hello).await? {
            Answer::Welcome { session } => session,
            Answer::NotRecorded { reason } => {
                return Err(ArbiterError::NotRecorded { url, reason });
            }
            Answer::BadCall { reason } => return Err(ArbiterError::BadCall { url, reason }),
            other => {
                return Err(self.bad_answer(format!("it answered {other:?} to a hello")));
            }
        };
        let mut conversation = self.conversation();
        conversation.session = Some(session.clone());
        conversation.sequence = 1;
        Ok((session, 1))
    }

    fn take_turn(&self) -> Option<(Session, u64)> {
        let mut conversation = self.conversation();
        let session = conversation.session.clone()?;
        conversation.sequence += 1;
        Some((session, conversation.sequence))
    }

    /// Unless another call has replaced it already.
    fn forget(&self, session: &Session) {
        let mut conversation = self.conversation();
        if conversation.session.as_ref() == Some(session) {
            conversation.session = None;
        }
    }

    fn conversation(&self) -> MutexGuard<'_, Conversation> {
        // Nothing panics while it is held, and each change of it is whole.
        self.conversation
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn exchange(&self, ask: &Ask) -> Result<Answer, ArbiterError> {
        let body = serde_json::to_vec(ask).expect("a message has no map with odd keys");
        if body.len() > MESSAGE_BYTES_MAX {
            return Err(ArbiterError::BadCall {
                url: self.url.clone(),
                reason: format!("it is longer than {MESSAGE_BYTES_MAX} bytes"),
            });
        }
        let proof = self.key.prove_request(&body);
        let response = self
            .http
            .post(self.target.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .header(PROOF_HEADER, proof.to_string())
            .body(body)
            .send()
            .await
            .map_err(|source| self.unreachable(source))?;
        let status = response.status();
        let given = response
            .headers()
            .get(PROOF_HEADER)
            .and_then(|value| value.to_str().ok())
            .and_then(Proof::parse);
        let body = self.read(response).await?;
        let Some(given) = given else {
            return Err(self.denied(status, &body));
        };
        if !self.key.is_reply(&proof, &body, &given) {
            return Err(ArbiterError::Forged {
                url: self.url.clone(),
                cluster: self.key.cluster().into(),
            });
        }
        serde_json::from_slice(&body).map_err(|error| self.bad_answer(error.to_string()))
    }

    async fn read(&self, mut response: Response) -> Result<Vec<u8>, ArbiterError> {
        let mut body = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|source| self.unreachable(source))?
        {
            if body.len() + chunk.len() > MESSAGE_BYTES_MAX {
                return Err(self.bad_answer(format!(
                    "its answer is longer than {MESSAGE_BYTES_MAX} bytes"
                )));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// An answer without a proof grants nothing; it only says what to mend.
    fn denied(&self, status: StatusCode, body: &[u8]) -> ArbiterError {
        let url = self.url.clone();
        let cluster = self.key.cluster().to_owned();
        match serde_json::from_slice::<Denial>(body) {
            Ok(denial) if !status.is_success() => match denial.denied {
                DenialKind::UnknownCluster => ArbiterError::UnknownCluster { url, cluster },
                DenialKind::WrongKey => ArbiterError::WrongKey { url, cluster },
                DenialKind::BadRequest => ArbiterError::BadCall {
                    url,
                    reason: denial.message,
                },
            },
            _ if status.is_success() => ArbiterError::Forged { url, cluster },
            _ => self.bad_answer(format!("it answers {status}")),
        }
    }

    fn bad_answer(&self, reason: String) -> ArbiterError {
        ArbiterError::BadAnswer {
            url: self.url.clone(),
            reason,
        }
    }

    fn unreachable(&self, source: reqwest::Error) -> ArbiterError {
        let url = self.url.clone();
        if source.is_timeout() {
            ArbiterError::TimedOut {
                url,
                timeout_ms: self.timeout.as_millis(),
            }
        } else {
            // The URL is in the message already.
            let source = source.without_url();
            ArbiterError::Unreachable { url, source }
        }
    }
}

fn nonce() -> io::Result<String> {
    let mut bytes = [0; NONCE_BYTES];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
