//! The two endpoints that generate, and their names on the wire.

use crate::ids::RequestId;

/// Which of the two endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Api {
    /// `/v1/completions`
    Completions,
    /// `/v1/chat/completions`
    Chat,
}

impl Api {
    /// What stands before the request's id in the reply's.
    pub(super) fn id_prefix(self) -> &'static str {
        match self {
            Api::Completions => "cmpl-",
            Api::Chat => "chatcmpl-",
        }
    }

    /// The requests that an id in a path may mean: as it stands first, because a client's own may begin like the prefix of a reply.
    pub(super) fn requests_named(id: &str) -> Vec<RequestId> {
        let stripped = [Api::Chat, Api::Completions].map(|api| id.strip_prefix(api.id_prefix()));
        let candidates = std::iter::once(id).chain(stripped.into_iter().flatten());
        candidates.filter_map(|candidate| RequestId::parse(candidate).ok()).collect()
    }

    /// `object` of a reply, or of one of its chunks.
    pub(super) fn object(self, chunk: bool) -> &'static str {
        match (self, chunk) {
            (Api::Completions, _) => "text_completion",
            (Api::Chat, false) => "chat.completion",
            (Api::Chat, true) => "chat.completion.chunk",
        }
    }
}
