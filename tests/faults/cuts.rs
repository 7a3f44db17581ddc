//! Nodes that live on where nobody hears them, and come back with what they had to say.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::fleet::Fleet;
use super::link::Link;
use super::streams::{compare, known, start};

const CUTS: usize = 5;
const CUT: Duration = Duration::from_secs(30);
/// From one to the next: two nodes are away at a time, at most.
const EVERY: Duration = Duration::from_secs(16);

pub async fn a_node_that_was_cut_off_and_comes_back_writes_nothing() {
    const STREAMS: usize = 200;
    const TOKENS: u32 = 200;
    let known = known(STREAMS, TOKENS).await;
    let (fleet, links) = Fleet::start_on_links(3, 450_000).await;
    let readers = start(&fleet, STREAMS, TOKENS).await;
    let begin = Instant::now() + Duration::from_secs(2);
    let cuts = (0..CUTS).map(|number| cut(&links[number % 3], begin + EVERY * number as u32));
    join_all(cuts).await;
    let moved = compare("5 cuts of 30 s", &fleet, readers, &known).await;
    assert!(moved > 0);
    let mut fenced = 0.0;
    for node in &fleet.nodes {
        fenced += node.metric(&["inferno_durable_fenced_total"]).await;
    }
    assert!(fenced > 0.0, "who was away tried to write, and was told");
}

async fn cut(link: &Link, at: Instant) {
    tokio::time::sleep_until(at.into()).await;
    link.cut();
    tokio::time::sleep(CUT).await;
    link.mend();
}
