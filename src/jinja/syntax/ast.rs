//! A template as a tree.

use std::sync::Arc;

use super::super::PyValue;

pub(in crate::jinja) type Name = Arc<str>;
pub(in crate::jinja) type Statements = Vec<Statement>;

/// A statement and its line.
#[derive(Debug)]
pub(in crate::jinja) struct Statement {
    pub line: u32,
    pub kind: StatementKind,
}

#[derive(Debug)]
pub(in crate::jinja) enum StatementKind {
    Text(Name),
    Output(Expr),
    /// Tests with their bodies, then what is done if none holds.
    If(Vec<(Expr, Statements)>, Statements),
    For(Box<For>),
    Set(Target, Expr),
    /// The filters stand around [`Expr::Hole`].
    SetBlock(Target, Expr, Statements),
    With(Vec<(Target, Expr)>, Statements),
    Macro(Arc<Macro>),
    Call(Expr, Arc<Macro>),
    /// As with `SetBlock`.
    Filter(Expr, Statements),
    /// A body with names of its own.
    Scope(Statements),
    Break,
    Continue,
}

#[derive(Debug)]
pub(in crate::jinja) struct For {
    pub target: Target,
    pub items: Expr,
    pub test: Option<Expr>,
    pub is_recursive: bool,
    pub body: Statements,
    pub or_else: Statements,
}

/// A macro, or the body of a call block, which is one without a name.
#[derive(Debug)]
pub(in crate::jinja) struct Macro {
    pub name: Name,
    pub parameters: Vec<(Name, Option<Expr>)>,
    pub body: Statements,
    /// Whether the body mentions `varargs`, `kwargs`, `caller`: it is called with what they stand for only then.
    pub takes_varargs: bool,
    pub takes_kwargs: bool,
    pub takes_caller: bool,
}

/// What is assigned to.
#[derive(Debug)]
pub(in crate::jinja) enum Target {
    Name(Name),
    /// A member of a namespace.
    Member(Name, Name),
    Several(Vec<Target>),
}

#[derive(Debug)]
pub(in crate::jinja) enum Expr {
    Const(PyValue),
    /// What a filter block wrote.
    Hole,
    Name(Name),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Attribute(Box<Expr>, Name),
    Item(Box<Expr>, Box<Expr>),
    Slice(Box<Expr>, Box<[Option<Expr>; 3]>),
    Call(Box<Expr>, Arguments),
    Filter(Box<Expr>, Name, Arguments),
    Test(Box<Expr>, Name, Arguments),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    Binary(Operator, Box<Expr>, Box<Expr>),
    Concat(Vec<Expr>),
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    /// Test, then, else.
    If(Box<Expr>, Box<Expr>, Option<Box<Expr>>),
}

/// What stands between the parentheses of a call.
#[derive(Debug, Default)]
pub(in crate::jinja) struct Arguments {
    pub positional: Vec<Expr>,
    pub named: Vec<(Name, Expr)>,
    /// `*list`
    pub list: Option<Box<Expr>>,
    /// `**dict`
    pub dict: Option<Box<Expr>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::jinja) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Remainder,
    Power,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::jinja) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    NotIn,
}
