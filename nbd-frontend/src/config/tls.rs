//! `[nbd.tls]`: the certificate, key and client CA of exports over TCP, read and checked before
//! anything starts. What is wrong with a file is a problem of the configuration that names it.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{Error, InconsistentKeys, RootCertStore};

use super::problem::{Collector, Located, Problems};
use super::section::Complaint;
use super::trust;
use crate::nbd::tls::ServerTls;

/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The section as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdTls {
    /// The server's certificate first, then those that lead to its CA.
    pub certificate_file: Located<PathBuf>,
    pub key_file: Located<PathBuf>,
    /// With it, only clients with a certificate signed by one of these are let in.
    pub client_ca_file: Option<Located<PathBuf>>,
}

impl NbdTls {
    /// Reads all files; `config` is only what problems call the file that names them.
    pub fn load(&self, config: &Path) -> Result<ServerTls, Problems> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut problems = Collector::new(config);
        let mut add = |key: &str, line: usize, complaint: Complaint| {
            let key = format!("nbd.tls {key}");
            problems.add(Some(line), key, complaint.message, complaint.remedy);
        };
        let (certificate_file, key_file) = (&self.certificate_file, &self.key_file);
        let chain = read_chain(&certificate_file.value)
            .map_err(|complaint| add("certificate_file", certificate_file.line, complaint));
        let key = read_key(&key_file.value, &provider)
            .map_err(|complaint| add("key_file", key_file.line, complaint));
        let roots = match &self.client_ca_file {
            None => Ok(None),
            Some(file) => read_roots(&file.value)
                .map(Some)
                .map_err(|complaint| add("client_ca_file", file.line, complaint)),
        };
        let identity = match (chain, key) {
            (Ok(chain), Ok(key)) => match_up(chain, key, self)
                .map_err(|complaint| add("key_file", key_file.line, complaint)),
            _ => Err(()),
        };
        let tls = match (identity, roots) {
            (Ok(identity), Ok(roots)) => {
                ServerTls::new(identity, roots, provider).map_err(|error| {
                    let message = format!("TLS cannot be set up with these files: {error}");
                    let remedy = "check what is in them, for example with `openssl x509 -text`";
                    add("", certificate_file.line, Complaint::new(message, remedy));
                })
            }
            _ => Err(()),
        };
        Problems::none_in(problems.into_vec())?;
        Ok(tls.expect("what failed is a problem"))
    }
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Complaint> {
    read_certificates(
        path,
        "write the server's certificate there in PEM form (-----BEGIN CERTIFICATE-----), then \
         those that lead from it to its CA",
    )
}

fn read_roots(path: &Path) -> Result<RootCertStore, Complaint> {
    let remedy = "write the certificate of the CA that signs the clients' certificates there in \
                  PEM form (-----BEGIN CERTIFICATE-----)";
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path, remedy)? {
        roots.add(certificate).map_err(|error| {
            let message = format!("{} cannot serve as a CA: {error}", path.display());
            Complaint::new(message, remedy)
        })?;
    }
    Ok(roots)
}

/// One certificate at least, each of them well-formed.
fn read_certificates(path: &Path, remedy: &str) -> Result<Vec<CertificateDer<'static>>, Complaint> {
    let refused = |message: String| Complaint::new(message, remedy);
    let (file, _) = open(path)?;
    let bytes = read(path, file)?;
    let certificates = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| refused(format!("{} is not valid PEM: {error}", path.display())))?;
    if certificates.is_empty() {
        let message = format!("{} holds no certificate in PEM form", path.display());
        return Err(refused(message));
    }
    for (position, certificate) in certificates.iter().enumerate() {
        ParsedCertificate::try_from(certificate).map_err(|error| {
            refused(format!(
                "certificate {} of {} is malformed: {error}",
                position + 1,
                path.display()
            ))
        })?;
    }
    Ok(certificates)
}

fn read_key(path: &Path, provider: &CryptoProvider) -> Result<Arc<dyn SigningKey>, Complaint> {
    let (file, metadata) = open(path)?;
    // The key of a server is nobody's business but the daemon's.
    trust::check_secret(path, &metadata).map_err(|exposure| {
        Complaint::new(
            format!("{} {exposure}", path.display()),
            exposure.remedy(path),
        )
    })?;
    let bytes = read(path, file)?;
    if bytes.windows(9).any(|window| window == b"ENCRYPTED") {
        return Err(Complaint::new(
            format!("{} holds a key with a passphrase", path.display()),
            "write the key there without one (`openssl pkey -in OLD -out NEW`), with mode 0600: a \
             daemon has nobody to ask for it",
        ));
    }
    let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| {
        Complaint::new(
            format!(
                "{} holds no private key in PEM form: {error}",
                path.display()
            ),
            "write the key of the server's certificate there (-----BEGIN PRIVATE KEY-----)",
        )
    })?;
    let loaded = provider.key_provider.load_private_key(key);
    loaded.map_err(|error| {
        Complaint::new(
            format!("the key in {} cannot be used: {error}", path.display()),
            "use an ECDSA (P-256 or P-384), Ed25519 or RSA (2048 bits and more) key",
        )
    })
}

/// The key must be that of the first certificate.
fn match_up(
    chain: Vec<CertificateDer<'static>>,
    key: Arc<dyn SigningKey>,
    files: &NbdTls,
) -> Result<CertifiedKey, Complaint> {
    let identity = CertifiedKey::new(chain, key);
    match identity.keys_match() {
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(identity),
        Err(_) => Err(Complaint::new(
            format!(
                "{} is not the key of the first certificate in {}",
                files.key_file.value.display(),
                files.certificate_file.value.display()
            ),
            "name the key that the certificate was made for, and put the server's own certificate \
             first in its file",
        )),
    }
}

fn open(path: &Path) -> Result<(File, Metadata), Complaint> {
    trust::open(path).map_err(|error| unreadable(path, error))
}

fn read(path: &Path, file: File) -> Result<Vec<u8>, Complaint> {
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| unreadable(path, error))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(unreadable(
            path,
            io::Error::other("it is larger than 1 MiB"),
        ));
    }
    Ok(bytes)
}

fn unreadable(path: &Path, error: io::Error) -> Complaint {
    Complaint::new(
        format!("cannot read {}: {error}", path.display()),
        "put the file there on this node, readable by the user that runs mirrord, or write where \
         it is",
    )
}

#[cfg(test)]
mod tests;
