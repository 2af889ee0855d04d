//! The same on object storage: against a server in this process that speaks the part of the S3 and
//! Google Cloud Storage protocols that is used, and that fails and loses answers when it is told to.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};

use anabranch_core::{ErrorKind, ProgressStore};
use anabranch_files::{FilesCheckpointer, FilesDeadLetters, Location, Processed, WindowFiles};
use anabranch_testkit::conformance;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::support::*;

/// Names in one answer to a listing: few, so that there are several.
const PAGE: usize = 3;

#[derive(Default)]
struct Server {
    objects: Mutex<Objects>,
}

#[derive(Default)]
struct Objects {
    stored: BTreeMap<String, Stored>,
    generation: u64,
    requests: u64,
    /// Of so many requests one is refused before anything happens.
    refuse: Option<u64>,
    /// Of so many writes one is made, and its answer lost.
    lose: Option<u64>,
    writes: u64,
}

#[derive(Clone)]
struct Stored {
    content: Bytes,
    generation: u64,
}

impl Stored {
    /// As S3 does: of the content.
    fn etag(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.content.hash(&mut hasher);
        format!("\"{:x}\"", hasher.finish())
    }
}

/// Starts a server; gives it and its address.
async fn start() -> (Arc<Server>, String) {
    let server = Arc::new(Server::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let shared = Arc::clone(&server);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let server = Arc::clone(&shared);
            let answer = service_fn(move |request| {
                let server = Arc::clone(&server);
                async move { Ok::<_, Infallible>(server.answer(request).await) }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    });
    (server, address)
}

fn s3(address: &str) -> Location {
    Location::new("s3://bucket/orders")
        .option("endpoint", address)
        .option("allow_http", "true")
        .option("region", "eu-central-1")
        .option("access_key_id", "me")
        .option("secret_access_key", "hunter2")
}

fn gs(address: &str) -> Location {
    Location::new("gs://bucket/orders")
        .option("base_url", address)
        .option("allow_http", "true")
        .option("bearer_token", "hunter2")
}

impl Server {
    fn set(&self, change: impl FnOnce(&mut Objects)) {
        change(&mut self.objects.lock().unwrap());
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (parts, body) = request.into_parts();
        let Ok(body) = body.collect().await.map(|b| b.to_bytes()) else { return status(StatusCode::BAD_REQUEST) };
        let path = decoded(parts.uri.path());
        let path = path.trim_start_matches('/');
        let Some(key) = path.strip_prefix("bucket") else { return error(StatusCode::NOT_FOUND, "NoSuchBucket") };
        let key = key.trim_start_matches('/').to_owned();
        let query: BTreeMap<String, String> = parts
            .uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter(|p| !p.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(k, v)| (k.to_owned(), decoded(&v.replace('+', " "))))
            .collect();
        let mut objects = self.objects.lock().unwrap();
        objects.requests += 1;
        if objects.refuse.is_some_and(|n| objects.requests.is_multiple_of(n)) {
            return status(StatusCode::SERVICE_UNAVAILABLE);
        }
        match parts.method {
            Method::GET if query.contains_key("list-type") => objects.list(&query),
            Method::GET | Method::HEAD => objects.get(&key, &parts.headers),
            Method::PUT => {
                let answer = objects.put(&key, &parts.headers, body);
                objects.writes += 1;
                match objects.lose {
                    Some(n) if objects.writes.is_multiple_of(n) => status(StatusCode::INTERNAL_SERVER_ERROR),
                    _ => answer,
                }
            }
            Method::DELETE => match objects.stored.remove(&key) {
                Some(_) => status(StatusCode::NO_CONTENT),
                None => error(StatusCode::NOT_FOUND, "NoSuchKey"),
            },
            Method::POST if query.contains_key("delete") => objects.delete_many(&String::from_utf8_lossy(&body)),
            _ => status(StatusCode::METHOD_NOT_ALLOWED),
        }
    }
}

impl Objects {
    fn put(&mut self, key: &str, headers: &HeaderMap, content: Bytes) -> Response<Full<Bytes>> {
        let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
        let found = self.stored.get(key);
        let refused = match (header("if-none-match"), header("if-match"), header("x-goog-if-generation-match")) {
            (Some(_), ..) => found.is_some(),
            (_, Some(etag), _) => found.is_none_or(|f| f.etag() != etag),
            (.., Some(generation)) => found.map_or(0, |f| f.generation).to_string() != generation,
            _ => false,
        };
        if refused {
            return error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
        }
        self.generation += 1;
        let source = header("x-amz-copy-source").or(header("x-goog-copy-source"));
        let copied = source.map(|s| decoded(s).trim_start_matches('/').trim_start_matches("bucket/").to_owned());
        let content = match &copied {
            Some(from) => match self.stored.get(from) {
                Some(from) => from.content.clone(),
                None => return error(StatusCode::NOT_FOUND, "NoSuchKey"),
            },
            None => content,
        };
        let stored = Stored { content, generation: self.generation };
        let body = copied.map(|_| {
            let etag = stored.etag();
            format!("<CopyObjectResult><ETag>{etag}</ETag><LastModified>2026-11-21T00:00:00.000Z</LastModified></CopyObjectResult>")
        });
        let answer = Response::builder()
            .header("etag", stored.etag())
            .header("x-goog-generation", stored.generation)
            .body(Full::from(body.unwrap_or_default()));
        self.stored.insert(key.to_owned(), stored);
        answer.unwrap()
    }

    fn get(&self, key: &str, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let Some(found) = self.stored.get(key) else { return error(StatusCode::NOT_FOUND, "NoSuchKey") };
        let size = found.content.len();
        let range = headers.get("range").and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("bytes="));
        let range =
            range.and_then(|r| r.split_once('-')).map(|(a, b)| (a.parse().unwrap(), b.parse::<usize>().unwrap()));
        let mut answer = Response::builder()
            .header("etag", found.etag())
            .header("x-goog-generation", found.generation)
            .header("last-modified", "Sat, 21 Nov 2026 08:52:00 GMT");
        let content = match range {
            Some((start, _)) if start >= size => return status(StatusCode::RANGE_NOT_SATISFIABLE),
            Some((start, end)) => {
                let end = (end + 1).min(size);
                answer = answer
                    .status(StatusCode::PARTIAL_CONTENT)
                    .header("content-range", format!("bytes {start}-{}/{size}", end - 1));
                found.content.slice(start..end)
            }
            None => found.content.clone(),
        };
        answer.body(Full::from(content)).unwrap()
    }

    fn list(&self, query: &BTreeMap<String, String>) -> Response<Full<Bytes>> {
        let get = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
        let after = get("start-after").max(get("continuation-token"));
        let keys: Vec<_> =
            self.stored.iter().filter(|(k, _)| k.starts_with(get("prefix")) && k.as_str() > after).collect();
        let more = keys.len() > PAGE;
        let mut xml = format!("<ListBucketResult><IsTruncated>{more}</IsTruncated>");
        for (key, stored) in keys.iter().take(PAGE) {
            let (key, size, etag) = (key.replace('&', "&amp;"), stored.content.len(), stored.etag());
            write!(xml, "<Contents><Key>{key}</Key><LastModified>2026-11-21T00:00:00.000Z</LastModified><ETag>{etag}</ETag><Size>{size}</Size></Contents>").unwrap();
        }
        if more {
            write!(xml, "<NextContinuationToken>{}</NextContinuationToken>", keys[PAGE - 1].0).unwrap();
        }
        xml.push_str("</ListBucketResult>");
        Response::new(Full::from(xml))
    }

    fn delete_many(&mut self, xml: &str) -> Response<Full<Bytes>> {
        let mut answer = "<DeleteResult>".to_owned();
        for key in xml.split("<Key>").skip(1).filter_map(|rest| rest.split_once("</Key>")).map(|(key, _)| key) {
            self.stored.remove(key);
            write!(answer, "<Deleted><Key>{key}</Key></Deleted>").unwrap();
        }
        answer.push_str("</DeleteResult>");
        Response::new(Full::from(answer))
    }
}

