//! The prompt of a completion, in its four shapes.

use std::borrow::Cow;

use crate::error::{Error, Result};
use crate::request::{Prompt, Value};

const SHAPES: &str = "a string, an array of strings, an array of token ids, or an array of those";

/// Reads the value of `prompt`: a string, token ids, or an array of either; at least one prompt.
///
/// # Errors
/// `invalid`, naming the member.
pub(in crate::http) fn read(value: Value, path: &str) -> Result<Vec<Prompt>> {
    let items = match value {
        Value::Text(text) => return Ok(vec![Prompt::Text(text)]),
        Value::List(items) => items,
        other => return Err(other.refused(path, SHAPES)),
    };
    match items.first() {
        None => Err(Error::invalid(path, "expected at least one prompt, got an empty array")),
        Some(Value::Int(_)) => {
            Value::List(items).token_ids(path).map(|ids| vec![Prompt::TokenIds(ids)])
        }
        Some(Value::Text(_)) => each(items, path, |item, path| item.text(path).map(Prompt::Text)),
        Some(Value::List(_)) => {
            each(items, path, |item, path| item.token_ids(path).map(Prompt::TokenIds))
        }
        Some(other) => Err(other.refused(&format!("{path}[0]"), SHAPES)),
    }
}

fn each(
    items: Vec<Value>,
    path: &str,
    read: impl Fn(Value, &str) -> Result<Prompt>,
) -> Result<Vec<Prompt>> {
    let items = items.into_iter().enumerate();
    items.map(|(i, item)| read(item, &format!("{path}[{i}]"))).collect()
}

/// Where the client wrote one of so many prompts.
pub(in crate::http) fn path_of(prompt: usize, count: usize) -> Cow<'static, str> {
    if count == 1 { "prompt".into() } else { format!("prompt[{prompt}]").into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::reader::json;

    fn with_prompt(prompt: &str) -> Result<Vec<Prompt>> {
        read(json(prompt.as_bytes()).expect("JSON"), "prompt")
    }

    fn fault<T: std::fmt::Debug>(result: Result<T>) -> (Kind, String) {
        let error = result.expect_err("a fault");
        (error.kind, error.param.unwrap_or_default())
    }

    #[test]
    fn prompts_come_in_four_shapes() {
        let text = |text: &str| Prompt::Text(text.to_owned());
        assert_eq!(with_prompt(r#""x""#), Ok(vec![text("x")]));
        assert_eq!(with_prompt(r#"["x","y"]"#), Ok(vec![text("x"), text("y")]));
        assert_eq!(with_prompt("[1,2]"), Ok(vec![Prompt::TokenIds(vec![1, 2])]));
        assert_eq!(
            with_prompt("[[1],[]]"),
            Ok(vec![Prompt::TokenIds(vec![1]), Prompt::TokenIds(vec![])])
        );
    }

    #[test]
    fn one_of_several_prompts_has_its_place_in_the_path() {
        assert_eq!((path_of(0, 1), path_of(1, 2)), ("prompt".into(), "prompt[1]".into()));
    }

    #[test]
    fn faulty_prompts_are_named() {
        let cases = [
            ("[]", "prompt"),
            ("{}", "prompt"),
            ("1", "prompt"),
            ("[{}]", "prompt[0]"),
            ("[1,\"x\"]", "prompt[1]"),
            ("[\"x\",1]", "prompt[1]"),
            ("[[1],2]", "prompt[1]"),
            ("[[1,-1]]", "prompt[0][1]"),
            ("[4294967296]", "prompt[0]"),
            ("[1.5]", "prompt[0]"),
        ];
        for (prompt, name) in cases {
            assert_eq!(fault(with_prompt(prompt)), (Kind::Invalid, name.to_owned()), "{prompt}");
        }
    }
}
