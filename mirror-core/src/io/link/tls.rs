//! TLS 1.3 for the replication link. Certificates carry no trust: each start makes its own and any is
//! accepted, because the proof of the cluster key over the exporter (`link::preface`) authenticates
//! the connection, both ends of it.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, Connection, DigitallySignedStruct, Error};
use rustls::{ServerConfig, ServerConnection, SignatureScheme, SupportedCipherSuite};

use crate::link::preface::Side;

/// The connector's first that both have. A key of 128 bits is as far out of reach as one of 256, and its AES has ten
/// rounds instead of fourteen: all data goes through it, on each side.
const CIPHER_SUITES: [SupportedCipherSuite; 3] = [
    TLS13_AES_128_GCM_SHA256,
    TLS13_AES_256_GCM_SHA384,
    TLS13_CHACHA20_POLY1305_SHA256,
];

/// What is needed to open TLS connections, in either direction.
#[derive(Debug, Clone)]
pub struct Encryption {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Encryption {
    /// Makes a key pair and a certificate for this run.
    pub fn new() -> Result<Self, Error> {
        let provider = Arc::new(CryptoProvider {
            cipher_suites: CIPHER_SUITES.to_vec(),
            ..rustls::crypto::ring::default_provider()
        });
        let made = rcgen::generate_simple_self_signed(["mirror.invalid".to_owned()])
            .map_err(|error| Error::General(error.to_string()))?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())
            .map_err(|reason| Error::General(reason.to_owned()))?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)?;
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate { provider }))
            .with_no_client_auth();
        client.enable_sni = false;
        client.resumption = rustls::client::Resumption::disabled();
        Ok(Self {
            client: Arc::new(client),
            server: Arc::new(server),
        })
    }

    /// One end of a new connection.
    pub fn connection(&self, side: Side) -> Result<Connection, Error> {
        let mut connection = match side {
            Side::Connector => {
                let name = ServerName::try_from("mirror.invalid").expect("the name is well-formed");
                Connection::from(ClientConnection::new(Arc::clone(&self.client), name)?)
            }
            Side::Acceptor => Connection::from(ServerConnection::new(Arc::clone(&self.server))?),
        };
        // The writer hands over at most one batch at a time and sends it before the next.
        connection.set_buffer_limit(None);
        Ok(connection)
    }
}

/// Checks that the other end has the key to its certificate, and nothing else about it.
#[derive(Debug)]
struct AnyCertificate {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass_on(from: &mut Connection, to: &mut Connection) {
        let mut records = Vec::new();
        while from.wants_write() {
            from.write_tls(&mut records).unwrap();
        }
        let mut rest = &records[..];
        while !rest.is_empty() {
            to.read_tls(&mut rest).unwrap();
            to.process_new_packets().unwrap();
        }
    }

    #[test]
    fn two_of_us_agree_on_the_fastest_cipher() {
        let [mut connector, mut acceptor] = [Side::Connector, Side::Acceptor]
            .map(|side| Encryption::new().unwrap().connection(side).unwrap());
        while connector.is_handshaking() || acceptor.is_handshaking() {
            pass_on(&mut connector, &mut acceptor);
            pass_on(&mut acceptor, &mut connector);
        }
        for end in [&connector, &acceptor] {
            let agreed = end.negotiated_cipher_suite().map(|suite| suite.suite());
            assert_eq!(agreed, Some(CIPHER_SUITES[0].suite()));
        }
    }
}
