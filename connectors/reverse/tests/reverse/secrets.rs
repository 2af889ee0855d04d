//! Secret Manager, against a server in this process.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use anabranch_core::{ErrorKind, Secret};
use anabranch_reverse::{SecretManager, Token};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

type Seen = Arc<Mutex<Vec<String>>>;

/// A server of secrets, tokens and metadata; it keeps what it was asked.
async fn server() -> (String, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let seen = Seen::default();
    let kept = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let kept = Arc::clone(&kept);
            tokio::spawn(async move {
                let answer = service_fn(move |request| answer(request, Arc::clone(&kept)));
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    });
    (address, seen)
}

async fn answer(request: Request<Incoming>, seen: Seen) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let header = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let bearer = header("authorization");
    seen.lock().unwrap().push(format!("{} {} {}", parts.method, parts.uri.path(), String::from_utf8_lossy(&body)));
    let (status, text) = match parts.uri.path() {
        "/v1/projects/p/secrets/s/versions/latest:access" if bearer == "Bearer good" => {
            (200, r#"{"name":"projects/1/secrets/s/versions/3","payload":{"data":"aHVudGVyMgo="}}"#)
        }
        "/v1/projects/p/secrets/odd/versions/1:access" => (200, "{}"),
        "/v1/projects/p/secrets/busy/versions/1:access" => (503, ""),
        "/v1/projects/p/secrets/mine/versions/1:access" => (403, "hunter2"),
        path if path.starts_with("/v1/") && bearer == "Bearer good" => (404, ""),
        path if path.starts_with("/v1/") => (401, ""),
        "/computeMetadata/v1/instance/service-accounts/default/token" if header("metadata-flavor") == "Google" => {
            (200, r#"{"access_token":"good","expires_in":3599,"token_type":"Bearer"}"#)
        }
        "/token" => (200, r#"{"access_token":"good"}"#),
        _ => (400, ""),
    };
    let response = Response::builder().status(status).body(Full::new(Bytes::from_static(text.as_bytes()))).unwrap();
    Ok(response)
}

fn exposed(secret: &Secret) -> String {
    secret.resolve("test").unwrap().expose().to_owned()
}

#[tokio::test]
async fn a_secret_is_read_with_each_kind_of_token() {
    let (address, _) = server().await;
    let manager = SecretManager::new().endpoint(format!("http://{address}/"));
    let name = "projects/p/secrets/s/versions/latest";
    for token in [Token::given("good"), Token::metadata(Some(address.clone()))] {
        let secret = manager.clone().token(token).access(name).await.unwrap();
        assert_eq!(exposed(&secret), "hunter2", "without the line end");
    }
}

#[tokio::test]
async fn a_service_account_signs_for_its_token() {
    let (address, seen) = server().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.json");
    // No key in the tree: one is made where openssl is there.
    let made = std::process::Command::new("openssl")
        .args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
        .output();
    let Some(key) = made.ok().filter(|o| o.status.success()).and_then(|o| String::from_utf8(o.stdout).ok()) else {
        eprintln!("skipped: openssl is not there to make a key");
        return;
    };
    let file = format!(
        r#"{{"type":"service_account","client_email":"me@p.iam","private_key":{key:?},"token_uri":"http://{address}/token"}}"#
    );
    std::fs::write(&path, file).unwrap();
    let manager = SecretManager::new().endpoint(format!("http://{address}")).token(Token::service_account(&path));
    let secret = manager.access("projects/p/secrets/s/versions/latest").await.unwrap();
    assert_eq!(exposed(&secret), "hunter2");
    let asked = seen.lock().unwrap()[0].clone();
    assert!(
        asked.starts_with("POST /token grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer"),
        "{asked}"
    );
    // Three parts, of which the last is a signature of 2048 bits.
    let assertion = asked.split_once("assertion=").unwrap().1;
    let parts: Vec<&str> = assertion.split('.').collect();
    assert_eq!((parts.len(), parts[2].len()), (3, 342), "{assertion}");

    std::fs::write(&path, "{}").unwrap();
    let error = manager.access("projects/p/secrets/s/versions/latest").await.unwrap_err();
    assert!(error.report().contains("key.json") && error.kind() == ErrorKind::Config, "{}", error.report());
}

#[tokio::test]
async fn every_refusal_says_what_to_do_and_shows_no_secret() {
    let (address, _) = server().await;
    let manager = SecretManager::new().endpoint(format!("http://{address}"));
    let good = manager.clone().token(Token::given("good"));
    for (manager, name, kind, says) in [
        (&good, "projects/p/secrets/none/versions/1", ErrorKind::Config, "no such secret"),
        (&good, "projects/p/secrets/mine/versions/1", ErrorKind::Config, "secretAccessor"),
        (&good, "projects/p/secrets/busy/versions/1", ErrorKind::Transient, "status 503"),
        (&good, "projects/p/secrets/odd/versions/1", ErrorKind::Transient, "not what it should be"),
        (
            &manager.clone().token(Token::given("bad")),
            "projects/p/secrets/s/versions/latest",
            ErrorKind::Config,
            "does not know the token",
        ),
        (
            &manager.clone().token(Token::given("a\nb")),
            "projects/p/secrets/s/versions/latest",
            ErrorKind::Config,
            "no header takes",
        ),
        (
            &SecretManager::new().endpoint("http://127.0.0.1:1").token(Token::given("x")),
            "projects/p/secrets/s/versions/1",
            ErrorKind::Transient,
            "no connection to 127.0.0.1:1",
        ),
    ] {
        let error = manager.access(name).await.unwrap_err();
        let report = error.report();
        assert_eq!(error.kind(), kind, "{report}");
        assert!(report.contains(says) && report.contains(name) && !report.contains("hunter2"), "{report}");
    }
}
