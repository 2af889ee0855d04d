//! One call over HTTP/1.1 and TLS: all that a secret takes.

use std::sync::Arc;
use std::time::Duration;

use anabranch_core::{Error, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use url::Url;

/// How long a call may take. Secret Manager answers within a second.
const DEADLINE: Duration = Duration::from_secs(20);

/// A secret has at most 64 KiB (its quotas); in base64 and JSON it is below this.
const MAX_BODY: usize = 256 << 10;

pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Bytes,
}

pub(super) async fn get(url: &str, headers: &[(&str, &str)]) -> Result<Answer> {
    let mut request = Request::get(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    call(url, request.body(Full::default())).await
}

pub(super) async fn post_form(url: &str, form: &[(&str, &str)]) -> Result<Answer> {
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
    let request = Request::post(url).header("content-type", "application/x-www-form-urlencoded");
    call(url, request.body(Full::new(body.into()))).await
}

async fn call(url: &str, request: Result<Request<Full<Bytes>>, http::Error>) -> Result<Answer> {
    let wrong = |problem: &str| Error::config("sink.secret_manager_endpoint", format!("{url}: {problem}"));
    let parsed = Url::parse(url).map_err(|_| wrong("is no address"))?;
    let host = parsed.host_str().ok_or_else(|| wrong("names no host"))?.to_owned();
    let port = parsed.port_or_known_default().ok_or_else(|| wrong("has no port"))?;
    // A header that cannot be sent: a token with a line end in it.
    let mut request = request.map_err(|_| wrong("the token, or the address, has a letter that no header takes"))?;
    let authority = parsed.port().map_or_else(|| host.clone(), |port| format!("{host}:{port}"));
    let value = http::HeaderValue::from_str(&authority).map_err(|_| wrong("names no host"))?;
    request.headers_mut().insert(http::header::HOST, value);
    // Only the path goes into the request line: the host is in its header.
    let path = parsed[url::Position::BeforePath..url::Position::AfterQuery].to_owned();
    *request.uri_mut() = path.parse().map_err(|_| wrong("is no address"))?;
    let work = async {
        let tcp = TcpStream::connect((host.as_str(), port)).await;
        let tcp = tcp.map_err(|e| Error::transient(format!("no connection to {host}:{port}")).because(e))?;
        match parsed.scheme() {
            "https" => {
                let name = ServerName::try_from(host.clone()).map_err(|_| wrong("names no host"))?;
                let tls = TlsConnector::from(Arc::new(tls()?)).connect(name, tcp).await;
                let tls =
                    tls.map_err(|e| Error::transient(format!("the TLS handshake with {host} failed")).because(e))?;
                exchange(tls, request).await
            }
            "http" => exchange(tcp, request).await,
            _ => Err(wrong("must begin with https://")),
        }
    };
    timeout(DEADLINE, work).await.unwrap_or_else(|_| Err(Error::transient(format!("{host} does not answer"))))
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Answer>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let lost = |e: hyper::Error| Error::transient("the connection was lost").because(e);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(lost)?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
        let body = body.map_err(|_| Error::transient("the answer is too long, or was cut off"))?.to_bytes();
        Ok(Answer { status, body })
    };
    tokio::pin!(connection);
    tokio::pin!(exchange);
    let mut ended = false;
    loop {
        tokio::select! {
            biased;
            // 1. The answer.
            answer = &mut exchange => return answer,
            // 2. The connection, which moves the bytes; its end may come before the answer is read.
            _ = &mut connection, if !ended => ended = true,
        }
    }
}

/// The machine's certificate authorities, and ring: another provider may be compiled in too.
fn tls() -> Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::fatal("no version of TLS").because(e))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
