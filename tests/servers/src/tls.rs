//! Certificates for a server's TLS, made by the `openssl` program.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::account;
use crate::error::{Error, Result};

/// Names in the server's certificate.
const SERVER_NAMES: &str = "subjectAltName=DNS:localhost,IP:127.0.0.1";

/// PEM files of a certificate authority of its own, a server and a client.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The authority's certificate: what a client trusts.
    pub ca: PathBuf,
    /// The server's certificate, for `localhost` and `127.0.0.1`.
    pub server_cert: PathBuf,
    /// The server's key.
    pub server_key: PathBuf,
    /// A client's certificate, for the user `postgres`.
    pub client_cert: PathBuf,
    /// The client's key (PKCS #8).
    pub client_key: PathBuf,
    /// The certificate of another authority, that has signed nothing here.
    pub other_ca: PathBuf,
}

impl TlsFiles {
    /// Makes all of them in `folder`.
    pub(crate) fn make(folder: &Path) -> Result<Self> {
        authority(folder, "ca")?;
        authority(folder, "other-ca")?;
        signed(folder, "server", "localhost", SERVER_NAMES)?;
        signed(folder, "client", "postgres", "extendedKeyUsage=clientAuth")?;
        let file = |name: &str| folder.join(name);
        let files = Self {
            ca: file("ca.crt"),
            server_cert: file("server.crt"),
            server_key: file("server.key"),
            client_cert: file("client.crt"),
            client_key: file("client.key"),
            other_ca: file("other-ca.crt"),
        };
        for path in [&files.ca, &files.server_cert, &files.server_key] {
            account::give(path)?;
        }
        Ok(files)
    }
}

fn authority(folder: &Path, name: &str) -> Result<()> {
    let subject = format!("/CN=anabranch test {name}");
    let (key, crt) = (format!("{name}.key"), format!("{name}.crt"));
    openssl(folder, &[&["req", "-x509", "-subj", &subject, "-keyout", &key, "-out", &crt], NEW_KEY].concat())
}

fn signed(folder: &Path, name: &str, subject: &str, extension: &str) -> Result<()> {
    let subject = format!("/CN={subject}");
    let (key, csr, crt, ext) =
        (format!("{name}.key"), format!("{name}.csr"), format!("{name}.crt"), format!("{name}.ext"));
    openssl(folder, &[&["req", "-subj", &subject, "-keyout", &key, "-out", &csr], NEW_KEY].concat())?;
    fs::write(folder.join(&ext), extension).map_err(Error::io("writing a certificate's extension"))?;
    #[rustfmt::skip]
    let sign = ["x509", "-req", "-in", &csr, "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
        "-days", "30", "-extfile", &ext, "-out", &crt];
    openssl(folder, &sign)?;
    let mode = fs::Permissions::from_mode(0o600);
    fs::set_permissions(folder.join(&key), mode).map_err(Error::io("closing a key file"))
}

/// A new elliptic key without a passphrase, in PKCS #8.
const NEW_KEY: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30"];

fn openssl(folder: &Path, arguments: &[&str]) -> Result<()> {
    let out = Command::new("openssl").args(arguments).current_dir(folder).output().map_err(Error::io("openssl"))?;
    if out.status.success() {
        return Ok(());
    }
    let output = String::from_utf8_lossy(&out.stderr).into_owned();
    Err(Error::Program { program: "openssl".into(), output })
}
