//! Connects to the peer, for ever, for as long as a link is wanted and there is none.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::error::{LinkError, Stage};
use super::handshake::{self, Credentials, random_bytes, within};
use super::{Pair, Wanted};
use crate::link::preface::SessionToken;
use crate::wire::message::Channel;

/// First and longest pause between two attempts.
pub const BACKOFF_MIN: Duration = Duration::from_millis(100);
pub const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// A link that lived shorter counts as a failed attempt.
const SETTLED: Duration = Duration::from_secs(5);

/// Where the peer listens.
pub struct Connector {
    pub peer: SocketAddr,
    pub credentials: Rc<Credentials>,
    /// Set while a link is wanted and there is none.
    pub wanted: Wanted,
    pub pairs: mpsc::Sender<Pair>,
    /// Told of each attempt that failed.
    pub refused: Rc<dyn Fn(&LinkError)>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

impl Connector {
    /// Ends when dropped, or when nobody takes links any more.
    pub async fn run(self) {
        let mut backoff = BACKOFF_MIN;
        loop {
            if !self.wanted.get() {
                // Asked for anew: no reason to be slow.
                backoff = BACKOFF_MIN;
            }
            self.wanted.wait_until_set().await;
            match self.attempt().await {
                Ok(pair) => {
                    let made = tokio::time::Instant::now();
                    self.wanted.mark_linked();
                    if self.pairs.send(pair).await.is_err() {
                        return;
                    }
                    self.wanted.wait_until_set().await;
                    if made.elapsed() >= SETTLED {
                        backoff = BACKOFF_MIN;
                    }
                }
                Err(error) => (self.refused)(&error),
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    async fn attempt(&self) -> Result<Pair, LinkError> {
        let token = random_bytes().map_err(|source| LinkError::BrokeDuring {
            stage: Stage::Connect,
            source,
        })?;
        let token = SessionToken(token);
        let control = self.connection(Channel::Control, token).await?;
        let data = self.connection(Channel::Data, token).await?;
        Ok(Pair { control, data })
    }

    async fn connection(
        &self,
        channel: Channel,
        token: SessionToken,
    ) -> Result<handshake::Trusted, LinkError> {
        let address = self.peer;
        let stream = within(Stage::Connect, async {
            let connected = TcpStream::connect(address).await;
            connected.map_err(|source| LinkError::Connect { address, source })
        })
        .await?;
        handshake::connect(stream, &self.credentials, channel, token).await
    }
}
