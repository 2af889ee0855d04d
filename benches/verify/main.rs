//! How fast `verify` compares, beside reading both tables with one plain cursor each, in the same run.
//!
//! ```sh
//! cargo bench --bench verify                 # BENCH_VERIFY_ROWS=500000
//! ```
//!
//! Prints rows a second (of one side) and the ratio; the aim is 0.5.

use std::error::Error;
use std::time::{Duration, Instant};

use anabranch::control::verify::VerifyOptions;
use anabranch::{MySql, Pipeline, PipelineBuilder, Postgres, PostgresSink, Sqlite};
use anabranch_servers::{PgServer, PgVersion};
use mysql_async::prelude::Queryable;

type Done<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

const DB: &str = "shop";
/// The best of so many runs counts, of both.
const ROUNDS: usize = 3;
/// Rows that a cursor is asked for at a time.
const FETCH: usize = 10_000;

fn table(rows: u64) -> String {
    format!(
        "CREATE TABLE orders (id bigint PRIMARY KEY, customer text NOT NULL, total numeric(12, 2), weight double precision,
                              placed timestamptz, paid boolean, note text, hash bytea);
         INSERT INTO orders SELECT i, 'customer ' || i % 9973, i * 1.25, i / 7.0, '2026-01-01'::timestamptz + i * interval '1 s',
                                   i % 2 = 0, CASE WHEN i % 3 > 0 THEN repeat('n', i % 60) END, decode(md5(i::text), 'hex')
                            FROM generate_series(1, {rows}) i;
         ANALYZE orders;"
    )
}

enum Target {
    Postgres(PgServer),
    MariaDb(anabranch_servers::MariaServer),
    Sqlite(tempfile::TempDir),
}

impl Target {
    fn all() -> Done<Vec<Self>> {
        let mut all = Vec::new();
        if let Some(server) = anabranch_servers::postgres(PgVersion::Any) {
            server.create_db(DB)?;
            all.push(Self::Postgres(server));
        }
        if let Some(server) = anabranch_servers::mariadb() {
            server.create_db(DB)?;
            all.push(Self::MariaDb(server));
        }
        all.push(Self::Sqlite(tempfile::tempdir()?));
        Ok(all)
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgres",
            Self::MariaDb(_) => "mariadb",
            Self::Sqlite(_) => "sqlite",
        }
    }

    fn pipeline(&self, source: &PgServer) -> PipelineBuilder {
        let name = format!("bench_{}", self.name());
        let source = Postgres::new(source.url(DB)).publication("all").slot(&name);
        let builder = Pipeline::builder(&name).source(source).create_tables(true);
        match self {
            Self::Postgres(server) => builder.sink(PostgresSink::new(server.url(DB))),
            Self::MariaDb(server) => builder.sink(MySql::new(server.url(DB))),
            Self::Sqlite(folder) => builder.sink(Sqlite::open(folder.path().join("target.db"))),
        }
    }

    /// Reads the table with one plain cursor; gives the rows.
    async fn cursor(&self) -> Done<u64> {
        match self {
            Self::Postgres(server) => postgres_cursor(server.url(DB)).await,
            Self::MariaDb(server) => {
                let mut conn = mysql_async::Conn::new(mysql_async::Opts::from_url(&server.url(DB))?).await?;
                let mut rows = conn.query_iter("SELECT * FROM orders").await?;
                let mut count = 0;
                while let Some(row) = rows.next().await? {
                    count += u64::from(!row.is_empty());
                }
                Ok(count)
            }
            Self::Sqlite(folder) => {
                let path = folder.path().join("target.db");
                tokio::task::spawn_blocking(move || -> Done<u64> {
                    let db = rusqlite::Connection::open(path)?;
                    let mut statement = db.prepare("SELECT * FROM orders")?;
                    let columns = statement.column_count();
                    let mut rows = statement.query([])?;
                    let mut count = 0;
                    while let Some(row) = rows.next()? {
                        for column in 0..columns {
                            std::hint::black_box(row.get_ref(column)?);
                        }
                        count += 1;
                    }
                    Ok(count)
                })
                .await?
            }
        }
    }
}

async fn postgres_cursor(url: String) -> Done<u64> {
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
    let task = tokio::spawn(connection);
    client.batch_execute("BEGIN; DECLARE c CURSOR FOR SELECT * FROM orders").await?;
    let fetch = format!("FETCH {FETCH} FROM c");
    let mut count = 0;
    loop {
        let rows = client.query(&fetch, &[]).await?;
        if rows.is_empty() {
            break;
        }
        count += rows.len() as u64;
    }
    drop(client);
    task.await??;
    Ok(count)
}

/// Both tables at the same time, as the comparison reads them.
async fn cursors(source: &PgServer, target: &Target, rows: u64) -> Done<Duration> {
    let began = Instant::now();
    let source = tokio::spawn(postgres_cursor(source.url(DB)));
    let there = target.cursor().await?;
    let here = source.await??;
    if (here, there) != (rows, rows) {
        return Err(format!("{here} rows in the source and {there} in the target, not {rows}").into());
    }
    Ok(began.elapsed())
}

async fn compared(source: &PgServer, target: &Target, rows: u64) -> Done<Duration> {
    let pipeline = target.pipeline(source).build()?;
    let began = Instant::now();
    let options = VerifyOptions { wait: None, ..VerifyOptions::default() };
    let verified = pipeline.verify(&options, &mut |_| {}).await.map_err(|e| e.report())?;
    let all = verified.tables.iter().map(|t| t.source_rows).sum::<u64>();
    if !verified.equal || all != rows {
        return Err(format!("{all} rows: {verified}").into());
    }
    Ok(began.elapsed())
}

#[tokio::main]
async fn main() -> Done {
    let rows = std::env::var("BENCH_VERIFY_ROWS").ok().map(|n| n.parse()).transpose()?.unwrap_or(500_000);
    let Some(source) = anabranch_servers::postgres(PgVersion::Any) else { return Ok(()) };
    source.create_db(DB)?;
    source.exec(DB, &table(rows))?;
    source.exec(DB, "CREATE PUBLICATION \"all\" FOR ALL TABLES")?;
    println!("{rows} rows of 8 columns; the best of {ROUNDS}");
    for target in Target::all()? {
        let mut running = target.pipeline(&source).build()?.start().await.map_err(|e| e.report())?;
        running.drain(None).await.map_err(|e| e.report())?;
        running.stop().await.map_err(|e| e.report())?;
        let (mut plain, mut verify) = (Duration::MAX, Duration::MAX);
        for _ in 0..ROUNDS {
            plain = plain.min(cursors(&source, &target, rows).await?);
            verify = verify.min(compared(&source, &target, rows).await?);
        }
        let rate = |time: Duration| rows as f64 / time.as_secs_f64();
        println!(
            "postgres to {:<9} cursors {:>9.0} rows/s, verify {:>9.0} rows/s, ratio {:.2}",
            target.name(),
            rate(plain),
            rate(verify),
            plain.as_secs_f64() / verify.as_secs_f64()
        );
    }
    Ok(())
}
