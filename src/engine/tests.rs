//! Goal: nothing dies unseen. Method: each actor, door and helper thread of a whole node in turn panics at its work, while requests
//! run; what cannot be built again ends the node, with every request answered once and a stop that ends.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use super::*;
use crate::bus::client::Client;
use crate::bus::{Auth, Mode};
use crate::checkpoint::LoadFormat;
use crate::clock::Timestamp;
use crate::health::Status;
use crate::ids::DeviceId;
use crate::node::Phase;

/// Longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

async fn start() -> Engine {
    let mut config = Config::library("demo", format!("{}/models/demo", env!("CARGO_MANIFEST_DIR")));
    config.executor.threads = 1;
    config.bus.mode = Mode::Managed;
    config.http.enabled = true;
    config.http.bind = "127.0.0.1:0".to_owned();
    // Nobody is there, and asked for ever.
    config.registrar.load_balancers = vec!["127.0.0.1:1".to_owned()];
    config.registrar.metrics_bind = "127.0.0.1:0".to_owned();
    Engine::new(config).await.expect("the engine starts")
}

/// Answers of so many requests at once; each ends, one way or the other.
async fn ask(engine: &Engine, count: u64) -> Vec<Result<Answer>> {
    let request = |seed| {
        InferRequest::text("demo", "Once upon a time").params(Params {
            max_tokens: Some(24),
            seed: Some(seed),
            ignore_eos: Some(true),
            ..Params::default()
        })
    };
    let answers = join_all((0..count).map(|seed| engine.infer(request(seed))));
    timeout(PATIENCE, answers).await.expect("no request is silent")
}

/// The node says that `name` has ended, and ends.
async fn ends_by(engine: Engine, name: &str) {
    let mut phase = engine.node.phase();
    let failed = phase.wait_for(|phase| matches!(phase, Phase::Failed(_)));
    let failed = timeout(PATIENCE, failed).await.expect("it is seen").expect("the node lives");
    let Phase::Failed(error) = &*failed else { unreachable!("waited for") };
    assert_eq!(error.message, format!("the {name} has ended"));
    drop(failed);
    assert!(!engine.is_ready());
    let message = engine.node.vitals().message(Timestamp::now());
    assert_eq!(message.status, Status::Critical, "{:?}", message.checks);
    ask(&engine, 4).await;
    engine.shutdown().await.expect("the stop ends");
}

/// `name` panics with the next request.
async fn panics_with_a_request(name: &'static str) {
    let engine = start().await;
    engine.node.arm(name);
    ask(&engine, 8).await;
    ends_by(engine, name).await;
}

#[tokio::test]
async fn a_dead_admission_ends_the_node() {
    panics_with_a_request("admission actor").await;
}

#[tokio::test]
async fn a_dead_tokenizer_thread_ends_the_node() {
    panics_with_a_request("tokenizer thread").await;
}

#[tokio::test]
async fn a_dead_scheduler_ends_the_node() {
    panics_with_a_request("scheduler actor").await;
}

#[tokio::test]
async fn a_dead_models_actor_ends_the_node() {
    let engine = start().await;
    engine.node.arm("models actor");
    let path = format!("{}/models/demo", env!("CARGO_MANIFEST_DIR"));
    let spec = ModelSpec { load_format: LoadFormat::Dummy, ..ModelSpec::new("other", path) };
    assert!(engine.load_model(spec).await.is_err());
    ends_by(engine, "models actor").await;
}

#[tokio::test]
async fn a_dead_health_actor_ends_the_node() {
    let engine = start().await;
    engine.node.arm("health actor");
    ends_by(engine, "health actor").await;
}

#[tokio::test]
async fn a_dead_registrar_ends_the_node() {
    let engine = start().await;
    engine.node.arm("registrar actor");
    ends_by(engine, "registrar actor").await;
}

#[tokio::test]
async fn a_dead_bus_ends_the_node() {
    let engine = start().await;
    engine.node.arm("bus");
    ends_by(engine, "bus").await;
}

#[tokio::test]
async fn a_dead_writer_of_the_bus_ends_the_node_and_every_request() {
    let engine = start().await;
    let asker = asker(&engine).await;
    let body =
        serde_json::json!({"prompt": "Hi", "params": {"max_tokens": 1_900, "ignore_eos": true}});
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut stream = asker.generate("demo", body.clone()).await.expect("accepted");
        stream.next().await.expect("streams");
        streams.push(stream);
    }
    engine.node.arm("bus's writer");
    // Those of the library are none of the bus's, and end well.
    for answer in ask(&engine, 8).await {
        assert_eq!(answer.expect("goes on").usage.completion_tokens, 24);
    }
    let idle = async {
        loop {
            let message = engine.node.vitals().message(Timestamp::now());
            if (message.running, message.waiting) == (0, 0) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, idle).await.expect("those of the bus end, too");
    ends_by(engine, "bus").await;
}

