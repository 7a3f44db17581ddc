//! Goal: the habits of CONTRIBUTING.md hold everywhere. Method: the sources are read as text, so a breach names its file and line.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize as _;

const MAX_FILE_LINES: usize = 400;
const MAX_FUNCTION_LINES: usize = 70;
/// Characters, comments included.
const MAX_LINE_LEN: usize = 140;

/// What each stage may use of the others; all may use the shared modules. Data goes one way, so must imports.
const IMPORTS: &[(&str, &[&str])] = &[
    ("bus", &["admission", "health", "models"]),
    ("http", &["admission", "health", "models"]),
    ("admission", &["scheduler", "batcher", "reply", "models", "health"]),
    ("scheduler", &["batcher", "executor", "reply", "health"]),
    ("batcher", &["scheduler", "executor", "reply", "health"]),
    ("executor", &["models", "health"]),
    ("reply", &["executor", "health"]),
    ("models", &["admission", "batcher", "executor", "health"]),
    ("health", &["executor", "models"]),
];

/// Modules that stand beside the table: the whole, and what everyone uses.
const WHOLE: &[&str] = &["node", "engine", "cli", "config", "generate"];
const SHARED: &[&str] = &["bridge", "clock", "error", "request", "telemetry", "tokenizer"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(dir: &str, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(dir)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| endings.iter().any(|ending| e == *ending)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn name(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

fn sources() -> Vec<PathBuf> {
    ["src", "tests", "benches", "cpp"]
        .iter()
        .flat_map(|dir| files(dir, &["rs", "cc", "h", "cu"]))
        .collect()
}

/// Whether a file under `src` holds tests or what they share: their actors and imports play neighbours.
fn is_test(path: &Path) -> bool {
    let file = name(path);
    ["/tests", "/testing", "_tests.rs"].iter().any(|mark| file.contains(mark))
}

/// The part of a file that runs in the node: what stands before its unit tests.
fn without_unit_tests(text: &str) -> &str {
    text.find("#[cfg(test)]\nmod tests").map_or(text, |at| &text[..at])
}

fn report(breaches: &[String]) {
    assert!(breaches.is_empty(), "{} breaches:\n{}", breaches.len(), breaches.join("\n"));
}

#[test]
fn files_are_short() {
    let breaches: Vec<String> = sources()
        .iter()
        .filter_map(|path| {
            let lines = without_unit_tests(&read(path)).lines().count();
            (lines > MAX_FILE_LINES).then(|| format!("{}: {lines} lines", name(path)))
        })
        .collect();
    report(&breaches);
}

#[test]
fn lines_fit_the_screen() {
    let mut breaches = Vec::new();
    for path in sources() {
        for (index, line) in read(&path).lines().enumerate() {
            if line.chars().count() > MAX_LINE_LEN {
                breaches.push(format!("{}:{}", name(&path), index + 1));
            }
        }
    }
    report(&breaches);
}

/// Formatted code closes a function with a brace at the indentation of its first line.
fn long_functions(text: &str, is_start: impl Fn(&str) -> bool) -> Vec<(usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        if !is_start(line) {
            continue;
        }
        let close = lines[start..].iter().position(|l| {
            indent(l) == indent(line) && (l.trim_start() == "}" || l.trim_end().ends_with(';'))
        });
        if let Some(length) = close
            && length + 1 > MAX_FUNCTION_LINES
        {
            found.push((start + 1, length + 1));
        }
    }
    found
}

#[test]
fn functions_are_short() {
    let mut breaches = Vec::new();
    for path in sources() {
        let text = read(&path);
        let is_rust = path.extension().is_some_and(|e| e == "rs");
        let long = if is_rust {
            long_functions(&text, |line| {
                let line = line.trim_start();
                let line = line.strip_prefix("pub ").unwrap_or(line);
                let line = line.strip_prefix("pub(crate) ").unwrap_or(line);
                let line = line.strip_prefix("async ").unwrap_or(line);
                line.starts_with("fn ") || line.starts_with("const fn ")
            })
        } else {
            long_functions(&text, |line| {
                let ends = line.ends_with(") {") || line.ends_with(") const {");
                let starts = line.starts_with(|c: char| c.is_alphabetic());
                starts && ends && !line.starts_with("namespace")
            })
        };
        for (line, length) in long {
            breaches.push(format!("{}:{line}: {length} lines", name(&path)));
        }
    }
    report(&breaches);
}

#[test]
fn unsafe_stands_in_two_files_only() {
    let allowed = ["src/bridge.rs", "src/models/mmap.rs"];
    let mut breaches = Vec::new();
    for path in files("src", &["rs"]) {
        let file = name(&path);
        for (index, line) in read(&path).lines().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            let is_unsafe = code.contains("unsafe ") || code.contains("allow(unsafe_code)");
            if is_unsafe && !allowed.contains(&file.as_str()) {
                breaches.push(format!("{file}:{}", index + 1));
            }
        }
    }
    report(&breaches);
}

#[test]
fn imports_go_downstream_only() {
    let mut breaches = Vec::new();
    for (module, may_use) in IMPORTS {
        for path in files(&format!("src/{module}"), &["rs"]) {
            if is_test(&path) {
                continue;
            }
            let text = read(&path);
            for (index, line) in without_unit_tests(&text).lines().enumerate() {
                let code = line.split("//").next().unwrap_or("");
                for part in code.split("crate::").skip(1) {
                    let used: String =
                        part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                    let fine = used.is_empty()
                        || used == *module
                        || SHARED.contains(&used.as_str())
                        || may_use.contains(&used.as_str());
                    if !fine {
                        breaches.push(format!("{}:{}: {used}", name(&path), index + 1));
                    }
                }
            }
        }
    }
    report(&breaches);
}

#[test]
fn the_index_lists_every_module() {
    let index = read(&root().join("src/lib.rs"));
    for module in IMPORTS.iter().map(|(module, _)| module).chain(WHOLE).chain(SHARED) {
        assert!(index.contains(&format!("pub mod {module};")), "src/lib.rs lacks {module}");
    }
}

#[test]
fn every_op_has_its_contract_its_oracle_and_its_test() {
    let mut breaches = Vec::new();
    let mut ops = 0;
    for path in files("cpp/ops", &["h"]) {
        let stem = path.with_extension("");
        // A header without a .cc of its own is a detail of several ops, not an op.
        if !stem.with_extension("cc").exists() {
            continue;
        }
        ops += 1;
        let test = PathBuf::from(format!("{}_test.cc", stem.display()));
        if !test.exists() {
            breaches.push(format!("{} has no {}", name(&path), name(&test)));
        }
    }
    assert!(ops >= 6, "found only {ops} ops under cpp/ops");
    report(&breaches);
}

#[test]
fn actors_md_and_the_code_list_the_same_actors() {
    let page = read(&root().join("actors.md"));
    let mut in_code = Vec::new();
    for path in files("src", &["rs"]) {
        if is_test(&path) {
            continue;
        }
        for line in without_unit_tests(&read(&path)).lines() {
            let line = line.trim();
            if let Some(rest) = line.strip_prefix("impl Actor for ") {
                in_code.push(rest.trim_end_matches('{').trim().to_owned());
            }
        }
    }
    let on_page: Vec<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .filter_map(|heading| heading.split('`').nth(1).map(str::to_owned))
        .collect();
    let mut code_sorted = in_code.clone();
    let mut page_sorted = on_page.clone();
    code_sorted.sort();
    page_sorted.sort();
    assert_eq!(page_sorted, code_sorted, "actors.md (left) and the code (right)");
    for row in
        ["thread", "owns", "accepts", "sends", "capacity", "when full", "on panic", "counters"]
    {
        let count = page.lines().filter(|l| l.starts_with(&format!("| {row} |"))).count();
        assert_eq!(count, on_page.len(), "actors.md: every actor has the row {row:?}");
    }
}

/// The keys of a section, from what the configuration says of one that it does not know.
fn keys_of(section: &str) -> Vec<String> {
    let text = if section == "models" {
        "[[models]]\nname = \"x\"\nmodel_path = \"x\"\nno-such-key = 1\n".to_owned()
    } else {
        format!("[{section}]\nno-such-key = 1\n")
    };
    let error = toml::from_str::<inferno_node::config::Config>(&text).expect_err("an unknown key");
    let message = error.message().to_owned();
    let (_, expected) = message.split_once("expected").unwrap_or_else(|| panic!("{message}"));
    expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_configuration_key_is_documented() {
    let page = read(&root().join("config/node.toml"));
    let mut breaches = Vec::new();
    for section in [
        "node",
        "models",
        "bus",
        "bus.tls",
        "bus.managed",
        "http",
        "admission",
        "scheduler",
        "batcher",
        "executor",
        "health",
    ] {
        let keys = keys_of(section);
        assert!(keys.len() > 1, "[{section}] has {keys:?}");
        let here = page.split(&format!("[{section}]")).nth(1).unwrap_or("");
        let here = here.split("\n[").next().unwrap_or("");
        for key in keys {
            let is_table = page.contains(&format!("[{section}.{key}]"));
            if !is_table && !here.contains(&key) {
                breaches.push(format!("config/node.toml: [{section}] lacks {key}"));
            }
        }
    }
    report(&breaches);
    inferno_node::config::Config::load(&inferno_node::config::Sources {
        file: Some(root().join("config/node.toml")),
        ..Default::default()
    })
    .expect("config/node.toml itself is valid");
}

/// `config/node.toml` with every key that it comments out.
fn whole_configuration() -> toml::Table {
    let is_key = |line: &str| {
        let name = line.split(" = ").next().unwrap_or("");
        line.contains(" = ") && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    };
    let page = read(&root().join("config/node.toml"));
    let lines = page.lines().map(|line| match line.strip_prefix("# ") {
        Some(key) if is_key(key) => key,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n").parse().expect("TOML, with all its keys as well")
}

#[test]
fn documented_defaults_are_the_defaults() {
    let mut page = whole_configuration();
    inferno_node::config::Config::deserialize(page.clone()).expect("every key is known");
    let defaults = toml::Table::try_from(inferno_node::config::Config::default()).expect("TOML");
    let text = read(&root().join("config/node.toml"));
    let mut breaches = Vec::new();
    let mut compare = |section: &str, documented: &toml::Table, defaults: &toml::Table| {
        for (key, value) in documented.iter().filter(|(_, value)| !value.is_table()) {
            let line = text.lines().find(|line| line.contains(&format!("{key} = ")));
            match defaults.get(key) {
                Some(default) if default == value => {}
                Some(default) => breaches.push(format!("{section}.{key}: {value}, not {default}")),
                // What has no default has an example, and says what its absence means.
                None if line.is_some_and(|line| line.contains("absent: ")) => {}
                None => breaches.push(format!("{section}.{key} = {value}: what if it is absent?")),
            }
        }
    };
    page.remove("models");
    let none = toml::Table::new();
    for (section, value) in &page {
        let documented = value.as_table().expect("a section");
        let of = defaults.get(section).and_then(toml::Value::as_table).expect("a section");
        compare(section, documented, of);
        for (name, inner) in documented.iter().filter_map(|(n, v)| Some((n, v.as_table()?))) {
            let of = of.get(name).and_then(toml::Value::as_table).unwrap_or(&none);
            compare(&format!("{section}.{name}"), inner, of);
        }
    }
    report(&breaches);
}

#[test]
fn every_key_of_a_cost_model_is_documented() {
    use inferno_node::executor::CostModel;
    let error = toml::from_str::<CostModel>("no-such-key = 1").expect_err("an unknown key");
    let (_, expected) = error.message().split_once("expected").expect("the known ones");
    let page = read(&root().join("config/sim/h200-8b.toml"));
    for key in expected.split('`').skip(1).step_by(2) {
        assert!(page.contains(&format!("{key} = ")), "config/sim/h200-8b.toml lacks {key}");
    }
}

#[test]
fn every_metric_is_documented() {
    let page = read(&root().join("README.md"));
    let breaches: Vec<String> = inferno_node::telemetry::METRICS
        .iter()
        .filter(|(metric, ..)| !page.contains(&format!("`{metric}`")))
        .map(|(metric, ..)| format!("README.md lacks {metric}"))
        .collect();
    report(&breaches);
}
