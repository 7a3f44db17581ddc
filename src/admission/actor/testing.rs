//! A model, observers and requests for unit tests of admission.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use crate::admission::reserved::{Hold, Reserved};
use crate::admission::validate::check_params;
use crate::admission::{Config, Ledger};
use crate::clock::Timestamp;
use crate::door::RunningObserver;
use crate::ids::{ModelId, RequestId, SequenceId};
use crate::models::ServedModel;
use crate::reply::testing::Collected;
use crate::request::{
    Caller, DEFAULT_PRIORITY, DefaultLength, Handle, Params, Prompt, Request, Sink, SoFar,
};
use crate::telemetry::Metrics;
use crate::tokenizer::{ChatTemplate, testing};

const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}\
    {% if m.role == 'wizard' %}{{ raise_exception('no wizards') }}{% endif %}\
    {{ m.role }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";

/// A model of bytes with a context of 64.
pub(crate) fn model(name: &str) -> Arc<ServedModel> {
    let tokens = serde_json::json!({"bos_token": "<s>", "eos_token": "</s>"});
    Arc::new(ServedModel {
        name: name.into(),
        id: ModelId(5),
        tokenizer: testing::bytes(),
        chat_template: Some(ChatTemplate::new(TEMPLATE, &tokens).expect("compiles")),
        max_seq_len: 64,
        vocab_size: 258,
        end_token_ids: vec![testing::END],
        defaults: Params::default(),
        default_length: None,
        digest: String::new(),
        created: 0,
        in_use: AtomicU64::new(0),
        last_used: AtomicU64::new(0),
    })
}

/// A request that is being tokenized, in a ledger of its own.
pub(crate) fn reserved(sink: &Collected) -> Reserved {
    let model = model("m");
    let handle = Handle::new(RequestId::generate(), SequenceId(1));
    let permit = Ledger::new(Vec::new())
        .reserve(&handle, &model, (1, 1), Timestamp::default())
        .map_err(|_| ())
        .expect("an empty ledger");
    let config = Config::default();
    Reserved {
        handle,
        caller: Caller::default(),
        params: check_params(Params::default(), &model, &config, 1).expect("defaults"),
        bad_words: Vec::new(),
        echo: None,
        so_far: SoFar::default(),
        is_question: false,
        model,
        prompt_field: "prompt",
        stream: true,
        priority: DEFAULT_PRIORITY,
        default_length: DefaultLength::Context,
        received_at: Timestamp::default(),
        metrics: Arc::new(Metrics::new("test")),
        hold: Some(Hold { sink: Box::new(sink.clone()), permit }),
    }
}

/// A request to the model `m`.
pub(crate) fn request(id: &str, prompt: Prompt, sink: impl Sink + 'static) -> Request {
    Request {
        id: RequestId::parse(id).expect("an id"),
        caller: Caller::default(),
        model: "m".into(),
        prompt,
        so_far: SoFar::default(),
        is_question: false,
        params: Params::default(),
        stream: true,
        priority: DEFAULT_PRIORITY,
        default_length: DefaultLength::Context,
        received_at: Timestamp::now(),
        sink: Box::new(sink),
    }
}

/// What an observer heard.
#[derive(Default)]
pub(crate) struct Observed(Mutex<Vec<String>>);

impl Observed {
    pub(crate) fn words(&self) -> Vec<String> {
        self.0.lock().expect("no test panics in it").clone()
    }

    fn add(&self, what: &str, id: &RequestId) {
        self.0.lock().expect("no test panics in it").push(format!("{what} {id}"));
    }
}

impl RunningObserver for Observed {
    fn started(&self, id: &RequestId) {
        self.add("started", id);
    }

    fn ended(&self, id: &RequestId) {
        self.add("ended", id);
    }
}