/// Somebody at the node's bus.
async fn asker(engine: &Engine) -> Client {
    let url = engine.node.nats().expect("a bus");
    Client::connect(url, &Auth::default(), "inferno.v1").await.expect("connects")
}

/// A helper of the bus panics with the next message that it takes; what a client asks meanwhile may stay unanswered.
async fn panics_with_a_message(name: &'static str, subject: &str) {
    let engine = start().await;
    engine.node.arm(name);
    let nats = async_nats::connect(engine.node.nats().expect("a bus")).await.expect("connects");
    let _ = timeout(Duration::from_secs(1), nats.request(subject.to_owned(), "".into())).await;
    ends_by(engine, name).await;
}

#[tokio::test]
async fn a_dead_service_of_the_bus_ends_the_node() {
    panics_with_a_message("bus's service", "$SRV.PING").await;
}

#[tokio::test]
async fn a_dead_look_for_neighbours_ends_the_node() {
    panics_with_a_message("bus's look for neighbours", "inferno.v1.node.other.health").await;
}

/// One client's request of an id of its own runs, and is asked to end.
async fn panics_with_a_cancel(name: &'static str) {
    let engine = start().await;
    let asker = asker(&engine).await;
    let body =
        serde_json::json!({"prompt": "Hi", "params": {"max_tokens": 500, "ignore_eos": true}});
    let mut stream = asker.generate("demo", body).await.expect("accepted");
    stream.next().await.expect("streams");
    engine.node.arm(name);
    let _ = timeout(Duration::from_secs(1), asker.cancel(stream.id())).await;
    ends_by(engine, name).await;
}

#[tokio::test]
async fn a_dead_subject_of_a_requests_cancels_ends_the_node() {
    panics_with_a_cancel("bus's cancel subject").await;
}

#[tokio::test]
async fn a_dead_cancel_ends_the_node() {
    panics_with_a_cancel("bus's cancel").await;
}

/// A client asks for an id of its own: whether another node runs it is asked first.
async fn panics_with_a_question(name: &'static str) {
    let engine = start().await;
    // A node that hears of none for a while asks nobody.
    let other = async_nats::connect(engine.node.nats().expect("a bus")).await.expect("connects");
    other.publish("inferno.v1.node.other.health", "".into()).await.expect("connected");
    other.flush().await.expect("connected");
    engine.node.arm(name);
    let asker = asker(&engine).await;
    let asked = asker.generate("demo", serde_json::json!({"prompt": "Hi"}));
    // Perhaps nobody has it any more; who waits has a limit of its own.
    let _ = timeout(Duration::from_secs(1), asked).await;
    ends_by(engine, name).await;
}

#[tokio::test]
async fn a_dead_intake_of_the_bus_ends_the_node() {
    panics_with_a_question("bus's intake").await;
}

#[tokio::test]
async fn a_dead_reader_of_answers_ends_the_node() {
    panics_with_a_question("bus's reader of answers").await;
}

#[tokio::test]
async fn a_dead_question_of_an_id_ends_the_node() {
    panics_with_a_question("bus's question of an id").await;
}

#[tokio::test]
async fn a_dead_http_worker_ends_the_node() {
    let engine = start().await;
    engine.node.arm("HTTP worker");
    let url = format!("http://{}/v1/models", engine.node.http().expect("HTTP is a door"));
    // Answered or cut: the worker may end with the step that writes.
    let _ = timeout(PATIENCE, reqwest::get(url)).await.expect("the request is not silent");
    ends_by(engine, "HTTP worker").await;
}

#[tokio::test]
async fn a_dead_supervisor_ends_the_node() {
    let engine = start().await;
    engine.node.arm("supervisor");
    engine.node.arm("executor");
    ask(&engine, 8).await;
    ends_by(engine, "supervisor").await;
}

/// A device's actor that panics is built again, and no request is silent.
async fn is_built_again(name: &'static str) {
    let engine = start().await;
    engine.node.arm(name);
    ask(&engine, 8).await;
    let rebuilt = async {
        loop {
            let message = engine.node.vitals().message(Timestamp::now());
            let device = &message.devices[0];
            if device.up && device.rebuilds == 1 {
                return device.id.clone();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert_eq!(timeout(PATIENCE, rebuilt).await, Ok(DeviceId::new("cpu:0")));
    for answer in ask(&engine, 8).await {
        assert_eq!(answer.expect("as before").usage.completion_tokens, 24);
    }
    assert!(engine.is_ready());
    engine.shutdown().await.expect("the stop ends");
}

#[tokio::test]
async fn a_dead_batcher_is_built_again() {
    is_built_again("batcher").await;
}

#[tokio::test]
async fn a_dead_executor_is_built_again() {
    is_built_again("executor").await;
}

#[tokio::test]
async fn a_dead_reply_actor_is_built_again() {
    is_built_again("reply").await;
}
