//! Text to token ids and back, and chat templates: what the checkpoint's tokenizer files say.

/// The checkpoint's `tokenizer.json`.
pub struct Tokenizer;

/// The checkpoint's chat template.
pub struct ChatTemplate;
