//! What a struct of the configuration says of its keys, read out of its schema: name, type, default, limits and doc comment.
//!
//! The structs stand with the modules that they belong to. A limit is written there once (`#[schemars(range(…))]`); the check of the
//! values and `docs/configuration.md` both come from it.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::Serialize;
use serde_json::Value;

/// One key.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// Its place: `http.bind`, `bus.tls.ca`, `models.name`.
    pub path: String,
    /// What its value is, in the words of the page.
    pub type_name: String,
    /// How a text from outside a file becomes its value.
    pub form: Form,
    /// Its value if nobody says; none where absence means something of its own.
    pub default: Option<Value>,
    /// What a number may be.
    pub limits: NumberRange,
    /// The doc comment, on one line.
    pub about: String,
    /// Its value is shown to nobody.
    pub is_secret: bool,
    /// Other names of the last part.
    pub aliases: Vec<String>,
}

/// See [`Setting::form`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The text as it is.
    Text,
    /// TOML, such as a number.
    Toml,
    /// A list in TOML's brackets, or its texts with commas between them.
    Texts,
    /// TOML, else a list with its brackets left out, else the text.
    Any,
}

/// The bounds of a number; none where there are none.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct NumberRange {
    least: Option<f64>,
    above: Option<f64>,
    most: Option<f64>,
}

impl NumberRange {
    fn of(schema: &Value) -> Self {
        let number = |name: &str| schema.get(name).and_then(Value::as_f64);
        Self {
            least: number("minimum"),
            above: number("exclusiveMinimum"),
            most: number("maximum"),
        }
    }

    fn hold(self, value: f64) -> bool {
        self.least.is_none_or(|least| value >= least)
            && self.above.is_none_or(|above| value > above)
            && self.most.is_none_or(|most| value <= most)
    }

    /// `1 to 256`; none where every number of the type will do.
    pub fn text(self) -> Option<String> {
        match self {
            Self { above: Some(above), most: Some(most), .. } => {
                Some(format!("above {above} to {most}"))
            }
            Self { above: Some(above), .. } => Some(format!("above {above}")),
            Self { least, most: Some(most), .. } => {
                Some(format!("{} to {most}", least.unwrap_or(0.0)))
            }
            Self { least: Some(least), .. } if least > 0.0 => Some(format!("at least {least}")),
            _ => None,
        }
    }
}

/// Every key of a struct and of the structs in it, with `prefix` before their names. A list of structs counts as one of them.
pub fn settings_of<T: JsonSchema>(prefix: &str) -> Vec<Setting> {
    let mut found = Vec::new();
    collect(&schema_of::<T>(), prefix, &mut found);
    found
}

/// The doc comments of a struct's own members, by name.
pub fn members_of<T: JsonSchema>() -> Vec<(String, String)> {
    let schema = schema_of::<T>();
    let members = schema["properties"].as_object().into_iter().flatten();
    members.map(|(name, schema)| (name.clone(), about(schema))).collect()
}

/// A line for each number that is beyond its limits: name, expected, got.
pub fn out_of_range<T: JsonSchema + Serialize>(section: &str, value: &T) -> Vec<String> {
    let value = serde_json::to_value(value).unwrap_or_default();
    let faults = settings_of::<T>("").into_iter().filter_map(|setting| {
        let pointer = format!("/{}", setting.path.replace('.', "/"));
        let got = value.pointer(&pointer)?;
        let expected = setting.limits.text()?;
        let holds = setting.limits.hold(got.as_f64()?);
        let path = &setting.path;
        (!holds).then(|| format!("{section}.{path}: expected {expected}, got {got}"))
    });
    faults.collect()
}

