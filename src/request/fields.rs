//! The members of an object, taken one by one by name; what nobody took is unknown.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};

use super::Value;
use crate::error::{Error, Kind, Result};

/// So many paths of ignored members are kept; the others are counted.
const MAX_IGNORED_PATHS: usize = 32;

/// About how many names a body is asked for, with those of the parameters.
const NAMES_OF_A_BODY: usize = 64;

/// The longest distance at which another name is proposed for an unknown one.
const MAX_TYPING_ERRORS: usize = 2;

/// Where a body's unknown members are noted by a door that takes them.
#[derive(Debug, Default)]
pub struct IgnoredMembers {
    paths: RefCell<Vec<String>>,
    more: Cell<usize>,
}

impl IgnoredMembers {
    fn add(&self, path: String) {
        let mut paths = self.paths.borrow_mut();
        if paths.len() < MAX_IGNORED_PATHS {
            paths.push(path);
        } else {
            self.more.set(self.more.get() + 1);
        }
    }

    /// The paths of the first of them, and how many there are beside these.
    pub fn into_paths(self) -> (Vec<String>, usize) {
        (self.paths.into_inner(), self.more.get())
    }
}

/// The members of one object and where it stands in the body.
#[derive(Debug)]
pub struct Fields<'a> {
    /// Empty for the body itself.
    path: String,
    /// In the order of the body; one that was taken leaves its place empty.
    members: Vec<(String, Option<Value>)>,
    /// The names that were asked for, to tell what an unknown one may have meant.
    asked: Vec<&'static str>,
    /// None: unknown members are refused.
    ignored: Option<&'a IgnoredMembers>,
}

impl<'a> Fields<'a> {
    /// The members of a whole body; unknown ones are refused, unless they can be noted.
    ///
    /// # Errors
    /// `invalid`: no object, or a key that is given twice at any depth, by its path.
    pub fn of_body(body: Value, ignored: Option<&'a IgnoredMembers>) -> Result<Self> {
        if let Some(path) = body.key_given_twice() {
            return Err(Error::invalid(path, "given twice"));
        }
        match body {
            Value::Map(members) => {
                let asked = Vec::with_capacity(NAMES_OF_A_BODY);
                Ok(Self { asked, ignored, ..Self::new(members, "") })
            }
            other => {
                Err(Error::new(Kind::Invalid, format!("expected an object as body, got {other}")))
            }
        }
    }

    /// The members of a value inside a body.
    ///
    /// # Errors
    /// `invalid` if it is no object.
    pub fn of(value: Value, path: &str, ignored: Option<&'a IgnoredMembers>) -> Result<Self> {
        match value {
            Value::Map(members) => Ok(Self { ignored, ..Self::new(members, path) }),
            other => Err(other.refused(path, "an object")),
        }
    }

    /// These members of the object at `path`; unknown ones are refused.
    pub fn new(members: Vec<(String, Value)>, path: &str) -> Self {
        let members = members.into_iter().map(|(name, value)| (name, Some(value)));
        let members = members.collect();
        Self { path: path.to_owned(), members, asked: Vec::new(), ignored: None }
    }

