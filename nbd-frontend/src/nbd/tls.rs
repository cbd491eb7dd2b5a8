//! What TLS on TCP exports is made of: who this server is, and which clients it lets in.
//!
//! TLS 1.3 only: every NBD client that verifies certificates speaks it. Sessions are never resumed,
//! so that a client shows its certificate on each connection.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{Error, RootCertStore, ServerConfig, ServerConnection};

/// Ready to open TLS on any number of connections. Clones share it.
#[derive(Debug, Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
}

impl ServerTls {
    /// With `client_roots`, a client has to present a certificate that leads to one of them.
    pub fn new(
        identity: CertifiedKey,
        client_roots: Option<RootCertStore>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, Error> {
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?;
        let builder = match client_roots {
            None => builder.with_no_client_auth(),
            Some(roots) => {
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build()
                        .map_err(|error| Error::General(error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(identity)));
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self {
            config: Arc::new(config),
        })
    }

    pub(super) fn connection(&self) -> Result<ServerConnection, Error> {
        ServerConnection::new(Arc::clone(&self.config))
    }
}

/// What an operator can do about a handshake that failed.
pub(super) fn next_step(error: &Error) -> &'static str {
    match error {
        Error::NoCertificatesPresented => {
            "give the client a certificate signed by the client CA of [nbd.tls]"
        }
        Error::InvalidCertificate(_) => {
            "give the client a valid certificate signed by the client CA of [nbd.tls]"
        }
        Error::AlertReceived(_) => {
            "the client's own message says more; mostly it does not trust the server's \
             certificate, or reaches the server under a name that is not in it"
        }
        Error::PeerIncompatible(_) => "use a client that speaks TLS 1.3",
        _ => "check that the client speaks TLS 1.3 after STARTTLS",
    }
}
