//! TLS as libpq's `sslmode` describes it, over rustls.

use std::path::Path;
use std::sync::Arc;

use anabranch_core::{Error, Result};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

/// What to demand of the connection (libpq's manual, "SSL Mode Descriptions").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SslMode {
    /// No TLS.
    Disable,
    /// TLS if the server has it, without looking at its certificate.
    Prefer,
    /// TLS. The certificate is checked only if `sslrootcert` is given, as libpq does.
    Require,
    /// TLS, with a certificate that a known authority signed.
    VerifyCa,
    /// As [`SslMode::VerifyCa`], and issued for the host that we asked for.
    VerifyFull,
}

impl SslMode {
    pub(crate) fn parse(key: &str, text: &str) -> Result<Self> {
        Ok(match text {
            "disable" => Self::Disable,
            "allow" | "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            other => {
                return Err(Error::config(key, format!("sslmode={other} is unknown"))
                    .hint("one of disable, prefer, require, verify-ca, verify-full"));
            }
        })
    }
}

/// The files that the URL names.
#[derive(Debug, Clone, Default)]
pub(crate) struct TlsFiles {
    /// Certificates of authorities. `None` or `system`: the machine's.
    pub(crate) root: Option<String>,
    /// Our certificate and its chain.
    pub(crate) certificate: Option<String>,
    /// Its key.
    pub(crate) key: Option<String>,
}

/// The rustls configuration for `mode`; `None` for [`SslMode::Disable`].
pub(crate) fn client_config(key: &str, mode: SslMode, files: &TlsFiles) -> Result<Option<Arc<ClientConfig>>> {
    let provider = Arc::new(ring::default_provider());
    let verify = match mode {
        SslMode::Disable => return Ok(None),
        SslMode::Prefer => None,
        SslMode::Require if files.root.is_none() => None,
        // "If a root CA file exists, require behaves as verify-ca": libpq's manual.
        SslMode::Require | SslMode::VerifyCa => Some(false),
        SslMode::VerifyFull => Some(true),
    };
    let verifier: Arc<dyn ServerCertVerifier> = match verify {
        None => Arc::new(Unverified { provider: Arc::clone(&provider) }),
        Some(name_too) => {
            let roots = roots(key, files.root.as_deref())?;
            let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .map_err(|e| Error::config(key, "the authorities' certificates cannot be used").because(e))?;
            if name_too { inner } else { Arc::new(AnyName { inner }) }
        }
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::config(key, "TLS cannot be set up").because(e))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match (&files.certificate, &files.key) {
        (None, None) => builder.with_no_client_auth(),
        (Some(certificate), Some(private)) => builder
            .with_client_auth_cert(certificates(key, "sslcert", certificate)?, private_key(key, private)?)
            .map_err(|e| Error::config(key, "sslcert and sslkey do not fit together").because(e))?,
        _ => return Err(Error::config(key, "sslcert and sslkey go together").hint("give both, or neither")),
    };
    Ok(Some(Arc::new(config)))
}

fn roots(key: &str, file: Option<&str>) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    match file {
        None | Some("system") => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                return Err(Error::config(key, "this machine has no certificate authorities to check the server with")
                    .hint("install ca-certificates, or name the server's authority: sslrootcert=FILE"));
            }
        }
        Some(file) => {
            for certificate in certificates(key, "sslrootcert", file)? {
                roots
                    .add(certificate)
                    .map_err(|e| Error::config(key, format!("sslrootcert: {file} cannot be used")).because(e))?;
            }
        }
    }
    Ok(roots)
}

fn certificates(key: &str, name: &str, file: &str) -> Result<Vec<CertificateDer<'static>>> {
    let unreadable = |e| Error::config(key, format!("{name}: cannot read certificates from {file}")).because(e);
    let found: Vec<_> = CertificateDer::pem_file_iter(Path::new(file))
        .map_err(unreadable)?
        .collect::<Result<_, _>>()
        .map_err(unreadable)?;
    if found.is_empty() {
        return Err(Error::config(key, format!("{name}: {file} holds no PEM certificate")));
    }
    Ok(found)
}

fn private_key(key: &str, file: &str) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(Path::new(file))
        .map_err(|e| Error::config(key, format!("sslkey: cannot read an unencrypted key from {file}")).because(e))
}

/// Accepts any certificate, but not a handshake that its key did not sign: `prefer` and `require`
/// protect from listeners only, as libpq documents.
#[derive(Debug)]
struct Unverified {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Checks the chain, and lets the name differ: `verify-ca`.
#[derive(Debug)]
struct AnyName {
    inner: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp, now) {
            // The name is looked at last: with this error, the chain was good.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
