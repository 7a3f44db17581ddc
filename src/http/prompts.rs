//! The prompt of a completion, in its four shapes.

use super::fields::{integer, wrong};
use super::json::Json;
use crate::error::{Error, Result};
use crate::request::Prompt;

/// Reads the value of `prompt`: a string, token ids, or an array of either; at least one prompt.
///
/// # Errors
/// `invalid`, naming the field.
pub(super) fn read(json: Json<'_>) -> Result<Vec<Prompt>> {
    const EXPECTED: &str =
        "a string, an array of strings, an array of token ids, or an array of those";
    let items = match json {
        Json::Text(text) => return Ok(vec![Prompt::Text(text.into_owned())]),
        Json::Array(items) => items,
        other => return Err(wrong("prompt", EXPECTED, &other)),
    };
    match items.first() {
        None => Err(Error::invalid("prompt", "expected at least one prompt, got an empty array")),
        Some(Json::Integer(_)) => {
            Ok(vec![Prompt::TokenIds(token_ids(&items, |i| format!("prompt[{i}]"))?)])
        }
        Some(Json::Text(_)) => {
            let prompts = items.into_iter().enumerate().map(|(i, item)| match item {
                Json::Text(text) => Ok(Prompt::Text(text.into_owned())),
                other => Err(wrong(format!("prompt[{i}]"), "a string", &other)),
            });
            prompts.collect()
        }
        Some(Json::Array(_)) => {
            let prompts = items.iter().enumerate().map(|(i, item)| match item {
                Json::Array(ids) => {
                    token_ids(ids, |j| format!("prompt[{i}][{j}]")).map(Prompt::TokenIds)
                }
                other => Err(wrong(format!("prompt[{i}]"), "an array of token ids", other)),
            });
            prompts.collect()
        }
        Some(other) => Err(wrong("prompt[0]", EXPECTED, other)),
    }
}

fn token_ids(items: &[Json<'_>], name: impl Fn(usize) -> String) -> Result<Vec<u32>> {
    let ids = items.iter().enumerate().map(|(i, item)| {
        let id = integer(item, 0, u32::MAX.into(), || name(i))?;
        Ok(id as u32)
    });
    ids.collect()
}

#[cfg(test)]
mod tests {
    use super::super::json::parse;
    use super::*;
    use crate::error::Kind;

    fn with_prompt(prompt: &str) -> Result<Vec<Prompt>> {
        read(parse(prompt.as_bytes()).expect("JSON"))
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
