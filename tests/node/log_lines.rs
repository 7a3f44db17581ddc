//! Goal: the log tells what somebody who serves a model has to know: what its checkpoint lacks, what of a request was ignored, and how
//! the bus's requests ended, and what steps cost. Method: nodes with edited copies of the demo model and with requests of each kind; their
//! JSON lines are read.

use inferno_node::bus::client::ClientError;
use inferno_node::error::Kind;
use inferno_node::executor::CostModel;
use serde_json::{Value, json};

use super::harness::{ModelCopy, NodeProcess, client, collect, json_lines, program, request};

const NO_BUS: &str = "[bus]\nmode = \"off\"\n";

/// What a node warned of in the files of its models: the model, the text.
fn warnings(node: &NodeProcess) -> Vec<(String, String)> {
    let lines = json_lines(&node.log());
    let warnings = lines.iter().filter(|line| line["level"] == "WARN");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let warnings = warnings
        .map(|line| (text(&line["fields"]["model"]), text(&line["fields"]["message"])))
        // The machine's memory, not the files.
        .filter(|(model, text)| !model.is_empty() && !text.starts_with("the KV cache gets"));
    warnings.collect()
}

#[tokio::test]
async fn a_load_tells_what_the_checkpoint_lacks_and_what_of_it_is_not_honoured() {
    let dir = tempfile::tempdir().expect("a directory");
    let silent = ModelCopy::named("silent", dir.path()).edit("tokenizer_config.json", |config| {
        config.as_object_mut().expect("an object").remove("chat_template");
    });
    let faulty = ModelCopy::named("faulty", dir.path()).edit("tokenizer_config.json", |config| {
        config["chat_template"] = json!("{{ messages | no_such_filter }}");
    });
    let odd = ModelCopy::named("odd", dir.path()).edit("generation_config.json", |config| {
        config["num_beams"] = json!(4);
        config["length_penalty"] = json!(1.0);
        config["suppress_tokens"] = json!([7]);
        config["stop_strings"] = json!([]);
    });
    let larger = ModelCopy::named("larger", dir.path()).edit("tokenizer_config.json", |config| {
        config["added_tokens_decoder"]["3072"] = json!({"content": "<|late|>", "special": true});
    });
    let copies = [silent, faulty, odd, larger];
    let sections = copies.iter().map(|copy| copy.section.as_str()).collect::<String>();
    let node = NodeProcess::start_sim(0, &(sections + NO_BUS));
    let warnings = warnings(&node);
    let of = |name: &str| -> &str {
        let mut texts = warnings.iter().filter(|(model, _)| model == name).map(|(_, text)| text);
        let text = texts.next().unwrap_or_else(|| panic!("nothing of {name}: {warnings:#?}"));
        assert_eq!(texts.next(), None, "one line each");
        text
    };
    assert!(warnings.iter().all(|(model, _)| model != "demo"), "in order: {warnings:#?}");
    let none = "the checkpoint has no chat template: requests with messages are refused";
    assert_eq!(of("silent"), none);
    let cannot = "the chat template cannot be rendered, requests with messages are refused: ";
    let why = of("faulty").strip_prefix(cannot).expect("what is wrong");
    assert!(why.contains("no_such_filter") && why.contains("tokenizer_config.json"), "{why}");
    let keys = "generation_config.json: not honoured here: num_beams, suppress_tokens";
    assert_eq!(of("odd"), keys);
    assert_eq!(of("larger"), "the tokenizer has 3073 ids, the model only 3072");
    for model in ["silent", "faulty"] {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "Hi"}]});
        assert_eq!(node.post("/v1/chat/completions", &body).await.status().as_u16(), 400);
    }
}

