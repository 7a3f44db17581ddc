//! The disk of NATS is full.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::fleet::{Fleet, ROOMY};
use super::harness::NodeProcess;
use super::nats::NatsServer;
use super::streams::{compare, known, start};

/// How long a refusal may take.
const MAX_REFUSAL: Duration = Duration::from_secs(10);

/// A file system of its own, which only a namespace of its own sees; it goes with it.
struct SmallDisk {
    holder: Child,
}

impl SmallDisk {
    fn new() -> Self {
        let mut holder = Command::new("unshare")
            .args(["--map-root-user", "--mount", "sh", "-c"])
            .arg("mount -t tmpfs -o size=48m none /mnt && touch /mnt/is-there && exec sleep infinity")
            .stdout(Stdio::null())
            .spawn()
            .expect("util-linux is installed");
        let deadline = Instant::now() + Duration::from_secs(10);
        while !PathBuf::from(format!("/proc/{}/root/mnt/is-there", holder.id())).exists() {
            assert!(Instant::now() < deadline, "a mount namespace: {:?}", holder.try_wait());
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { holder }
    }

    /// What is put before a command that is to see it.
    fn inside(&self) -> Vec<String> {
        let pid = self.holder.id().to_string();
        ["nsenter", "--preserve-credentials", "--user", "--mount", "--target", &pid]
            .map(str::to_owned)
            .to_vec()
    }

    fn filler(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/mnt/filler", self.holder.id()))
    }

    /// Until not a byte is left.
    fn fill(&self) {
        let mut file = File::create(self.filler()).expect("a file");
        for size in [1 << 20, 4 << 10, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.filler()).expect("was there");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

pub async fn a_full_disk_loses_nothing_acked_and_is_whole_after_the_remedy() {
    const STREAMS: usize = 100;
    const TOKENS: u32 = 200;
    let known = known(STREAMS, TOKENS).await;
    let disk = SmallDisk::new();
    // The server is told that it has more, or it would refuse the streams for their limits.
    let jetstream = "jetstream { store_dir: \"/mnt/store\", max_file_store: 8GB }\n";
    let nats = NatsServer::under(disk.inside(), jetstream);
    let mut fleet = Fleet::on(nats, 100_000, ROOMY);
    fleet.add();
    fleet.add();
    fleet.wait_ready().await;
    let readers = start(&fleet, STREAMS, TOKENS).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    disk.fill();
    wait_until_refused(&fleet.nodes[0]).await;
    let plain = json!({"model": "demo", "prompt": "Once", "max_tokens": 5});
    assert_eq!(fleet.nodes[0].post("/v1/completions", &plain).await.status(), 200);
    let held = fleet.nodes[0].metric(&["inferno_completion_tokens_total"]).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    // The plain one above is all that may still count.
    let after = fleet.nodes[0].metric(&["inferno_completion_tokens_total"]).await;
    assert!(after - held <= 5.0, "streams wait for the log: {held} to {after} tokens");
    disk.free();
    fleet.nats.kill();
    fleet.nats.start_again();
    compare("disk full", &fleet, readers, &known).await;
    let (status, body) = post_durable(&fleet.nodes[0]).await;
    assert_eq!(status, 200, "{body}");
}

async fn post_durable(node: &NodeProcess) -> (u16, Value) {
    let body = json!({"model": "demo", "prompt": "Once", "max_tokens": 5});
    let request = reqwest::Client::new().post(format!("{}/v1/completions", node.http()));
    let reply = request.header("inferno-durable", "true").json(&body).send().await;
    let reply = reply.expect("the node answers");
    (reply.status().as_u16(), reply.json().await.expect("JSON"))
}

/// New durable requests are refused by name once the server finds that it cannot write.
async fn wait_until_refused(node: &NodeProcess) {
    for _ in 0..50 {
        let asked_at = Instant::now();
        // One whose promise the server still gave waits for its tokens, as those do that run.
        let answer = tokio::time::timeout(MAX_REFUSAL, post_durable(node)).await;
        if let Ok((status, body)) = answer
            && status != 200
        {
            assert_eq!(status, 503, "{body}");
            let code = body["error"]["code"].as_str().unwrap_or_default();
            assert!(["log_unavailable", "log_full"].contains(&code), "{body}");
            println!("disk full: refused after {:.1} s", asked_at.elapsed().as_secs_f64());
            return;
        }
    }
    panic!("never refused");
}