fn status(status: StatusCode) -> Response<Full<Bytes>> {
    Response::builder().status(status).body(Full::default()).unwrap()
}

fn error(status: StatusCode, code: &str) -> Response<Full<Bytes>> {
    let xml = format!("<Error><Code>{code}</Code><Message>no</Message></Error>");
    Response::builder().status(status).body(Full::from(xml)).unwrap()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        if *first == b'%' {
            bytes.push(u8::from_str_radix(std::str::from_utf8(&after[..2]).unwrap(), 16).unwrap());
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// Each test on both.
async fn on_both(test: impl AsyncFn(Arc<Server>, Location)) {
    let (server, address) = start().await;
    test(server, s3(&address)).await;
    let (server, address) = start().await;
    test(server, gs(&address)).await;
}

#[tokio::test]
async fn checkpointer() {
    on_both(async |_, place| {
        conformance::checkpointer::run(async || Arc::new(FilesCheckpointer::new(place.clone())) as _).await;
    })
    .await;
}

/// A write that is made again because its answer was lost is recognised, and is no conflict.
#[tokio::test]
async fn checkpointer_over_a_bad_network() {
    on_both(async |server, place| {
        server.set(|s| (s.refuse, s.lose) = (Some(7), Some(3)));
        conformance::checkpointer::run(async || Arc::new(FilesCheckpointer::new(place.clone())) as _).await;
    })
    .await;
}

#[tokio::test]
async fn dead_letters() {
    on_both(async |server, place| {
        conformance::dead_letter::run(async || Arc::new(FilesDeadLetters::new(place.clone())) as _).await;
        server.set(|s| {
            assert!(s.stored.keys().any(|k| k.starts_with("orders/conformance-full/severe/2023/11/14/22/13/")));
        });
    })
    .await;
}

#[tokio::test]
async fn window_files() {
    on_both(async |server, place| {
        let files = WindowFiles::new(place.clone()).run("r").max_file(300);
        let mut run = Run::begin(&files, 1).await;
        for n in 1..=8u64 {
            // Every now and then an answer is lost.
            server.set(|s| (s.refuse, s.lose) = if n % 2 == 0 { (Some(5), Some(2)) } else { (None, None) });
            run.write(&[tx(n, 4 * n as i64, &[(n as i64, Some("eu")), (100 + n as i64, Some("us"))])]).await;
        }
        run.safe_time(second(60)).await;
        server.set(|s| s.lose = None);
        let source = files.source().processed(Processed::Delete);
        for (shard, first) in [("eu", 1), ("us", 101)] {
            let mut reader = open(&source, shard, None).await;
            let (all, end) = read(&mut *reader, 8).await;
            assert_eq!(ids(&all), (first..first + 8).collect::<Vec<_>>());
            reader.acknowledge(Some(&end)).await.unwrap();
            let left = |s: &mut Objects| {
                let files =
                    s.stored.keys().filter(|k| k.starts_with(&format!("orders/r/{shard}/")) && k.ends_with(".jsonl"));
                assert_eq!(files.count(), 0);
            };
            server.set(left);
        }
        // As another process has it; the old one is fenced, and changes nothing.
        let mut new = Run::begin(&WindowFiles::new(place).run("r").max_file(300), 2).await;
        new.write(&[tx(9, 40, &[(9, Some("eu"))])]).await;
        let _ = run.writer.write(&unit(&[tx(9, 40, &[(-9, Some("eu"))])])).await.unwrap();
        let error = run.writer.flush().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Fenced, "{}", error.report());
    })
    .await;
}

#[tokio::test]
async fn moved_files() {
    on_both(async |server, place| {
        let files = WindowFiles::new(place).run("r");
        let mut run = Run::begin(&files, 1).await;
        run.write(&[tx(1, 1, &[(1, None)])]).await;
        let mut reader = open(&files.source().processed(Processed::Move), "_unsharded", None).await;
        let (_, end) = read(&mut *reader, 1).await;
        reader.acknowledge(Some(&end)).await.unwrap();
        server.set(|s| {
            let names: Vec<_> = s.stored.keys().filter(|k| k.ends_with(".jsonl")).cloned().collect();
            assert_eq!(names, ["orders/r/_unsharded/_processed/20231114T221320.000000Z-20231114T221330.000000Z.jsonl"]);
        });
    })
    .await;
}

#[tokio::test]
async fn a_missing_bucket_names_the_key() {
    let (_, address) = start().await;
    let cases = [("s3://other/x", "endpoint", "skip_signature"), ("gs://other/x", "base_url", "bearer_token")];
    for (url, endpoint, credentials) in cases {
        let place = Location::new(url).option(endpoint, address.as_str());
        let place = place.option("allow_http", "true").option(credentials, "true");
        let error = WindowFiles::new(place).take_over(&claim(1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{}", error.report());
        assert!(error.report().contains("sink.path"), "{}", error.report());
    }
}
