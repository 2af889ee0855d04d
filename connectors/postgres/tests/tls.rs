//! TLS as libpq's sslmode describes it, for statements and for replication, against a real server.

mod support;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anabranch_core::*;
use anabranch_postgres::Postgres;
use anabranch_servers::{PgOptions, TlsFiles};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use support::{PgServer, PgVersion, append, start};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

fn openssl(folder: &Path, arguments: &str) {
    let out = Command::new("openssl").args(arguments.split_whitespace()).current_dir(folder).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

const NEW_KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30";

/// An authority, another one that signed nothing, a server for `names`, and a client named postgres.
fn certificates(folder: &Path, names: &str) {
    for ca in ["ca", "other"] {
        openssl(folder, &format!("req -x509 -subj /CN=test-{ca} -keyout {ca}.key -out {ca}.crt {NEW_KEY}"));
    }
    for (name, subject, extension) in
        [("server", "server", names), ("client", "postgres", "extendedKeyUsage=clientAuth")]
    {
        openssl(folder, &format!("req -subj /CN={subject} -keyout {name}.key -out {name}.csr {NEW_KEY}"));
        std::fs::write(folder.join("ext"), extension).unwrap();
        openssl(
            folder,
            &format!(
                "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile ext -out {name}.crt"
            ),
        );
    }
}

async fn outcome(server: &PgServer, options: &str) -> Result<SourceIdentity> {
    let url = format!("{}?{options}", server.url("postgres"));
    Postgres::new(url).publication("pub").slot("slot").prepare(None).await
}

#[tokio::test]
async fn the_server_is_verified_as_far_as_the_url_asks() {
    if Command::new("openssl").arg("version").output().is_err() {
        println!("skipped: openssl is not installed");
        return;
    }
    for version in [PgVersion::V15, PgVersion::V18] {
        let Some(server) = start(version, &[]) else { continue };
        server.stop().unwrap();
        let folder = tempfile::tempdir().unwrap();
        // The name is not the address that we connect to.
        certificates(folder.path(), "subjectAltName=DNS:db.example");
        let data = server.data_dir();
        for name in ["server.crt", "server.key", "ca.crt"] {
            std::fs::copy(folder.path().join(name), data.join(name)).unwrap();
            Command::new("chown").arg("postgres").arg(data.join(name)).status().unwrap();
        }
        Command::new("chmod").arg("600").arg(data.join("server.key")).status().unwrap();
        append(&data.join("postgresql.conf"), "ssl = on\nssl_ca_file = 'ca.crt'\n");
        std::fs::write(
            data.join("pg_hba.conf"),
            "hostssl all postgres 127.0.0.1/32 cert\nhostssl all scram 127.0.0.1/32 scram-sha-256\n\
             local all all trust\nhostnossl all all all reject\n",
        )
        .unwrap();
        server.start().unwrap();
        let file = |name: &str| folder.path().join(name).display().to_string();
        let (ca, other) = (file("ca.crt"), file("other.crt"));
        let client = format!("sslcert={}&sslkey={}", file("client.crt"), file("client.key"));
        let kind = |r: Result<SourceIdentity>| r.err().map(|e| e.kind());

        assert_eq!(kind(outcome(&server, &format!("sslmode=require&{client}")).await), None, "{version:?}");
        assert_eq!(kind(outcome(&server, &format!("sslmode=prefer&{client}")).await), None);
        assert_eq!(kind(outcome(&server, &client).await), None, "prefer is the default for this machine");
        assert_eq!(kind(outcome(&server, &format!("sslmode=verify-ca&sslrootcert={ca}&{client}")).await), None);
        for (options, why) in [
            (format!("sslmode=verify-full&sslrootcert={ca}&{client}"), "another name"),
            (format!("sslmode=verify-ca&sslrootcert={other}&{client}"), "another authority"),
            (format!("sslmode=require&sslrootcert={other}&{client}"), "require with an authority checks it"),
            (format!("sslmode=verify-full&{client}"), "the machine's authorities do not know it"),
            ("sslmode=disable".to_owned(), "the server wants TLS"),
            (format!("sslmode=verify-ca&sslrootcert={ca}&sslcert={}", file("client.crt")), "no key"),
        ] {
            assert_eq!(kind(outcome(&server, &options).await), Some(ErrorKind::Config), "{version:?}: {why}");
        }

        // A server certificate with the right name.
        certificates(folder.path(), "subjectAltName=DNS:localhost,IP:127.0.0.1");
        for name in ["server.crt", "server.key", "ca.crt"] {
            std::fs::write(data.join(name), std::fs::read(folder.path().join(name)).unwrap()).unwrap();
        }
        server.stop().unwrap();
        server.start().unwrap();
        let full = format!("sslmode=verify-full&sslrootcert={ca}&{client}");
        assert_eq!(kind(outcome(&server, &full).await), None, "{version:?}");

        // SCRAM within TLS, and the stream.
        let (sql, connection) = tokio_postgres::connect(&server.socket_url(), tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        sql.batch_execute(
            "CREATE TABLE t (id int PRIMARY KEY); CREATE ROLE scram LOGIN REPLICATION PASSWORD 'p'; GRANT SELECT ON t TO scram",
        )
        .await
        .unwrap();
        let url = format!("{}?sslmode=verify-full&sslrootcert={ca}", server.url("scram:p"));
        let source = Postgres::new(url).publication("pub").slot("slot");
        source.prepare(None).await.unwrap();
        let partition = source.partitions().await.unwrap().remove(0);
        let mut reader = source.open(&partition, &StartFrom::default()).await.unwrap();
        sql.batch_execute("INSERT INTO t SELECT generate_series(1, 20000)").await.unwrap();
        let mut rows = 0;
        while rows < 20_000 {
            let Next::Batch(batch) = reader.next().await.unwrap() else { panic!() };
            rows += batch.len();
        }
        assert_eq!(rows, 20_000);
    }
}

/// Both kinds of connections: that of the replication protocol, and one for statements.
async fn both(url: &str) -> [Result<()>; 2] {
    let source = || Postgres::new(url).publication("pub").slot("slot");
    [source().prepare(None).await.map(drop), Source::tables(&source()).await.map(drop)]
}

#[tokio::test]
async fn a_login_is_bound_to_its_connection_as_the_url_asks() {
    if Command::new("openssl").arg("version").output().is_err() {
        println!("skipped: openssl is not installed");
        return;
    }
    for version in [PgVersion::V15, PgVersion::V18] {
        let hba = ["scram scram-sha-256", "plain password", "hashed md5", "free trust"];
        let lines = hba.iter().map(|line| line.split_once(' ').unwrap());
        let options = lines.fold(PgOptions::new(version).tls(), |o, (user, method)| {
            o.hba(format!("host all {user} 127.0.0.1/32 {method}"))
        });
        let Some(server) = options.start().unwrap() else { continue };
        server
            .exec(
                "postgres",
                "CREATE ROLE scram LOGIN SUPERUSER PASSWORD 'p'; CREATE ROLE plain LOGIN SUPERUSER PASSWORD 'p';
                 CREATE ROLE free LOGIN SUPERUSER; CREATE TABLE t (id int PRIMARY KEY);
                 SET password_encryption = 'md5'; CREATE ROLE hashed LOGIN SUPERUSER PASSWORD 'p'",
            )
            .unwrap();
        let url = |user: &str, port: u16, rest: &str| format!("postgresql://{user}:p@127.0.0.1:{port}/postgres?{rest}");
        let direct = |user: &str, rest: &str| url(user, server.port(), rest);
        for binding in ["disable", "prefer", "require"] {
            for done in both(&direct("scram", &format!("sslmode=require&channel_binding={binding}"))).await {
                done.unwrap_or_else(|e| panic!("{version:?} {binding}: {}", e.report()));
            }
        }
        for user in ["plain", "hashed", "free"] {
            for done in both(&direct(user, "sslmode=require&channel_binding=prefer")).await {
                done.unwrap();
            }
            for done in both(&direct(user, "sslmode=require&channel_binding=require")).await {
                unbound(done, version);
            }
        }
        // Without TLS there is nothing to bind to.
        let e = Postgres::new(direct("scram", "sslmode=disable&channel_binding=require"))
            .publication("p")
            .slot("s")
            .check();
        let e = e.unwrap_err();
        assert!(e.kind() == ErrorKind::Config && e.report().contains("source.url: channel_binding"), "{}", e.report());

        // Somebody in between, who ends the TLS himself and passes everything on.
        let port = in_between(server.tls().unwrap(), server.port()).await;
        for binding in ["disable", "prefer"] {
            for done in both(&url("scram", port, &format!("sslmode=require&channel_binding={binding}"))).await {
                done.unwrap_or_else(|e| panic!("{version:?} {binding}: {}", e.report()));
            }
        }
        for done in both(&url("scram", port, "sslmode=require&channel_binding=require")).await {
            unbound(done, version);
        }
    }
}

fn unbound(done: Result<()>, version: PgVersion) {
    let e = done.expect_err("must be refused");
    assert_eq!(e.kind(), ErrorKind::Config, "{version:?} {e:?}");
    for part in ["source.url", "channel binding", "scram-sha-256 over TLS"] {
        assert!(e.report().contains(part), "{part:?} is not in: {}", e.report());
    }
}

/// Speaks TLS to whoever connects, and plain text to the server.
async fn in_between(files: &TlsFiles, server: u16) -> u16 {
    let chain = CertificateDer::pem_file_iter(&files.server_cert).unwrap().map(|c| c.unwrap()).collect();
    let key = PrivateKeyDer::from_pem_file(&files.server_key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(chain, key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut request = [0; 8];
                client.read_exact(&mut request).await?;
                client.write_all(b"S").await?;
                let mut client = acceptor.accept(client).await?;
                let mut server = TcpStream::connect(("127.0.0.1", server)).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    port
}
