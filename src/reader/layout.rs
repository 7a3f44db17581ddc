//! What a door's clients call the members of a request, for reading them and for the errors that come later.

use std::borrow::Cow;
use std::sync::Arc;

use crate::error::Error;
use crate::request::{Event, Handle, Params, Sink, SinkClosed};

/// How a door's clients write a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// The object that holds the parameters; none: they stand at the top of the body.
    pub params_in: Option<&'static str>,
    /// What an absent `stream` means.
    pub streams: bool,
    /// Whether a request can go on without the connection it came by: others may listen to its answer.
    pub detaches: bool,
    /// The member that says `max_tokens`.
    pub max_tokens: &'static str,
    /// The member that a prompt of text or token ids came in; none: it is called as the node calls it.
    pub prompt: Option<Cow<'static, str>>,
}

impl Layout {
    /// An error of a later stage, which names a member as the node does, with the path that the client wrote.
    #[must_use]
    pub fn rename(&self, error: Error) -> Error {
        match error.param.as_deref().map(|name| self.path_of(name)) {
            Some(path) => error.with_param(path),
            None => error,
        }
    }

    fn path_of(&self, name: &str) -> String {
        let written = match (name, &self.prompt) {
            ("prompt" | "prompt_token_ids", Some(path)) => path.as_ref(),
            ("max_tokens", _) => self.max_tokens,
            _ => name,
        };
        match self.params_in.filter(|_| Params::FIELDS.contains(&name)) {
            Some(object) => format!("{object}.{written}"),
            None => written.to_owned(),
        }
    }
}

/// A door's sink, whose errors name members as its client wrote them.
pub struct RenamingSink<S> {
    /// The client's names.
    pub layout: Layout,
    /// Where the answer goes.
    pub sink: S,
}

impl<S: Sink> Sink for RenamingSink<S> {
    fn accepted(&mut self, handle: &Arc<Handle>) {
        self.sink.accepted(handle);
    }

    fn refused(&mut self, error: &Error) {
        self.sink.refused(&self.layout.rename(error.clone()));
    }

    #[inline]
    fn lend(&mut self, event: &mut Event) -> Result<(), SinkClosed> {
        if let Some(error) = &mut event.error {
            **error = self.layout.rename(error.as_ref().clone());
        }
        self.sink.lend(event)
    }

    fn is_closed(&self) -> bool {
        self.sink.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::RequestId;

    fn on_bus() -> Layout {
        Layout {
            params_in: Some("params"),
            streams: true,
            detaches: true,
            max_tokens: "max_tokens",
            prompt: None,
        }
    }

    /// Keeps what errors name.
    #[derive(Default)]
    struct NamesSink(Vec<Option<String>>);

    impl Sink for NamesSink {
        fn accepted(&mut self, _: &Arc<Handle>) {}

        fn refused(&mut self, error: &Error) {
            self.0.push(error.param.clone());
        }

        fn lend(&mut self, event: &mut Event) -> Result<(), SinkClosed> {
            self.0.push(event.error.take().and_then(|error| error.param));
            Err(SinkClosed)
        }

        fn is_closed(&self) -> bool {
            true
        }
    }

    #[test]
    fn refusals_and_failures_reach_the_door_in_the_clients_names() {
        let mut sink = RenamingSink { layout: on_bus(), sink: NamesSink::default() };
        let error = Error::invalid("top_p", "no");
        sink.refused(&error);
        let failed = Event { error: Some(Box::new(error)), ..Event::new(RequestId::generate()) };
        assert_eq!(sink.event(failed), Err(SinkClosed));
        assert!(sink.is_closed(), "it says what the door's sink says");
        assert_eq!(sink.sink.0, [Some("params.top_p".to_owned()), Some("params.top_p".to_owned())]);
    }

    #[test]
    fn a_later_error_gets_the_path_that_the_client_wrote() {
        let on_bus = on_bus();
        let over_http = Layout {
            params_in: None,
            streams: false,
            detaches: false,
            max_tokens: "max_completion_tokens",
            prompt: Some("prompt[1]".into()),
        };
        let cases = [
            ("top_p", "params.top_p", "top_p"),
            ("max_tokens", "params.max_tokens", "max_completion_tokens"),
            ("prompt", "prompt", "prompt[1]"),
            ("prompt_token_ids", "prompt_token_ids", "prompt[1]"),
            ("messages", "messages", "messages"),
            ("request_id", "request_id", "request_id"),
        ];
        for (name, bus, http) in cases {
            let error = Error::invalid(name, "no");
            assert_eq!(on_bus.rename(error.clone()).text(), format!("{bus}: no"));
            assert_eq!(over_http.rename(error).text(), format!("{http}: no"));
        }
        assert_eq!(on_bus.rename(Error::internal("no")), Error::internal("no"));
    }
}
