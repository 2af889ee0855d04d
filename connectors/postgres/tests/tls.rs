//! TLS as libpq's sslmode describes it, for statements and for replication, against a real server.

mod support;

use std::path::Path;
use std::process::Command;

use anabranch_core::*;
use anabranch_postgres::Postgres;
use support::{PgServer, PgVersion, append, start};

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
