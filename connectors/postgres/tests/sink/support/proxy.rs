//! A proxy before the server, which may change what passes.

use anabranch_postgres::PostgresSink;
use tokio::io::copy;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use super::Db;

impl Db {
    /// A sink whose connections go through a proxy: `up` carries what the sink says to the server,
    /// `down` what the server says to the sink, each in a task of its own for every connection.
    pub(crate) async fn sink_through<U, D>(
        &self,
        up: impl Fn(OwnedReadHalf, OwnedWriteHalf) -> U + Send + 'static,
        down: impl Fn(OwnedReadHalf, OwnedWriteHalf) -> D + Send + 'static,
    ) -> PostgresSink
    where
        U: Future<Output = ()> + Send + 'static,
        D: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, behind) = (listener.local_addr().unwrap().port(), self.server.port());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", behind)).await.unwrap();
                client.set_nodelay(true).unwrap();
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::spawn(up(from_client, to_server));
                tokio::spawn(down(from_server, to_client));
            }
        });
        PostgresSink::new(self.url().replace(&format!(":{behind}/"), &format!(":{port}/")))
    }
}

/// Carries everything as it is.
pub(crate) async fn unchanged(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let _ = copy(&mut from, &mut to).await;
}