    /// Where unknown members are noted, for the objects inside.
    pub fn ignored(&self) -> Option<&'a IgnoredMembers> {
        self.ignored
    }

    /// A member's path in the body, such as `messages[0].role`.
    pub fn path_of<'n>(&self, name: &'n str) -> Cow<'n, str> {
        match self.path.as_str() {
            "" => name.into(),
            path => format!("{path}.{name}").into(),
        }
    }

    /// A member that nobody has taken; none if it is absent or null.
    pub fn get(&self, name: &str) -> Option<&Value> {
        let (_, value) = self.members.iter().find(|(member, _)| member == name)?;
        value.as_ref().filter(|value| **value != Value::Null)
    }

    /// Takes a member as it is; none if it is absent or null.
    pub fn take(&mut self, name: &'static str) -> Option<Value> {
        self.asked.push(name);
        let (_, value) = self.members.iter_mut().find(|(member, _)| member == name)?;
        value.take().filter(|value| *value != Value::Null)
    }

    /// Takes a member and reads it; none if it is absent or null.
    ///
    /// # Errors
    /// Those of `read`, which is given the member's path.
    pub fn optional<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(Value, &str) -> Result<T>,
    ) -> Result<Option<T>> {
        self.take(name).map(|value| read(value, &self.path_of(name))).transpose()
    }

    /// Takes a member that must be there and reads it.
    ///
    /// # Errors
    /// Those of `read`, which is given null where the member is absent.
    pub fn required<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(Value, &str) -> Result<T>,
    ) -> Result<T> {
        read(self.take(name).unwrap_or(Value::Null), &self.path_of(name))
    }

    /// Takes a member that is an object; none if it is absent or null.
    ///
    /// # Errors
    /// `invalid` if it is something else.
    pub fn object(&mut self, name: &'static str) -> Result<Option<Fields<'a>>> {
        let ignored = self.ignored;
        self.optional(name, |value, path| Fields::of(value, path, ignored))
    }

    /// Takes those of the members that are left of which `judge` says something; what it says against one is the error.
    ///
    /// # Errors
    /// `unsupported`, naming the first member that `judge` speaks against.
    pub fn take_judged(
        &mut self,
        judge: impl Fn(&str, &Value) -> Option<std::result::Result<(), String>>,
    ) -> Result<()> {
        for at in 0..self.members.len() {
            let (name, value) = &mut self.members[at];
            let Some(verdict) = value.as_ref().and_then(|value| judge(name, value)) else {
                continue;
            };
            *value = None;
            if let Err(message) = verdict {
                let path = self.path_of(&self.members[at].0);
                return Err(Error::unsupported(path, message));
            }
        }
        Ok(())
    }

    /// All members that are left, but for those that are null.
    pub fn into_rest(self) -> Vec<(String, Value)> {
        let left = self.members.into_iter().filter_map(|(name, value)| Some((name, value?)));
        left.filter(|(_, value)| *value != Value::Null).collect()
    }

    /// Refuses members that are left and belong elsewhere.
    ///
    /// # Errors
    /// `invalid`, naming the first and saying where it belongs.
    pub fn refuse_misplaced(
        &self,
        is_elsewhere: impl Fn(&str) -> bool,
        belongs: &str,
    ) -> Result<()> {
        let mut left = self.members.iter().filter(|(_, value)| value.is_some());
        match left.find(|(name, _)| is_elsewhere(name)) {
            None => Ok(()),
            Some((name, _)) => {
                Err(Error::invalid(self.path_of(name), format!("expected {belongs}")))
            }
        }
    }

    /// Refuses the first member that nobody took, even if it is null; or notes them all.
    ///
    /// # Errors
    /// `invalid`, naming it and a known name that is spelt like it.
    pub fn finish(self) -> Result<()> {
        for (name, _) in self.members.iter().filter(|(_, value)| value.is_some()) {
            let path = self.path_of(name);
            let Some(ignored) = self.ignored else {
                let text = match self.nearest(name) {
                    Some(known) => format!("unknown parameter; did you mean {known}?"),
                    None => "unknown parameter".to_owned(),
                };
                return Err(Error::invalid(path, text));
            };
            ignored.add(path.into_owned());
        }
        Ok(())
    }

    fn nearest(&self, name: &str) -> Option<&'static str> {
        let distances = self.asked.iter().map(|known| (typing_errors(name, known), *known));
        let (distance, known) = distances.min_by_key(|(distance, _)| *distance)?;
        // In a short name every letter counts.
        (distance <= MAX_TYPING_ERRORS && 3 * distance <= known.len()).then_some(known)
    }
}

