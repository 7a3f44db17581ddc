//! When memory is short: eviction, shorter sequences, refusals.

use super::*;
use crate::memory;

#[actix::test]
async fn the_least_recently_used_idle_model_makes_room() {
    // Room for two with their whole wishes.
    let pool = 2 * most_bytes() - memory::ALIGNMENT_SLACK;
    let bench = Bench::new(vec![("sim:0", sim("sim:0", pool))]).await;
    for (name, last_used) in [("a", 30), ("b", 20)] {
        bench.load(name).await.expect("loads");
        bench.served(name).last_used.store(last_used, Ordering::Relaxed);
    }
    bench.take_log();
    bench.load("c").await.expect("b goes");
    assert_eq!(bench.names().await, ["a", "c"]);
    assert_eq!(bench.take_log(), ["down b", "sim:0 remove 2", "sim:0 add 3", "up c"]);
    // Those in use stay, and then there is no room.
    bench.served("a").in_use.store(1, Ordering::Release);
    bench.served("c").in_use.store(1, Ordering::Release);
    let error = bench.load("d").await.expect_err("both are busy");
    assert_eq!(error.kind, Kind::Unavailable);
    assert!(error.retry_after_ms.is_some());
    assert_eq!(bench.names().await, ["a", "c"]);
    bench.stop();
}

#[actix::test]
async fn a_model_that_gets_a_request_at_the_last_moment_stays() {
    let bench = Bench::new(vec![("sim:0", sim("sim:0", most_bytes()))]).await;
    bench.load("a").await.expect("loads");
    bench.take_log();
    bench.late_request.store(true, Ordering::Relaxed);
    assert_eq!(kind(bench.load("b").await), Kind::Unavailable);
    assert_eq!(bench.take_log(), ["down a", "up a"]);
    assert_eq!(bench.names().await, ["a"]);
    bench.stop();
}

#[actix::test]
async fn what_could_never_fit_evicts_nothing() {
    let bench = Bench::new(vec![("sim:0", sim("sim:0", most_bytes()))]).await;
    bench.load("a").await.expect("loads");
    let path = bench.dir.path().join("config.json");
    let large = std::fs::read_to_string(&path)
        .expect("reads")
        .replace("\"intermediate_size\":32", "\"intermediate_size\":1048576");
    std::fs::write(&path, large).expect("writes");
    let error = bench.load("b").await.expect_err("too large");
    assert_eq!(error.kind, Kind::Unsupported);
    assert!(error.message.contains("memory_pool_size"), "{error}");
    assert_eq!(bench.names().await, ["a"]);
    bench.stop();
}

#[actix::test]
async fn a_kv_cache_for_less_than_one_sequence_shortens_it_or_is_refused() {
    let bench = Bench::with(vec![("sim:0", sim("sim:0", 1 << 30))], |start| {
        // Two blocks of 16 positions: keys and values of 32 dimensions of 2 bytes.
        start.kv_bytes = Some(2 * 2 * 32 * 2 * 16);
    })
    .await;
    let info = bench.load("demo").await.expect("loads, shortened");
    assert_eq!((info.max_seq_len, bench.served("demo").max_seq_len), (32, 32));
    let insists = ModelSpec { max_seq_len: Some(64), ..bench.spec("other") };
    let error = bench.load_spec(insists).await.expect_err("64 do not fit");
    assert!(error.message.contains("32 positions"), "{error}");
    // To make room for it even the idle one went: it was short of memory after all.
    assert_eq!(bench.used().len(), 1);
    bench.stop();
}

#[actix::test]
async fn a_planned_kv_cache_is_kept_to() {
    let planned = 4 * 2 * 32 * 2 * 16;
    let bench = Bench::with(vec![("sim:0", sim("sim:0", 1 << 30))], |start| {
        start.planned_kv_bytes.insert("demo".to_owned(), planned);
    })
    .await;
    assert_eq!(bench.load("demo").await.expect("loads").kv_bytes, planned);
    assert_eq!(bench.load("late").await.expect("loads").kv_bytes, 4 * planned);
    bench.stop();
}
