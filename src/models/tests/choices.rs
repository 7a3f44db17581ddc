//! On which of several devices a model is, and what that means for the others.

use super::*;

fn two(a: u64, b: u64) -> Vec<(&'static str, Maker)> {
    vec![("sim:0", sim("sim:0", a)), ("sim:1", sim("sim:1", b))]
}

async fn load_later(bench: &Bench, name: &str) -> Result<String> {
    let load = Load { spec: bench.spec(name), spread: Spread::BestDevice };
    let info = bench.models.send(load).await.expect("it lives")?;
    let [device] = info.devices.as_slice() else { panic!("on one device: {info:?}") };
    Ok(device.to_string())
}

#[actix::test]
async fn a_later_model_goes_where_it_gets_most_memory() {
    let least = most_bytes() / 2;
    let bench = Bench::new(two(least, 2 * most_bytes())).await;
    assert_eq!(load_later(&bench, "a").await, Ok("sim:1".to_owned()));
    bench.stop();
}

#[actix::test]
async fn a_later_model_goes_where_fewer_requests_are() {
    let bench = Bench::new(two(1 << 30, 1 << 30)).await;
    assert_eq!(load_later(&bench, "a").await, Ok("sim:0".to_owned()), "of equals the first");
    bench.served("a").in_use.store(1, Ordering::Release);
    assert_eq!(load_later(&bench, "b").await, Ok("sim:1".to_owned()));
    bench.served("b").in_use.store(2, Ordering::Release);
    assert_eq!(load_later(&bench, "c").await, Ok("sim:0".to_owned()));
    bench.stop();
}

#[actix::test]
async fn a_rebuilt_device_gets_only_the_models_that_were_there() {
    let mut bench = Bench::new(two(1 << 30, 1 << 30)).await;
    bench.load("everywhere").await.expect("loads");
    bench.served("everywhere").in_use.store(3, Ordering::Release);
    let device = load_later(&bench, "later").await.expect("loads");
    assert_eq!(device, "sim:0", "of equals the first");
    bench.take_log();
    bench.executors.remove(1).stop();
    let (device, running) = build("sim:1", 2, sim("sim:1", 1 << 30), &bench.log).await;
    bench.executors.push(running);
    let (done, answer) = oneshot::channel();
    bench.models.send(DeviceRebuilt { device, done }).await.expect("it lives");
    assert_eq!(answer.await.expect("it answers"), Ok(()));
    assert_eq!(bench.take_log(), ["sim:1 add 1"]);
    bench.stop();
}

#[actix::test]
async fn only_models_of_the_device_that_lacks_memory_are_evicted() {
    let bench = Bench::new(two(most_bytes(), most_bytes())).await;
    assert_eq!(load_later(&bench, "a").await, Ok("sim:0".to_owned()));
    assert_eq!(load_later(&bench, "b").await, Ok("sim:1".to_owned()), "the other is full");
    bench.served("a").in_use.store(1, Ordering::Release);
    bench.take_log();
    assert_eq!(load_later(&bench, "c").await, Ok("sim:1".to_owned()), "a is busy");
    assert_eq!(bench.take_log(), ["down b", "sim:1 remove 2", "sim:1 add 3", "up c"]);
    bench.served("c").in_use.store(1, Ordering::Release);
    let error = load_later(&bench, "d").await.expect_err("both are busy");
    assert_eq!(error.kind, Kind::Unavailable);
    assert_eq!(bench.names().await, ["a", "c"]);
    bench.stop();
}

#[actix::test]
async fn replicas_need_room_on_every_device_and_evict_nothing_in_vain() {
    let bench = Bench::new(two(most_bytes(), most_bytes())).await;
    load_later(&bench, "idle").await.expect("loads on sim:0");
    load_later(&bench, "busy").await.expect("loads on sim:1");
    bench.served("busy").in_use.store(1, Ordering::Release);
    assert_eq!(kind(bench.load("replicated").await), Kind::Unavailable);
    assert_eq!(bench.names().await, ["busy", "idle"]);
    bench.served("busy").in_use.store(0, Ordering::Release);
    bench.take_log();
    let info = bench.load("replicated").await.expect("both go");
    assert_eq!(info.devices.len(), 2);
    assert_eq!(bench.names().await, ["replicated"]);
    bench.stop();
}
