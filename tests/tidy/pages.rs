//! What the pages say is what the code does: actors, configuration, metrics.

use std::collections::BTreeSet;
use std::path::Path;

use inferno_node::reader::{MemberPlace, known_members};
use inferno_node::request::Params;
use inferno_node::telemetry::{METRICS, MetricKind};
use serde::Deserialize as _;

use super::{files, is_test, name, read, report, root, without_unit_tests};

/// Sections of actors.md that are no actix actors.
const DOORS: [&str; 2] = ["bus", "http"];

/// Every actor with the module that it stands in, and the doors.
fn actors_in_code() -> Vec<(String, String)> {
    let mut found: Vec<_> = DOORS.map(|door| (door.to_owned(), door.to_owned())).into();
    for path in files("src", &["rs"]).iter().filter(|path| !is_test(path)) {
        for line in without_unit_tests(path).lines() {
            if let Some(rest) = line.trim().strip_prefix("impl Actor for ") {
                found.push((rest.trim_end_matches('{').trim().to_owned(), module(path)));
            }
        }
    }
    found.sort();
    found
}

/// The folder or file under `src`.
fn module(path: &Path) -> String {
    let file = name(path);
    file.split('/').nth(1).unwrap_or("").trim_end_matches(".rs").to_owned()
}

/// The sections of actors.md: name and text.
fn actors_on_page() -> Vec<(String, String)> {
    let page = read(&root().join("actors.md"));
    let sections = page.split("\n## `").skip(1);
    let mut found: Vec<(String, String)> = sections
        .filter_map(|text| text.split_once('`'))
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .collect();
    found.sort();
    found
}

#[test]
fn every_parameter_is_in_the_table() {
    let page = read(&root().join("docs/parameters.md"));
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    let on_page: BTreeSet<&str> = rows.map(|(name, _)| name).collect();
    let missing = Params::FIELDS.iter().filter(|name| !on_page.contains(*name));
    let missing: Vec<String> = missing.map(|name| format!("docs/parameters.md: {name}")).collect();
    report(&missing);
}

/// The lines of the table under a line of docs/openai.md.
fn rows_under<'a>(page: &'a str, line: &str) -> Vec<&'a str> {
    let (_, rest) = page.split_once(&format!("\n{line}")).unwrap_or_else(|| panic!("{line}"));
    let lines = rest.lines().skip_while(|line| !line.starts_with('|'));
    lines.take_while(|line| line.starts_with('|')).skip(2).collect()
}

#[test]
fn docs_openai_has_every_parameter_and_every_neutral_member_with_its_values() {
    let page = read(&root().join("docs/openai.md"));
    let served = rows_under(&page, "## Served members of a body");
    let is_served = |name: &str| served.iter().any(|row| row.starts_with(&format!("| `{name}` |")));
    let missing = Params::FIELDS.iter().filter(|name| !is_served(name));
    report(&missing.map(|name| format!("docs/openai.md: {name}")).collect::<Vec<_>>());
    let places = [
        (MemberPlace::Params, "Parameters (on the bus"),
        (MemberPlace::OpenAi, "OpenAI's own, over HTTP"),
        (MemberPlace::StreamOptions, "In `stream_options`:\n\n| member | values"),
        (MemberPlace::Message, "In a message:"),
        (MemberPlace::Part, "In a content part:\n\n| member | values"),
        (MemberPlace::Request, "In a body, ours to come:"),
    ];
    for (place, line) in places {
        let here = known_members().filter(|(of, ..)| *of == place);
        let expected = here.map(|(_, name, values)| {
            let values = if values.is_empty() { "–" } else { &values };
            format!("| `{name}` | {values} |")
        });
        // The first lines of a table may be a part of what it is found by.
        let table = line.split_once("\n\n|").map_or(line, |(above, _)| above);
        let at = page.find(&format!("\n{line}")).unwrap_or_else(|| panic!("{line}"));
        assert_eq!(rows_under(&page[at..], table), expected.collect::<Vec<_>>(), "{place:?}");
    }
}

#[test]
fn actors_md_and_the_code_list_the_same_actors() {
    let (on_page, in_code) = (actors_on_page(), actors_in_code());
    let names = |list: &[(String, String)]| -> Vec<String> {
        list.iter().map(|(name, _)| name.clone()).collect()
    };
    assert_eq!(names(&on_page), names(&in_code), "actors.md (left) and the code (right)");
    for row in
        ["thread", "owns", "accepts", "sends", "capacity", "when full", "on panic", "counters"]
    {
        for (name, text) in &on_page {
            let count = text.lines().filter(|l| l.starts_with(&format!("| {row} |"))).count();
            assert_eq!(count, 1, "actors.md: {name} has the row {row:?} once");
        }
    }
}

