//! Devices that are built again, and devices that do not work.

use super::*;
use crate::bridge::DeviceErrorCode;
use crate::executor::SeatBinding;

#[actix::test]
async fn a_rebuilt_device_gets_every_model_again() {
    let mut bench = Bench::new(vec![("sim:0", sim("sim:0", 1 << 30))]).await;
    bench.load("a").await.expect("loads");
    bench.load("b").await.expect("loads");
    let before = bench.used();
    bench.take_log();
    bench.executors.remove(0).stop();
    let (device, running) = build("sim:0", 2, sim("sim:0", 1 << 30), &bench.log).await;
    bench.executors.push(running);
    let (done, answer) = oneshot::channel();
    bench.models.send(DeviceRebuilt { device, done }).await.expect("it lives");
    assert_eq!(answer.await.expect("it answers"), Ok(()));
    assert_eq!(bench.take_log(), ["sim:0 add 1", "sim:0 add 2"], "admission sees nothing of it");
    assert_eq!(bench.used(), before);
    bench.unload("a").await.expect("unloads from the new one");
    assert!(bench.used() < before);
    bench.stop();
}

#[actix::test]
async fn a_rebuilt_device_without_room_is_reported() {
    let mut bench = Bench::new(vec![("sim:0", sim("sim:0", 1 << 30))]).await;
    bench.load("a").await.expect("loads");
    bench.executors.remove(0).stop();
    let (device, running) = build("sim:0", 2, sim("sim:0", 4096), &bench.log).await;
    bench.executors.push(running);
    let (done, answer) = oneshot::channel();
    bench.models.send(DeviceRebuilt { device, done }).await.expect("it lives");
    let error = answer.await.expect("it answers").expect_err("no room");
    assert!(error.message.contains("model \"a\" on sim:0"), "{error}");
    bench.stop();
}

/// Takes a load and then loses it, as an executor does that is being stopped.
struct Loses(Option<oneshot::Sender<()>>);

impl Actor for Loses {
    type Context = Context<Self>;
}

impl Handler<LoadModel> for Loses {
    type Result = ();

    fn handle(&mut self, _: LoadModel, _: &mut Self::Context) {
        if let Some(took) = self.0.take() {
            took.send(()).expect("the test waits");
        }
    }
}

#[actix::test]
async fn a_load_under_way_goes_on_when_its_device_is_rebuilt() {
    let (took, taken) = oneshot::channel();
    let mut bench = Bench::with(vec![("sim:0", sim("sim:0", 1 << 30))], |start| {
        let loses: Recipient<LoadModel> = Loses(Some(took)).start().recipient();
        start.devices[0].load = loses;
    })
    .await;
    let models = bench.models.clone();
    let load = actix_rt::spawn(models.send(replicas(bench.spec("demo"))));
    taken.await.expect("the old build took it");
    let (device, running) = build("sim:0", 2, sim("sim:0", 1 << 30), &bench.log).await;
    bench.executors.push(running);
    let (done, answer) = oneshot::channel();
    bench.models.send(DeviceRebuilt { device, done }).await.expect("it lives");
    assert_eq!(answer.await.expect("it answers"), Ok(()));
    assert!(load.await.expect("no panic").expect("it lives").is_ok());
    assert_eq!(bench.take_log(), ["sim:0 add 1", "up demo"], "once, on the new build");
    bench.stop();
}

/// A device that takes models and loads none.
struct Broken(DeviceErrorCode);

impl Device for Broken {
    fn begin_load(&mut self, _: DeviceLoad) -> std::result::Result<(), DeviceError> {
        Ok(())
    }

    fn load_next(&mut self, _: ModelId) -> std::result::Result<LoadState, DeviceError> {
        let message = "tensor model.norm.weight: broken".to_owned();
        Err(DeviceError { code: self.0, message })
    }

    fn unload(&mut self, _: ModelId) -> std::result::Result<(), DeviceError> {
        Ok(())
    }

    fn bind(&mut self, _: ModelId, _: &SeatBinding) -> std::result::Result<(), DeviceError> {
        Ok(())
    }

    fn run(
        &mut self,
        _: ModelId,
        _: &mut StepBatch,
        _: &mut StepOutput,
    ) -> std::result::Result<(), DeviceError> {
        Ok(())
    }

    fn memory(&self) -> std::result::Result<MemoryStats, DeviceError> {
        Ok(MemoryStats { reserved_bytes: 1 << 30, ..MemoryStats::default() })
    }
}

#[actix::test]
async fn a_load_after_which_the_device_is_lost_is_told_to_the_node() {
    let broken = Maker::from_fn(|| Ok(Box::new(Broken(DeviceErrorCode::Sticky))));
    let bench = Bench::new(vec![("sim:0", broken)]).await;
    assert_eq!(kind(bench.load("demo").await), Kind::Internal);
    assert_eq!(bench.take_log(), ["sim:0 failed, sticky true"]);
    bench.stop();
}

#[actix::test]
async fn a_model_that_one_device_cannot_load_is_on_none() {
    let broken = Maker::from_fn(|| Ok(Box::new(Broken(DeviceErrorCode::Other))));
    let bench = Bench::new(vec![("sim:0", sim("sim:0", 1 << 30)), ("sim:1", broken)]).await;
    let error = bench.load("demo").await.expect_err("sim:1 is broken");
    assert_eq!(error.kind, Kind::Internal);
    for part in ["model \"demo\" on sim:1", "model.norm.weight"] {
        assert!(error.message.contains(part), "{error}");
    }
    assert_eq!(bench.used(), [0, 0]);
    assert_eq!((bench.take_log(), bench.names().await), (vec![], vec![]));
    bench.stop();
}