/// How many letters are wrong, missing, too many or swapped with their neighbour; a bound for names of very different length.
fn typing_errors(given: &str, known: &str) -> usize {
    let (given, known) = (given.as_bytes(), known.as_bytes());
    if given.len().abs_diff(known.len()) > MAX_TYPING_ERRORS {
        return usize::MAX;
    }
    // Rows of the table of distances between beginnings of the two.
    let (mut before_last, mut last) = (Vec::new(), (0..=known.len()).collect::<Vec<usize>>());
    for i in 1..=given.len() {
        let mut row = vec![i; known.len() + 1];
        for j in 1..=known.len() {
            let wrong = usize::from(given[i - 1] != known[j - 1]);
            row[j] = (last[j] + 1).min(row[j - 1] + 1).min(last[j - 1] + wrong);
            if i > 1 && j > 1 && given[i - 1] == known[j - 2] && given[i - 2] == known[j - 1] {
                row[j] = row[j].min(before_last[j - 2] + 1);
            }
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[known.len()]
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;
    use serde_json::json;

    use super::*;

    fn value(json: serde_json::Value) -> Value {
        Value::deserialize(json).expect("JSON is a value")
    }

    #[test]
    fn null_is_absent_and_what_is_left_is_unknown() {
        let mut fields =
            Fields::of_body(value(json!({"a": null, "b": 1, "c": null})), None).expect("an object");
        assert_eq!(fields.optional("a", Value::text), Ok(None));
        assert_eq!(fields.optional("d", Value::boolean), Ok(None));
        assert_eq!(fields.take("b"), Some(Value::Int(1)));
        assert_eq!(fields.take("b"), None);
        let error = fields.finish().expect_err("c is left");
        assert_eq!(error, Error::invalid("c", "unknown parameter"));
    }

    #[test]
    fn a_wrong_type_names_path_and_both_types() {
        let inner = value(json!({"a": "x", "b": 1.5, "c": -1, "e": {}, "f": [0, -1]}));
        let mut inner = Fields::of(inner, "m[2]", None).expect("an object");
        let byte = |value: Value, path: &str| value.integer(path, 0, 255);
        let errors = [
            inner.optional("a", Value::boolean).map(drop),
            inner.optional("b", byte).map(drop),
            inner.optional("c", byte).map(drop),
            inner.optional("e", Value::text).map(drop),
            inner.optional("f", Value::token_ids).map(drop),
            inner.required("h", Value::text).map(drop),
        ];
        assert_eq!(
            errors.map(|error| error.expect_err("wrong").text()),
            [
                "m[2].a: expected true or false, got \"x\"",
                "m[2].b: expected a whole number of 0 to 255, got 1.5",
                "m[2].c: expected 0 to 255, got -1",
                "m[2].e: expected a string, got an object",
                "m[2].f[1]: expected 0 to 4294967295, got -1",
                "m[2].h: expected a string, got nothing",
            ]
        );
    }

    #[test]
    fn an_object_is_expected_where_one_stands() {
        let body = Fields::of_body(Value::Bool(true), None).expect_err("no object");
        assert_eq!(body.text(), "expected an object as body, got true");
        let inner = Fields::of(Value::Bool(true), "params", None).expect_err("no object");
        assert_eq!(inner.text(), "params: expected an object, got true");
    }

    #[test]
    fn a_key_given_twice_is_named_at_any_depth() {
        let map = |members: &[(&str, Value)]| {
            Value::Map(
                members.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect(),
            )
        };
        let twice = map(&[("x", Value::Null), ("y", Value::Int(1)), ("x", Value::Null)]);
        let cases = [
            (twice.clone(), "x"),
            (map(&[("a", twice.clone())]), "a.x"),
            (
                map(&[
                    ("x", Value::Int(1)),
                    ("a", Value::List(vec![map(&[("x", Value::Null)]), twice])),
                ]),
                "a[1].x",
            ),
        ];
        for (body, path) in cases {
            let error = Fields::of_body(body, None).expect_err("twice");
            assert_eq!(error, Error::invalid(path, "given twice"));
        }
    }

    #[test]
    fn a_misspelt_name_is_told_the_one_that_was_meant() {
        let meant = |given: &str| {
            let mut fields = Fields::new(vec![(given.to_owned(), Value::Int(1))], "");
            for known in ["n", "top_p", "max_tokens", "temperature"] {
                fields.take(known);
            }
            let message = fields.finish().expect_err("unknown").message;
            let meant = message.strip_prefix("unknown parameter; did you mean ");
            meant.and_then(|rest| rest.strip_suffix('?')).map(str::to_owned)
        };
        let cases = [
            ("max_token", "max_tokens"),
            ("maxtokens", "max_tokens"),
            ("max_tokesn", "max_tokens"),
            ("temprature", "temperature"),
            ("top-p", "top_p"),
        ];
        for (given, known) in cases {
            assert_eq!(meant(given).as_deref(), Some(known), "{given}");
        }
        for given in ["", "m", "tokens", "maximum_of_tokens", "température_1"] {
            assert_eq!(meant(given), None, "{given}");
        }
    }

    #[test]
    fn unknown_members_are_noted_where_a_door_takes_them_and_their_number_is_bounded() {
        let noted = IgnoredMembers::default();
        let body = value(json!({"a": 1, "b": {"c": 2}, "d": null}));
        let mut fields = Fields::of_body(body, Some(&noted)).expect("an object");
        let inner = fields.object("b").expect("an object").expect("is there");
        assert_eq!((inner.finish(), fields.finish()), (Ok(()), Ok(())));
        assert_eq!(noted.into_paths().0, ["b.c", "a", "d"]);

        let noted = IgnoredMembers::default();
        let many = (0..100).map(|i| (i.to_string(), Value::Null)).collect();
        let fields = Fields::of_body(Value::Map(many), Some(&noted)).expect("an object");
        assert_eq!(fields.finish(), Ok(()));
        let (paths, more) = noted.into_paths();
        assert_eq!((paths.len(), more), (MAX_IGNORED_PATHS, 100 - MAX_IGNORED_PATHS));
    }

    #[test]
    fn what_is_judged_is_taken_and_the_rest_can_be_had() {
        let mut fields = Fields::new(
            vec![
                ("a".into(), Value::Int(1)),
                ("b".into(), Value::Null),
                ("c".into(), Value::Int(2)),
            ],
            "m",
        );
        assert_eq!(fields.take_judged(|name, _| (name == "a").then_some(Ok(()))), Ok(()));
        let judge = |name: &str, _: &Value| (name == "c").then(|| Err("no".to_owned()));
        let mut other = Fields::new(vec![("c".into(), Value::Int(2))], "m");
        assert_eq!(other.take_judged(judge), Err(Error::unsupported("m.c", "no")));
        let misplaced = fields.refuse_misplaced(|name| name == "c", "it elsewhere");
        assert_eq!(misplaced, Err(Error::invalid("m.c", "expected it elsewhere")));
        assert_eq!(fields.into_rest(), [("c".to_owned(), Value::Int(2))]);
    }
}
