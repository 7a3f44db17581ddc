//! A wire between a node and NATS that a test can cut.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// While it is cut, what is sent waits on its way, as in a network whose packets are lost and sent again: neither side is told, and
/// when the wire is whole again all of it arrives.
pub struct Link {
    address: SocketAddr,
    is_cut: watch::Sender<bool>,
}

impl Link {
    /// A wire to a server, such as `nats://127.0.0.1:4222`.
    pub async fn to(url: &str) -> Self {
        let server = url.trim_start_matches("nats://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (is_cut, cut) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (server, cut) = (server.clone(), cut.clone());
                tokio::spawn(async move {
                    let mut until_whole = cut.clone();
                    if until_whole.wait_for(|is_cut| !is_cut).await.is_err() {
                        return;
                    }
                    let Ok(far) = TcpStream::connect(&server).await else { return };
                    let ((near_in, near_out), (far_in, far_out)) =
                        (near.into_split(), far.into_split());
                    tokio::join!(
                        carry(near_in, far_out, cut.clone()),
                        carry(far_in, near_out, cut)
                    );
                });
            }
        });
        Self { address, is_cut }
    }

    /// Its near end.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Cuts it.
    pub fn cut(&self) {
        self.is_cut.send_replace(true);
    }

    /// Mends it.
    pub fn mend(&self) {
        self.is_cut.send_replace(false);
    }
}

/// One direction, until either end closes.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut cut: watch::Receiver<bool>) {
    let mut piece = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut piece).await {
        if cut.wait_for(|is_cut| !is_cut).await.is_err()
            || to.write_all(&piece[..count]).await.is_err()
        {
            return;
        }
    }
    // Whoever closed reads on; the other is told.
    let _ = to.shutdown().await;
}
