//! A certificate authority for one test, and what it signs: PEM files under the names that libnbd and QEMU look for in
//! a folder.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

use crate::options::NbdTlsFiles;

#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn new(name: &str) -> Result<Self> {
        let mut params = named(name, &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        Ok(Self { issuer })
    }

    /// Writes `ca-cert.pem`, and certificate and key of a server that is reached under these names and addresses, to
    /// `folder`. Its clients are checked against the same authority.
    pub fn write_server(&self, folder: &Path, names: &[&str]) -> Result<NbdTlsFiles> {
        self.write_certificate(folder)?;
        self.sign(folder, "server", names, ExtendedKeyUsagePurpose::ServerAuth)?;
        Ok(NbdTlsFiles {
            certificate: folder.join("server-cert.pem"),
            key: folder.join("server-key.pem"),
            client_ca: Some(folder.join("ca-cert.pem")),
        })
    }

    /// Writes `ca-cert.pem`, and certificate and key of a client, to `folder`.
    pub fn write_client(&self, folder: &Path) -> Result<()> {
        self.write_certificate(folder)?;
        self.sign(folder, "client", &[], ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// Writes `ca-cert.pem` alone to `folder`, which is made if need be.
    pub fn write_certificate(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        write(
            &folder.join("ca-cert.pem"),
            "CERTIFICATE",
            self.issuer.der(),
        )
    }

    fn sign(
        &self,
        folder: &Path,
        role: &str,
        names: &[&str],
        purpose: ExtendedKeyUsagePurpose,
    ) -> Result<()> {
        let mut params = named(role, names)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.extended_key_usages = vec![purpose];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        write(
            &folder.join(format!("{role}-cert.pem")),
            "CERTIFICATE",
            certificate.der(),
        )?;
        write(
            &folder.join(format!("{role}-key.pem")),
            "PRIVATE KEY",
            key.serialized_der(),
        )
    }
}

fn named(name: &str, alternatives: &[&str]) -> Result<CertificateParams> {
    let alternatives: Vec<String> = alternatives.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(alternatives)?;
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

fn write(path: &Path, label: &str, bytes: &[u8]) -> Result<()> {
    // Replaced, never written over: a file that is there may have another mode.
    let _ = fs::remove_file(path);
    let mut file = fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot make {}", path.display()))?;
    file.write_all(pem(label, bytes).as_bytes())?;
    Ok(())
}

/// The text form of RFC 7468: base64 in lines of 64 characters.
fn pem(label: &str, bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in bytes.chunks(48) {
        for group in line.chunks(3) {
            let mut word = [0; 4];
            word[1..=group.len()].copy_from_slice(group);
            let word = u32::from_be_bytes(word);
            for digit in 0..4 {
                let value = word >> (18 - 6 * digit) & 0x3f;
                let filled = digit <= group.len();
                text.push(if filled {
                    DIGITS[value as usize] as char
                } else {
                    '='
                });
            }
        }
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}
