//! From a source to a tree.

pub(super) mod ast;
mod expressions;
pub(super) mod lexer;
pub(super) mod parser;
mod statements;
