//! Makes one TCP connection a trusted one: TLS where it is on, then the preface and the proof of the
//! cluster key. Any stage can be given up at its time limit without anything left behind.

use std::future::Future;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use rustls::Connection;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::error::{LinkError, Stage};
use super::tls::Encryption;
use crate::link::preface::{
    EXPORTER_BYTES, EXPORTER_LABEL, Exporter, NONCE_BYTES, PREFACE_BYTES, PREFACE_FIRST_BYTE,
    PROOF_BYTES, Preface, PrefaceError, SessionToken, Side, TLS_HANDSHAKE_BYTE, Terms,
};
use crate::wire::message::Channel;

/// Limit of each stage of a connection.
pub const STAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// The kernel gives a connection up when nothing it sent was acknowledged for this long.
const USER_TIMEOUT: Duration = Duration::from_secs(15);
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const TLS_READ_BYTES: usize = 16 << 10;

/// Who this end is and what it demands.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub terms: Terms,
    /// `None`: the link is plain.
    pub encryption: Option<Encryption>,
}

impl Credentials {
    pub fn new(terms: Terms) -> Result<Rc<Self>, rustls::Error> {
        let encryption = match terms.encrypted {
            true => Some(Encryption::new()?),
            false => None,
        };
        Ok(Rc::new(Self { terms, encryption }))
    }
}

/// A connection whose other end has proved that it has the cluster key.
pub struct Trusted {
    pub stream: TcpStream,
    /// Holds whatever was received beyond the handshake.
    pub tls: Option<Connection>,
    pub channel: Channel,
    pub token: SessionToken,
}

impl std::fmt::Debug for Trusted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trusted")
            .field("channel", &self.channel)
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

/// The connector's part, on a connection that stands.
pub async fn connect(
    stream: TcpStream,
    credentials: &Credentials,
    channel: Channel,
    token: SessionToken,
) -> Result<Trusted, LinkError> {
    let terms = &credentials.terms;
    let mut talk = Talk::start(stream, credentials, Side::Connector).await?;
    let asked = terms.preface(Side::Connector, channel, token, fresh_nonce()?);
    let reply = within(Stage::Preface, async {
        talk.write(asked.bytes(), Stage::Preface).await?;
        let reply: [u8; PREFACE_BYTES] = talk.read(Stage::Preface).await?;
        Ok(terms.check_reply(&asked, &reply)?)
    })
    .await?;
    within(Stage::Proof, async {
        let exporter = talk.exporter()?;
        let proof = terms.prove(Side::Connector, &exporter, &asked, &reply);
        talk.write(&proof, Stage::Proof).await?;
        let proof: [u8; PROOF_BYTES] = talk.read(Stage::Proof).await?;
        Ok(terms.verify(Side::Acceptor, &exporter, &asked, &reply, &proof)?)
    })
    .await?;
    Ok(talk.trusted(&asked))
}

/// The acceptor's part. The connector says which channel and link it is for.
pub async fn accept(stream: TcpStream, credentials: &Credentials) -> Result<Trusted, LinkError> {
    let terms = &credentials.terms;
    within(Stage::Preface, expect_kind(&stream, terms.encrypted)).await?;
    let mut talk = Talk::start(stream, credentials, Side::Acceptor).await?;
    let (asked, reply) = within(Stage::Preface, async {
        let words: [u8; PREFACE_BYTES] = talk.read(Stage::Preface).await?;
        let asked = match terms.check(Side::Connector, &words) {
            Ok(asked) => asked,
            Err(error) => {
                talk.tell_apart(terms, error).await;
                return Err(error.into());
            }
        };
        let reply = terms.preface(Side::Acceptor, asked.channel, asked.token, fresh_nonce()?);
        talk.write(reply.bytes(), Stage::Preface).await?;
        Ok((asked, reply))
    })
    .await?;
    within(Stage::Proof, async {
        let exporter = talk.exporter()?;
        let proof: [u8; PROOF_BYTES] = talk.read(Stage::Proof).await?;
        terms.verify(Side::Connector, &exporter, &asked, &reply, &proof)?;
        let proof = terms.prove(Side::Acceptor, &exporter, &asked, &reply);
        talk.write(&proof, Stage::Proof).await
    })
    .await?;
    Ok(talk.trusted(&asked))
}

/// Gives a stage its time limit.
pub(super) async fn within<T>(
    stage: Stage,
    work: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    tokio::time::timeout(STAGE_TIMEOUT, work)
        .await
        .unwrap_or(Err(LinkError::Timeout {
            stage,
            limit: STAGE_TIMEOUT,
        }))
}

/// Unpredictable bytes from the kernel.
pub fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    use std::io::Read;
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn fresh_nonce() -> Result<[u8; NONCE_BYTES], LinkError> {
    random_bytes().map_err(|source| LinkError::BrokeDuring {
        stage: Stage::Preface,
        source,
    })
}