fn schema_of<T: JsonSchema>() -> Value {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

fn collect(schema: &Value, prefix: &str, found: &mut Vec<Setting>) {
    for (name, member) in schema["properties"].as_object().into_iter().flatten() {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        if member.get("properties").is_some() {
            collect(member, &path, found);
        } else if prefix.is_empty() && member["items"].get("properties").is_some() {
            collect(&member["items"], &path, found);
        } else {
            found.push(setting(member, path));
        }
    }
}

fn setting(schema: &Value, path: String) -> Setting {
    let aliases = schema["x-aliases"].as_array().into_iter().flatten();
    Setting {
        type_name: type_name(schema),
        form: form(schema),
        default: schema.get("default").filter(|default| !default.is_null()).cloned(),
        limits: NumberRange::of(schema),
        about: about(schema),
        is_secret: [schema, &schema["items"]].iter().any(|schema| schema["writeOnly"] == true),
        aliases: aliases.filter_map(Value::as_str).map(str::to_owned).collect(),
        path,
    }
}

fn about(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The schema's types, but for `null`: what is absent is not written.
fn types(schema: &Value) -> Vec<&str> {
    let types = match &schema["type"] {
        Value::String(one) => vec![one.as_str()],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    types.into_iter().filter(|name| *name != "null").collect()
}

/// What stands in `anyOf` or `oneOf`, but for `null`.
fn choices(schema: &Value) -> Vec<&Value> {
    let choices = ["anyOf", "oneOf"].iter().filter_map(|name| schema[name].as_array()).flatten();
    choices.filter(|choice| choice["type"] != "null").collect()
}

/// The words of an enum.
fn words(schema: &Value) -> Vec<&str> {
    let listed = schema["enum"].as_array().into_iter().flatten();
    let own = listed.chain(schema.get("const")).filter_map(Value::as_str);
    own.chain(choices(schema).into_iter().flat_map(words)).collect()
}

fn type_name(schema: &Value) -> String {
    if let Some(name) = schema["x-type"].as_str() {
        return name.to_owned();
    }
    let words = words(schema);
    if !words.is_empty() {
        let quoted: Vec<String> = words.iter().map(|word| format!("`\"{word}\"`")).collect();
        return quoted.join(", ");
    }
    match (types(schema).as_slice(), choices(schema).as_slice()) {
        (["string"], _) => "text".to_owned(),
        (["boolean"], _) => "`true` or `false`".to_owned(),
        (["array"], _) => format!("list of {}", plural(&type_name(&schema["items"]))),
        (["object"], _) => "table".to_owned(),
        ([one], _) => (*one).to_owned(),
        (_, [only]) => type_name(only),
        _ => "value".to_owned(),
    }
}

fn plural(name: &str) -> String {
    format!("{name}s")
}

fn form(schema: &Value) -> Form {
    if schema.get("x-type").is_some() {
        return Form::Any;
    }
    if !words(schema).is_empty() {
        return Form::Text;
    }
    match (types(schema).as_slice(), choices(schema).as_slice()) {
        (["string"], _) => Form::Text,
        (["array"], _) if types(&schema["items"]) == ["string"] => Form::Texts,
        ([_], _) => Form::Toml,
        (_, [only]) => form(only),
        _ => Form::Any,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::secret::Secret;

    /// A word.
    #[derive(Default, Serialize, JsonSchema)]
    #[serde(rename_all = "lowercase")]
    enum Word {
        /// With a doc comment.
        #[default]
        Yes,
        /// And another.
        No,
    }

    #[derive(Default, Serialize, JsonSchema)]
    #[serde(default)]
    struct Inner {
        /// Where.
        place: Option<PathBuf>,
    }

    #[derive(Default, Serialize, JsonSchema)]
    #[serde(default)]
    struct Outer {
        /// How many,
        /// on two lines.
        #[schemars(range(min = 2, max = 9), extend("x-aliases" = ["number"]))]
        count: usize,
        /// How much.
        #[schemars(extend("exclusiveMinimum" = 0, "maximum" = 1))]
        share: Option<f64>,
        word: Word,
        other: Option<Word>,
        names: Vec<String>,
        keys: Vec<Secret>,
        on: bool,
        inner: Inner,
    }

    fn of(path: &str) -> Setting {
        let all = settings_of::<Outer>("");
        all.into_iter().find(|setting| setting.path == path).unwrap_or_else(|| panic!("{path}"))
    }

    #[test]
    fn a_key_is_what_its_struct_says() {
        let count = of("count");
        assert_eq!((count.type_name.as_str(), count.form), ("integer", Form::Toml));
        assert_eq!(count.limits.text().as_deref(), Some("2 to 9"));
        assert_eq!(
            (count.default, count.about.as_str()),
            (Some(0.into()), "How many, on two lines.")
        );
        assert_eq!((count.aliases, count.is_secret), (vec!["number".to_owned()], false));
        assert_eq!(of("share").limits.text().as_deref(), Some("above 0 to 1"));
        assert_eq!((of("share").type_name.as_str(), of("share").default), ("number", None));
        assert_eq!(
            (of("word").type_name.as_str(), of("word").form),
            ("`\"yes\"`, `\"no\"`", Form::Text)
        );
        assert_eq!(
            (of("names").type_name.as_str(), of("names").form),
            ("list of texts", Form::Texts)
        );
        assert!(of("keys").is_secret && of("keys").form == Form::Texts);
        assert_eq!((of("on").form, of("inner.place").form), (Form::Toml, Form::Text));
        assert_eq!(of("inner.place").about, "Where.");
    }

    #[test]
    fn an_enum_that_may_be_absent_is_its_words() {
        let other = Outer { other: Some(Word::No), ..Outer::default() };
        assert_eq!(out_of_range("outer", &other).len(), 1, "count is 0");
        assert_eq!(
            (of("other").type_name.as_str(), of("other").default),
            ("`\"yes\"`, `\"no\"`", None)
        );
    }

    #[test]
    fn numbers_beyond_their_limits_are_named_with_both() {
        let in_range = Outer { count: 2, share: Some(1.0), ..Outer::default() };
        assert_eq!(out_of_range("outer", &in_range), [""; 0]);
        let beyond = Outer { count: 10, share: Some(0.0), ..Outer::default() };
        let expected =
            ["outer.count: expected 2 to 9, got 10", "outer.share: expected above 0 to 1, got 0.0"];
        assert_eq!(out_of_range("outer", &beyond), expected);
    }
}