/// Each metric with what the code that counts it looks like, from the handles in `src/telemetry` and the methods that stand for
/// several of them.
fn counted_by() -> Vec<(String, String)> {
    let text = without_unit_tests(&root().join("src/telemetry/mod.rs"));
    let metric_of = |line: &str| {
        let (_, rest) = line.split_once("inferno_")?;
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        Some(format!("inferno_{name}"))
    };
    let (mut found, mut documented, mut method) = (Vec::new(), None, String::new());
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("pub fn ") {
            method = rest.split('(').next().unwrap_or("").to_owned();
        } else if line.starts_with("/// `inferno_") {
            documented = metric_of(line);
        } else if let Some(metric) = documented.take() {
            let field = line.trim_start_matches("pub ").split(':').next().unwrap_or("");
            found.push((metric, format!(".{field}.")));
        } else if ["finished", "refused", "health_check"].contains(&method.as_str())
            && let Some(metric) = metric_of(line)
        {
            found.push((metric, format!("metrics.{method}(")));
        }
    }
    found
}

#[test]
fn actors_md_lists_every_metric_where_it_is_counted() {
    let counted_by = counted_by();
    let listed: BTreeSet<&str> = counted_by.iter().map(|(metric, _)| metric.as_str()).collect();
    let known: BTreeSet<&str> = METRICS.iter().map(|(metric, ..)| *metric).collect();
    assert_eq!(listed, known, "the handles of src/telemetry (left) and METRICS (right)");
    let code: Vec<(String, String)> = files("src", &["rs"])
        .iter()
        .filter(|path| !is_test(path) && module(path) != "telemetry")
        .map(|path| {
            let text = without_unit_tests(path);
            let dense = text.split_whitespace().collect::<String>();
            (module(path), dense)
        })
        .collect();
    let counts = |text: &str, needle: &str| {
        let changes = ["absolute(", "increment(", "decrement(", "set(", "record(", "record_many("];
        let whole = needle.ends_with('(') && text.contains(needle);
        whole || changes.iter().any(|change| text.contains(&format!("{needle}{change}")))
    };
    let (on_page, mut breaches) = (actors_on_page(), Vec::new());
    for (actor, folder) in actors_in_code() {
        let (_, text) = on_page.iter().find(|(name, _)| *name == actor).expect("held by a test");
        let row = text.lines().find(|line| line.starts_with("| counters |")).unwrap_or("");
        for (metric, needle) in &counted_by {
            let is_counted = code.iter().any(|(of, text)| *of == folder && counts(text, needle));
            if is_counted != row.contains(&format!("`{metric}`")) {
                breaches.push(format!("actors.md: {actor}, {metric}: counted: {is_counted}"));
            }
        }
    }
    for (metric, needle) in &counted_by {
        if !code.iter().any(|(_, text)| counts(text, needle)) {
            breaches.push(format!("nobody counts {metric}"));
        }
    }
    report(&breaches);
}

#[test]
fn the_page_of_the_configuration_is_what_the_code_says() {
    let page = read(&root().join("docs/configuration.md"));
    assert!(
        page == inferno_node::config::page(),
        "docs/configuration.md is not what `inferno-node config docs` prints: write it anew"
    );
}

#[test]
fn the_example_files_are_valid_and_so_is_all_that_they_leave_out() {
    for file in ["config/node.toml", "config/demo.toml"] {
        let load = |file| {
            let sources = inferno_node::config::Sources { file: Some(file), ..Default::default() };
            inferno_node::config::Config::load(&sources).map_err(|error| error.to_string())
        };
        assert!(load(root().join(file)).is_ok(), "{file}: {:?}", load(root().join(file)));
        let is_key = |line: &str| {
            let name = line.split(" = ").next().unwrap_or("");
            line.contains(" = ") && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        };
        let text = read(&root().join(file));
        let lines = text.lines().map(|line| match line.strip_prefix("# ") {
            Some(key) if is_key(key) => key,
            _ => line,
        });
        let whole = lines.collect::<Vec<_>>().join("\n");
        let table: toml::Table = whole.parse().unwrap_or_else(|error| panic!("{file}: {error}"));
        inferno_node::config::Config::deserialize(table)
            .unwrap_or_else(|error| panic!("{file}: {error}"));
    }
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
fn the_table_of_metrics_is_the_codes() {
    let page = read(&root().join("docs/metrics.md"));
    let rows = page.lines().filter(|line| line.starts_with("| `inferno_")).map(str::to_owned);
    let expected = METRICS.iter().map(|(metric, kind, labels, meaning)| {
        let kind = match kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram, seconds",
        };
        format!("| `{metric}` | {kind} | {} | {meaning} |", labels.join(", "))
    });
    assert_eq!(rows.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
}
