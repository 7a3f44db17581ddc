//! `docs/configuration.md`, made of the keys.

use std::fmt::Write as _;

use super::Config;
use super::keys::{ConfigKey, keys};
use crate::settings::members_of;

/// Lines of the page are no longer.
const WIDTH: usize = 120;

const INTRODUCTION: &str = "\
# Configuration

Made from the code by `inferno-node config docs`: do not edit.

```sh
inferno-node serve models/demo --port 9000                 # flags
INFERNO_HTTP_BIND=127.0.0.1:9000 inferno-node serve …      # environment
inferno-node serve --config node.toml                      # file, also INFERNO_CONFIG
inferno-node serve … --set scheduler.ageing_s=3            # any other key
inferno-node config check --config node.toml               # checks a file whole, prints the effective configuration
```

A flag goes before the environment, the environment before the file, the file before the default. In the environment
and after `--set` a list is TOML (`[\"a\", \"b\"]`) or its texts with commas between them (`a,b`), and a text needs no
quotes. A key or a variable that is not known is refused, and so is a value out of its limits; every fault is said at
once, and none shows a secret.
";

/// The whole page.
pub fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    let sections = members_of::<Config>();
    let mut section = "";
    let keys = keys();
    for key in &keys {
        if key.section() != section {
            section = key.section();
            let about = sections.iter().find(|(name, _)| name == section);
            let (open, close) = if section == "models" { ("[[", "]]") } else { ("[", "]") };
            // Infallible: a String grows.
            let _ = write!(page, "\n## `{open}{section}{close}`\n\n");
            page.push_str(&wrapped(about.map_or("", |(_, about)| about), ""));
            page.push('\n');
        }
        page.push_str(&entry(key));
    }
    page
}

fn entry(key: &ConfigKey) -> String {
    let setting = &key.0;
    let mut facts = vec![setting.type_name.clone()];
    facts.extend(setting.limits.text());
    match &setting.default {
        _ if setting.path == "models.model_path" => facts.push("must be given".to_owned()),
        Some(default) => facts.push(format!("default `{default}`")),
        None => facts.push("absent by default".to_owned()),
    }
    facts.extend(setting.is_secret.then(|| "a secret".to_owned()));
    let also = setting.aliases.iter().map(|alias| format!("also `{alias}`"));
    let names = std::iter::once(key.variable()).chain(key.flags().map(str::to_owned));
    let names = names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let facts: Vec<String> = facts.into_iter().chain(also).collect();
    let (_, name) = setting.path.split_once('.').unwrap_or_default();
    let head = format!("* **`{name}`**: {}; {names}.", facts.join(", "));
    format!("{}{}", wrapped(&head, "  "), wrapped(&format!("  {}", setting.about), "  "))
}

/// In lines of the page's width; `indent` begins those after the first.
fn wrapped(text: &str, indent: &str) -> String {
    let (mut lines, mut line) = (String::new(), String::new());
    let first = text.len() - text.trim_start().len();
    line.push_str(&text[..first]);
    let mut is_empty = true;
    for word in text.split_whitespace() {
        let length = line.chars().count() + 1 + word.chars().count();
        if !is_empty && length > WIDTH {
            lines.push_str(&line);
            lines.push('\n');
            indent.clone_into(&mut line);
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    if is_empty { lines } else { lines + &line + "\n" }
}