#[tokio::test]
async fn members_that_were_ignored_are_named_with_their_request() {
    let mut command = program();
    command.args(["serve", "models/demo", "--device", "sim:0", "--port", "0", "--bus-mode", "off"]);
    command.args(["--set", "http.unknown_parameters=ignore"]);
    let mut node = NodeProcess::run_in(tempfile::tempdir().expect("a directory"), command);
    node.wait_ready();
    let ask = async |more: Value| {
        let mut body = json!({"model": "demo", "prompt": "Hushed words", "max_tokens": 1});
        let members = body.as_object_mut().expect("an object");
        members.extend(more.as_object().expect("an object").clone());
        assert_eq!(node.post("/v1/completions", &body).await.status().as_u16(), 200);
    };
    ask(json!({"request_id": "plain"})).await;
    ask(json!({"request_id": "odd", "top_q": "Hushed", "a,b": null})).await;
    let said = node.said("ignored unknown members");
    assert_eq!(said.len(), 1, "{said:#?}");
    assert_eq!(said[0]["level"], "INFO");
    assert_eq!(said[0]["fields"]["request_id"], "odd");
    let members = said[0]["fields"]["members"].as_str().expect("a text");
    let mut members: Vec<&str> = members.split(", ").collect();
    members.sort_unstable();
    assert_eq!(members, ["a%2Cb", "top_q"]);
    assert!(!node.log().contains("Hushed"), "{}", node.log());
}

#[tokio::test]
async fn the_buss_requests_have_one_line_each_with_their_door() {
    let node = NodeProcess::start_sim(0, "[bus]\nmode = \"managed\"\n");
    let bus = client(&node.nats()).await;
    let mut good = request(3, 1);
    good["request_id"] = "good".into();
    good["prompt"] = "Hushed words".into();
    let mut generation = bus.generate("demo", good.clone()).await.expect("accepted");
    collect(&mut generation).await.expect("streams");
    // Found by admission, then by the reader.
    for (id, member, value) in [("hot", "temperature", json!(9)), ("odd", "top_q", json!(1))] {
        let mut bad = good.clone();
        bad["request_id"] = id.into();
        bad["params"][member] = value;
        match bus.generate("demo", bad).await.map(|generation| generation.id().clone()) {
            Err(ClientError::Refused(error)) => assert_eq!(error.kind, Kind::Invalid),
            other => panic!("{other:?}"),
        }
    }
    let ended = node.said("ended");
    assert_eq!(ended.len(), 1, "{ended:#?}");
    let fields = &ended[0]["fields"];
    let expected = json!({"door": "bus", "request_id": "good", "model": "demo", "reason": "length", "completion_tokens": 3});
    for (name, value) in expected.as_object().expect("an object") {
        assert_eq!(&fields[name], value, "{name} in {fields}");
    }
    for name in ["prompt_tokens", "queue_ms", "ttft_ms", "total_ms"] {
        assert!(fields[name].is_number(), "{name} in {fields}");
    }
    let refused = node.said("refused");
    let words = |line: &Value| {
        ["door", "request_id", "model", "kind", "param"].map(|name| line["fields"][name].clone())
    };
    let expected = [
        ["bus", "hot", "demo", "invalid", "params.temperature"],
        ["bus", "odd", "demo", "invalid", "params.top_q"],
    ];
    assert_eq!(refused.iter().map(words).collect::<Vec<_>>(), expected);
    assert!(!node.log().contains("Hushed"), "{}", node.log());
}

#[tokio::test]
async fn a_node_that_ends_says_what_its_steps_cost_as_sim_reads_it() {
    let costs = "step_us = 500\nprefill_us_per_token = 20\nnum_blocks = 4096\n";
    let mut node = NodeProcess::spawn_sim_that(costs, NO_BUS);
    node.wait_ready();
    for round in 1..=8 {
        let prompt = format!("{round} {}", "words ".repeat(round * 3));
        let body = json!({"model": "demo", "prompt": prompt, "max_tokens": 2 + round});
        assert_eq!(node.post("/v1/completions", &body).await.status().as_u16(), 200);
    }
    let series =
        ["inferno_step_cost_microseconds{", "model=\"demo\"", "key=\"prefill_us_per_token\""];
    assert!(node.metric(&series).await > 0.0);
    node.signal("-TERM");
    assert!(node.wait().success(), "{}", node.log());
    let said = node.said("what its steps cost");
    assert_eq!(said.len(), 1, "{said:#?}");
    let costs = said[0]["fields"]["costs"].as_str().expect("a text");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("costs.json");
    std::fs::write(&path, costs).expect("writes");
    let read = CostModel::read(&path).expect("the file of a sim device");
    assert_eq!(read.num_blocks, Some(4096));
    assert!(read.prefill_us_per_token > 0.0, "{read:?}");
}
