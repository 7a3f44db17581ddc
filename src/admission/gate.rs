//! Who may come in: whether the gate is open, which models are behind it, and what is said against a request.

use std::collections::HashMap;
use std::sync::Arc;

use super::Config;
use super::reserved::{Reserved, cancelled};
use super::validate;
use crate::door::not_loaded;
use crate::error::{Error, Kind, Result};
use crate::models::ServedModel;
use crate::request::{Params, Request};

/// The state of the gate.
pub(super) struct Gate {
    pub(super) config: Config,
    models: HashMap<String, Arc<ServedModel>>,
    expected_models: Vec<String>,
    draining: bool,
    no_device: bool,
}

impl Gate {
    /// An open one with no model behind it yet.
    pub(super) fn new(config: Config, expected_models: Vec<String>) -> Self {
        let models = HashMap::new();
        Self { config, models, expected_models, draining: false, no_device: false }
    }

    pub(super) fn model_up(&mut self, model: Arc<ServedModel>) {
        self.models.insert(model.name.clone(), model);
    }

    /// Who takes a model down does not expect it back.
    pub(super) fn model_down(&mut self, name: &str) {
        self.models.remove(name);
        self.expected_models.retain(|expected| expected != name);
    }

    pub(super) fn devices_up(&mut self, count: usize) {
        self.no_device = count == 0;
    }

    pub(super) fn drain(&mut self) {
        self.draining = true;
    }

    /// What can be said of a request before its prompt is tokenized. Takes its parameters; gives them checked, with the model
    /// and the prompt's size in bytes.
    pub(super) fn check(&self, request: &mut Request) -> Result<(Arc<ServedModel>, Params, usize)> {
        self.check_open()?;
        let model = self.model(&request.model)?;
        let params = std::mem::take(&mut request.params);
        let params = validate::check_params(params, model, &self.config, rand::random())?;
        validate::check_samples(&params, request.stream, &self.config)?;
        validate::check_so_far(request, &params, model)?;
        validate::check_kind_of_prompt(&params, &request.prompt)?;
        let bytes = validate::check_prompt(&request.prompt, model, &self.config)?;
        if request.sink.is_closed() {
            return Err(cancelled());
        }
        Ok((Arc::clone(model), params, bytes))
    }

    /// What is to be said of a request once its tokens are known; much may have changed meanwhile. Gives the tokens and
    /// `max_tokens`.
    pub(super) fn decide(
        &self,
        reserved: &Reserved,
        token_ids: Result<Vec<u32>>,
    ) -> Result<(Vec<u32>, u32)> {
        if reserved.is_unwanted() {
            return Err(cancelled());
        }
        let token_ids = token_ids?;
        self.check_open()?;
        let model = self.model(&reserved.model.name)?;
        if !Arc::ptr_eq(model, &reserved.model) {
            return Err(self.later(
                Kind::Unavailable,
                "the model was reloaded while the prompt was tokenized",
            ));
        }
        validate::check_token_ids(&token_ids, reserved.prompt_field, model)?;
        let max_tokens = validate::completion_length(
            &reserved.params,
            // It is below max_seq_len.
            token_ids.len() as u32,
            reserved.default_length,
            &self.config,
            model,
        )?;
        let going_on = reserved.so_far.samples.iter().filter(|begun| begun.finish_reason.is_none());
        let most = going_on.map(|begun| begun.tokens.len()).max().unwrap_or(0);
        if most > 0 && most >= max_tokens as usize {
            let text = format!("expected fewer tokens than max_tokens, {max_tokens}, got {most}");
            return Err(Error::invalid("so_far", text));
        }
        Ok((token_ids, max_tokens))
    }

    fn check_open(&self) -> Result<()> {
        if self.draining {
            let text = "the node is draining and takes no new requests";
            return Err(self.later(Kind::Draining, text));
        }
        if self.no_device {
            return Err(self.later(Kind::Unavailable, "no device is up"));
        }
        Ok(())
    }

    fn model(&self, name: &str) -> Result<&Arc<ServedModel>> {
        if let Some(model) = self.models.get(name) {
            return Ok(model);
        }
        if self.expected_models.iter().any(|expected| expected == name) {
            return Err(self.later(Kind::Unavailable, format!("the model {name:?} is not up yet")));
        }
        Err(not_loaded(name, self.models.keys().map(String::as_str)))
    }

    /// A refusal that may not stand for long.
    pub(super) fn later(&self, kind: Kind, text: impl Into<String>) -> Error {
        Error::new(kind, text).with_retry_after_ms(self.config.retry_after_ms)
    }
}