/// Looks at the first byte, so that a peer with the other setting of `encryption` is told apart
/// from noise.
async fn expect_kind(stream: &TcpStream, encrypted: bool) -> Result<(), LinkError> {
    let mut first = [0];
    let stage = Stage::Preface;
    match stream.peek(&mut first).await {
        Ok(0) => return Err(LinkError::ClosedDuring { stage }),
        Ok(_) => {}
        Err(source) => return Err(LinkError::broke(stage, source)),
    }
    match (first[0], encrypted) {
        (TLS_HANDSHAKE_BYTE, true) | (PREFACE_FIRST_BYTE, false) => Ok(()),
        (TLS_HANDSHAKE_BYTE, false) | (PREFACE_FIRST_BYTE, true) => {
            Err(PrefaceError::Encryption { ours: encrypted }.into())
        }
        _ => Err(PrefaceError::NotAMirror.into()),
    }
}

/// A connection before it is trusted.
struct Talk {
    stream: TcpStream,
    tls: Option<Connection>,
}

impl Talk {
    async fn start(
        stream: TcpStream,
        credentials: &Credentials,
        side: Side,
    ) -> Result<Self, LinkError> {
        let prepared = prepare(&stream);
        prepared.map_err(|source| LinkError::BrokeDuring {
            stage: Stage::Connect,
            source,
        })?;
        let tls = match &credentials.encryption {
            None => None,
            Some(encryption) => Some(encryption.connection(side).map_err(LinkError::Tls)?),
        };
        let mut talk = Self { stream, tls };
        within(Stage::Tls, talk.shake_hands()).await?;
        Ok(talk)
    }

    async fn shake_hands(&mut self) -> Result<(), LinkError> {
        while self.tls.as_ref().is_some_and(|tls| tls.is_handshaking()) {
            self.send_tls(Stage::Tls).await?;
            if self.tls.as_ref().is_some_and(|tls| tls.is_handshaking()) {
                self.receive_tls(Stage::Tls).await?;
            }
        }
        self.send_tls(Stage::Tls).await
    }

    async fn write(&mut self, bytes: &[u8], stage: Stage) -> Result<(), LinkError> {
        match &mut self.tls {
            Some(tls) => {
                use std::io::Write;
                let written = tls.writer().write_all(bytes);
                written.map_err(|source| LinkError::broke(stage, source))?;
                self.send_tls(stage).await
            }
            None => {
                let written = self.stream.write_all(bytes).await;
                written.map_err(|source| LinkError::broke(stage, source))
            }
        }
    }

    async fn read<const N: usize>(&mut self, stage: Stage) -> Result<[u8; N], LinkError> {
        let mut bytes = [0; N];
        let mut done = 0;
        while done < N {
            let read = match &mut self.tls {
                None => self.stream.read(&mut bytes[done..]).await,
                Some(tls) => {
                    use std::io::Read;
                    tls.reader().read(&mut bytes[done..])
                }
            };
            match read {
                Ok(0) => return Err(LinkError::ClosedDuring { stage }),
                Ok(read) => done += read,
                Err(error) if self.tls.is_some() && error.kind() == io::ErrorKind::WouldBlock => {
                    self.receive_tls(stage).await?;
                }
                Err(source) => return Err(LinkError::broke(stage, source)),
            }
        }
        Ok(bytes)
    }

    async fn send_tls(&mut self, stage: Stage) -> Result<(), LinkError> {
        let Some(tls) = &mut self.tls else {
            return Ok(());
        };
        let broke = |source| LinkError::broke(stage, source);
        let mut records = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut records).map_err(broke)?;
        }
        self.stream.write_all(&records).await.map_err(broke)
    }

    async fn receive_tls(&mut self, stage: Stage) -> Result<(), LinkError> {
        let broke = |source| LinkError::broke(stage, source);
        let mut records = [0; TLS_READ_BYTES];
        let read = self.stream.read(&mut records).await.map_err(broke)?;
        if read == 0 {
            return Err(LinkError::ClosedDuring { stage });
        }
        let Some(tls) = &mut self.tls else {
            return Ok(());
        };
        let mut rest = &records[..read];
        while !rest.is_empty() {
            tls.read_tls(&mut rest).map_err(broke)?;
            tls.process_new_packets().map_err(LinkError::Tls)?;
        }
        Ok(())
    }

    /// Shows a peer that was refused this end's own words, so that it can name the reason too.
    async fn tell_apart(&mut self, terms: &Terms, error: PrefaceError) {
        if error == PrefaceError::NotAMirror {
            return;
        }
        if let Ok(nonce) = fresh_nonce() {
            let token = SessionToken([0; 16]);
            let words = terms.preface(Side::Acceptor, Channel::Control, token, nonce);
            let _ = self.write(words.bytes(), Stage::Preface).await;
        }
    }

    fn exporter(&self) -> Result<Exporter, LinkError> {
        let exporter = [0; EXPORTER_BYTES];
        match &self.tls {
            None => Ok(exporter),
            Some(tls) => tls
                .export_keying_material(exporter, EXPORTER_LABEL, None)
                .map_err(LinkError::Tls),
        }
    }

    fn trusted(self, asked: &Preface) -> Trusted {
        Trusted {
            stream: self.stream,
            tls: self.tls,
            channel: asked.channel,
            token: asked.token,
        }
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(3),
    )
}
