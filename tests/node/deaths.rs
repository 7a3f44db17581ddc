//! Goal: a part of a node that cannot be built again ends the process, with a status for its supervisor. Method: a debug build's part
//! of the name in `PANIC_FOR_TEST` panics at its work.

use std::process::Command;

use futures_util::future::join_all;
use inferno_node::bus::client::ClientError;
use inferno_node::request::FinishReason;

use super::harness::{NodeProcess, children_of, client, collect, request};

const MANAGED: &str = "[bus]\nmode = \"managed\"\n[executor]\nthreads = 1\n";

/// An actor with its first request, one that has a failed device to mend while requests run, and a helper thread.
#[tokio::test]
async fn a_part_that_dies_ends_its_requests_and_the_process() {
    let fault = format!("{MANAGED}faults = [{{ step = 20, kind = \"exception\" }}]\n");
    for (name, sections) in [
        ("scheduler actor", MANAGED),
        ("supervisor", fault.as_str()),
        ("tokenizer thread", MANAGED),
    ] {
        let mut node = NodeProcess::start_that_panics(name, sections);
        let bus = client(&node.nats()).await;
        let one = |seed| {
            let bus = bus.clone();
            async move {
                let mut generation = bus.generate("demo", request(400, seed)).await?;
                Ok::<_, ClientError>(collect(&mut generation).await?.2)
            }
        };
        for end in join_all((0..4).map(one)).await {
            match end {
                Ok(last) => assert_eq!(last.finish_reason, Some(FinishReason::Failed), "{name}"),
                Err(ClientError::Refused(_)) => {}
                Err(error) => panic!("{name}: {error}\n{}", node.log()),
            }
        }
        assert_eq!(node.wait().code(), Some(1), "{name}: for its supervisor to start it again");
        assert_eq!(node.said(&format!("the {name} has ended")).len(), 1, "{}", node.log());
    }
}

/// Else nobody would start the nats-server again.
#[tokio::test]
async fn a_dead_watcher_of_the_own_nats_server_ends_the_process() {
    let mut node = NodeProcess::start_that_panics("watcher of the own nats-server", MANAGED);
    let shell = children_of(node.pid()).pop().expect("its nats-server's shell");
    let shell = shell.file_name().and_then(|name| name.to_str()).and_then(|pid| pid.parse().ok());
    for process in children_of(shell.expect("a process")) {
        // The server; and what stands by it to end it, which may have ended by then.
        let _ = Command::new("kill").arg(process.file_name().expect("a process")).status();
    }
    assert_eq!(node.wait().code(), Some(1), "for its supervisor to start it again");
    let log = node.log();
    assert!(log.contains("the watcher of the own nats-server has ended"), "{log}");
}
