//! What a request may say, read by one piece of code for every door: the same members, the same neutral values, the same errors.
//!
//! ```text
//! bytes → json | msgpack → Value → Fields → RequestOptions, messages … → what is left is refused
//! ```
//!
//! A door keeps what is its own: the encoding, where its prompt stands, the names that its clients alone write. Types and names are
//! judged here, ranges by admission, whose errors a [`RenamingSink`] gives the client's names. An error names a member with its path.

use crate::error::{Error, Result};
use crate::ids::RequestId;
use crate::request::{DEFAULT_PRIORITY, Fields, Params, Value};

mod bytes;
mod known;
mod layout;
mod messages;
mod neutral;

pub use bytes::{json, msgpack};
pub use layout::{Layout, RenamingSink};
pub use messages::messages;
pub use neutral::{MemberPlace, known_members, take_neutral};
use neutral::{Neutral, is_known};

/// What a body says beside its prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestOptions {
    /// The client's id, if it gave one.
    pub request_id: Option<RequestId>,
    /// As given.
    pub params: Params,
    /// False: one answer with everything.
    pub stream: bool,
    /// 0 to 255, 255 first.
    pub priority: u8,
    /// Goes on when nobody listens.
    pub detached: bool,
}

impl RequestOptions {
    /// Takes every member that stands beside the prompt, whichever door the body came through.
    ///
    /// # Errors
    /// `invalid` or `unsupported`, naming the member.
    pub fn read(body: &mut Fields<'_>, layout: &Layout) -> Result<Self> {
        let (params, stream) = match layout.params_in {
            None => parameters(body)?,
            Some(name) => {
                let is_parameter = |member: &str| {
                    member == "stream"
                        || Params::FIELDS.contains(&member)
                        || is_known(MemberPlace::Params, member)
                };
                body.refuse_misplaced(is_parameter, &format!("in {name}, not beside it"))?;
                let inside = body.object(name)?;
                let mut inside = inside.unwrap_or_else(|| Fields::new(Vec::new(), name));
                let read = parameters(&mut inside)?;
                let is_beside = |member: &str| BESIDE_PARAMS.contains(&member);
                inside.refuse_misplaced(is_beside, &format!("beside {name}, not in it"))?;
                inside.finish()?;
                read
            }
        };
        let priority = |value: Value, path: &str| value.integer(path, 0, u8::MAX.into());
        let priority = body.optional("priority", priority)?;
        take_neutral(body, MemberPlace::Request)?;
        Ok(Self {
            request_id: body.optional("request_id", request_id)?,
            params,
            stream: stream.unwrap_or(layout.streams),
            priority: priority.map_or(DEFAULT_PRIORITY, |priority| priority as u8),
            detached: body
                .optional("detached", |value, path| detached(value, path, layout))?
                .unwrap_or(false),
        })
    }
}

/// What belongs beside the parameters, where these have an object of their own.
const BESIDE_PARAMS: &[&str] =
    &["request_id", "priority", "detached", "prompt", "messages", "prompt_token_ids"];

fn parameters(fields: &mut Fields<'_>) -> Result<(Params, Option<bool>)> {
    let params = Params::read(fields)?;
    let stream = fields.optional("stream", Value::boolean)?;
    take_neutral(fields, MemberPlace::Params)?;
    Ok((params, stream))
}

fn detached(value: Value, path: &str, layout: &Layout) -> Result<bool> {
    let detached = value.boolean(path)?;
    if detached && !layout.detaches {
        let text =
            "a request that comes by this door ends with its connection; expected false or nothing";
        return Err(Error::unsupported(path, text));
    }
    Ok(detached)
}

fn request_id(value: Value, path: &str) -> Result<RequestId> {
    RequestId::parse(&value.text(path)?).map_err(|error| error.with_param(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    const FLAT: Layout = Layout {
        params_in: None,
        streams: false,
        detaches: true,
        max_tokens: "max_tokens",
        prompt: None,
    };

    fn nested() -> Layout {
        Layout { params_in: Some("params"), streams: true, ..FLAT }
    }

    fn read(body: &str, layout: &Layout) -> Result<RequestOptions> {
        let mut fields = Fields::of_body(json(body.as_bytes())?, None)?;
        let options = RequestOptions::read(&mut fields, layout)?;
        fields.finish()?;
        Ok(options)
    }

    #[test]
    fn a_layout_says_where_parameters_stand_and_what_an_absent_stream_means() {
        let flat = read(r#"{"seed":7,"priority":200,"detached":true,"request_id":"r"}"#, &FLAT);
        let flat = flat.expect("valid");
        assert_eq!((flat.params.seed, flat.stream, flat.priority), (Some(7), false, 200));
        assert!(flat.detached && flat.request_id.is_some());
        let inside = r#"{"params":{"seed":7},"priority":200,"detached":true,"request_id":"r"}"#;
        assert_eq!(read(inside, &nested()), Ok(RequestOptions { stream: true, ..flat }));
        let least = read("{}", &nested()).expect("valid");
        assert_eq!((least.priority, least.detached, least.request_id), (128, false, None));
    }

    #[test]
    fn a_request_is_detached_only_where_its_answer_outlives_the_connection() {
        let bound = Layout { detaches: false, ..nested() };
        let error = read(r#"{"detached":true}"#, &bound).expect_err("ends with its connection");
        assert_eq!((error.kind, error.param.as_deref()), (Kind::Unsupported, Some("detached")));
        for body in [r#"{"detached":false}"#, r#"{"detached":null}"#, "{}"] {
            assert!(!read(body, &bound).expect(body).detached);
        }
        assert_eq!(read(r#"{"detached":true}"#, &nested()).map(|read| read.detached), Ok(true));
    }

    #[test]
    fn a_member_that_stands_in_the_wrong_object_is_told_the_right_one() {
        let said = |body: &str| read(body, &nested()).expect_err(body).text();
        let text = said(r#"{"max_tokens":5}"#);
        assert_eq!(text, "max_tokens: expected in params, not beside it");
        let text = said(r#"{"stream":false}"#);
        assert_eq!(text, "stream: expected in params, not beside it");
        let text = said(r#"{"tools":[]}"#);
        assert_eq!(text, "tools: expected in params, not beside it");
        let text = said(r#"{"params":{"priority":5}}"#);
        assert_eq!(text, "params.priority: expected beside params, not in it");
        let text = said(r#"{"params":{"max_token":5}}"#);
        assert_eq!(text, "params.max_token: unknown parameter; did you mean max_tokens?");
    }

    #[test]
    fn an_error_is_the_same_in_both_layouts_but_for_the_path() {
        let bad = [
            r#""seed":"x""#,
            r#""stop":[1]"#,
            r#""stream":1"#,
            r#""tools":[1]"#,
            r#""guided_json":{}"#,
            r#""top_q":1"#,
            r#""logit_bias":{"x":1}"#,
        ];
        for member in bad {
            let flat = read(&format!("{{{member}}}"), &FLAT).expect_err(member);
            let inside =
                read(&format!("{{\"params\":{{{member}}}}}"), &nested()).expect_err(member);
            assert_eq!(inside.text(), format!("params.{}", flat.text()));
            assert_eq!(inside.kind, flat.kind);
        }
        for member in
            [r#""priority":-1"#, r#""request_id":"a b""#, r#""detached":0"#, r#""tenant":1"#]
        {
            let body = format!("{{{member}}}");
            assert_eq!(
                read(&body, &FLAT).expect_err(member),
                read(&body, &nested()).expect_err(member)
            );
        }
    }
}
