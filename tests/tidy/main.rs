//! Goal: the habits of CONTRIBUTING.md hold everywhere. Method: the sources are read as text, so a breach names its file and line.

use std::fs;
use std::path::{Path, PathBuf};

mod cpp;
mod pages;
mod rust;

const MAX_FILE_LINES: usize = 400;
const MAX_FUNCTION_LINES: usize = 70;
const MAX_PARAMETERS: usize = 5;
/// Characters, comments included.
const MAX_LINE_LEN: usize = 140;

/// What opens a library of the driver's or the toolkit's at run time.
const BINDINGS: &[&str] = &["cublaslt", "tensor_map"];

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
        .flat_map(|dir| files(dir, &["rs", "cc", "h", "cu", "cuh"]))
        .collect()
}

/// Whether a file under `src` holds tests or what they share: their actors and imports play neighbours.
fn is_test(path: &Path) -> bool {
    let file = name(path);
    ["/tests", "/testing", "_tests.rs"].iter().any(|mark| file.contains(mark))
}

/// The part of a file that runs in the node: all but the modules in it that are for tests.
fn without_unit_tests(path: &Path) -> String {
    let text = read(path);
    if path.extension().is_some_and(|e| e == "rs") {
        rust::without_test_modules(&text)
    } else {
        text
    }
}

fn report(breaches: &[String]) {
    assert!(breaches.is_empty(), "{} breaches:\n{}", breaches.len(), breaches.join("\n"));
}

#[test]
fn files_are_short() {
    let breaches: Vec<String> = sources()
        .iter()
        .filter_map(|path| {
            let lines = without_unit_tests(path).lines().count();
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

/// A function that has a body.
struct Function {
    /// Where it begins.
    line: usize,
    /// From its signature to its last brace.
    lines: usize,
    /// `self` not counted.
    parameters: usize,
}

/// What is said of every function: those that break the rule.
fn functions_that(breaks: impl Fn(&Function) -> Option<String>) -> Vec<String> {
    let mut breaches = Vec::new();
    let mut seen = 0;
    for path in sources() {
        let is_rust = path.extension().is_some_and(|e| e == "rs");
        let functions = if is_rust { rust::functions(&path) } else { cpp::functions(&path) };
        seen += functions.len();
        for function in functions {
            if let Some(breach) = breaks(&function) {
                breaches.push(format!("{}:{}: {breach}", name(&path), function.line));
            }
        }
    }
    assert!(seen > 4_000, "found only {seen} functions");
    breaches
}

#[test]
fn functions_are_short() {
    report(&functions_that(|function| {
        let lines = function.lines;
        (lines > MAX_FUNCTION_LINES).then(|| format!("{lines} lines"))
    }));
}

#[test]
fn functions_have_few_parameters() {
    report(&functions_that(|function| {
        let parameters = function.parameters;
        (parameters > MAX_PARAMETERS).then(|| format!("{parameters} parameters"))
    }));
}

#[test]
fn unsafe_stands_at_the_borders_only() {
    let allowed =
        ["src/bridge.rs", "src/bridge/spec.rs", "src/checkpoint/mmap.rs", "src/gpu/driver.rs"];
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
fn every_op_has_its_contract_its_oracle_and_its_test() {
    let mut breaches = Vec::new();
    let mut ops = 0;
    for path in files("cpp/ops", &["h"]) {
        let stem = path.with_extension("");
        // A header without a .cc of its own is a detail of several ops, not an op; bindings are tested by what calls them.
        if !stem.with_extension("cc").exists() || BINDINGS.iter().any(|name| stem.ends_with(name)) {
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
fn every_op_on_gpus_is_called_by_a_test() {
    let all = |ending: &str, mark: &str| -> String {
        let paths = files("cpp/ops", &[ending]);
        paths.iter().filter(|path| name(path).ends_with(mark)).map(|path| read(path)).collect()
    };
    let has = |text: &str, call: &str| {
        let is_part = |before: &str| before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        text.match_indices(call).any(|(at, _)| !is_part(&text[..at]))
    };
    let (headers, tests) = (all("h", "_cuda.h"), all("cc", "_cuda_test.cc"));
    let mut breaches = Vec::new();
    let mut ops = 0;
    for path in files("cpp/ops", &["cu"]) {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let call = format!("{stem}(");
        // What no header declares is a part of an op.
        if !stem.ends_with("_cuda") || !has(&headers, &call) {
            continue;
        }
        ops += 1;
        if !has(&tests, &call) {
            breaches.push(format!("{} is called by no *_cuda_test.cc", name(&path)));
        }
    }
    assert!(ops >= 6, "found only {ops} ops in .cu files under cpp/ops");
    report(&breaches);
}
