//! A proxy whose connections can be cut.

use std::sync::Arc;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::Tested;

/// Passes connections on, until they are cut.
pub(crate) struct Proxy {
    pub(crate) address: String,
    /// Notified, it cuts every connection.
    pub(crate) cut: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port, for a server at this address.
    pub(crate) async fn start(to: String) -> Tested<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let cut = Arc::new(Notify::new());
        let cuts = Arc::clone(&cut);
        let task = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (to, cut) = (to.clone(), Arc::clone(&cuts));
                tokio::spawn(async move {
                    let cut = cut.notified();
                    let Ok(mut server) = TcpStream::connect(to).await else { return };
                    tokio::select! {
                        biased;
                        () = cut => {}
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                    }
                });
            }
        });
        Ok(Self { address, cut, task })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
