//! Any value that both encodings can hold, as it was written.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::encode::Encoding;
use crate::error::{Error, Kind, Result};

/// Any value of either encoding; an object keeps its members in order, doubles included.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Tree {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Tree>),
    Map(Vec<(String, Tree)>),
}

impl fmt::Display for Tree {
    /// Short: values that could be long are named by their type.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tree::Null => f.write_str("null"),
            Tree::Bool(value) => write!(f, "{value}"),
            Tree::Int(n) => write!(f, "{n}"),
            Tree::Float(x) => write!(f, "{x:?}"),
            Tree::Text(text) if text.len() <= 32 => write!(f, "{text:?}"),
            Tree::Text(text) => write!(f, "a string of {} bytes", text.len()),
            Tree::List(items) => write!(f, "an array of {}", items.len()),
            Tree::Map(_) => f.write_str("an object"),
        }
    }
}

/// Reads the one value that a body is.
///
/// # Errors
/// `invalid`: not this encoding, or bytes after the end.
pub(super) fn read(encoding: Encoding, body: &[u8]) -> Result<Tree> {
    let wrong = |why: String| Error::new(Kind::Invalid, format!("expected {encoding}: {why}"));
    match encoding {
        Encoding::Json => serde_json::from_slice(body).map_err(|error| wrong(error.to_string())),
        Encoding::Msgpack => {
            let mut rest = body;
            let mut reader = rmp_serde::Deserializer::new(&mut rest);
            // As JSON has it: deep enough for anything of ours, and far from the stack's end.
            reader.set_max_depth(128);
            let tree = Tree::deserialize(&mut reader).map_err(|error| wrong(error.to_string()))?;
            drop(reader);
            match rest.len() {
                0 => Ok(tree),
                more => Err(wrong(format!("{more} bytes after its end"))),
            }
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON can hold")
    }

    fn visit_unit<E>(self) -> std::result::Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_none<E>(self) -> std::result::Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> std::result::Result<Tree, D::Error> {
        Tree::deserialize(inner)
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Tree, E> {
        Ok(Tree::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Tree, E> {
        Ok(Tree::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Tree, E> {
        Ok(Tree::Int(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<Tree, E> {
        Ok(Tree::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> std::result::Result<Tree, E> {
        Ok(Tree::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> std::result::Result<Tree, E> {
        Ok(Tree::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Tree, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Tree::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Tree, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Tree::Map(entries))
    }
}
