//! Whatever is wrong with a secret, nobody is shown it.

use super::*;

/// Part of every planted secret.
const HUSH: &str = "sk-HUSH7";

/// Files with a secret in every place where one may stand, whatever is wrong with it.
fn files() -> Vec<String> {
    let numbers = [
        "api_keys = 707070",
        "api_keys = [707070]",
        "api_keys = 70.7070",
        "api_keys = {k = 707070}",
    ];
    let mut files: Vec<String> = numbers.iter().map(|line| format!("[http]\n{line}\n")).collect();
    for (section, key) in [
        ("http", "api_keys"),
        ("bus", "token"),
        ("bus", "password"),
        ("bus", "url"),
        ("registrar", "secret"),
    ] {
        for value in [
            "HUSH",
            "\"HUSH",
            "\"HUSH\" x",
            "[\"HUSH\"",
            "[\"HUSH\", 1",
            "\"\"\"HUSH",
            "'HUSH",
            "{ HUSH }",
            "{ a = \"HUSH\" }",
            "{ HUSH = 1 }",
            "[[\"HUSH\"]]",
            "\"HUSH\"\nurl = \"HUSH\"\nurl = 1",
            "\"HU\\SH HUSH\"",
            "\"HUSH HUSH\"",
            "[\"HUSH ä\"]",
            "\"nats://me:HUSH@host:4222\"",
            "[\"nats://me:HUSH@host:4222\"]",
            "\"http://HUSH@host\"",
            "\"nats://me:HUSH@host:port\"",
            "\"nats://me:HUSH,x@host:1\"",
            "\"nats://a:1, tls://me:HUSH@b:1\"",
        ] {
            // A URL's secret is its login.
            if key != "url" || value.contains('@') {
                files.push(format!("[{section}]\n{key} = {}\n", value.replace("HUSH", HUSH)));
            }
        }
        files.push(format!("[{section}]\n{key} = \"{HUSH}\"\n[{section}]\n"));
        files.push(format!("{section} = \"{HUSH}\"\n"));
        files.push(format!("[{section}]\n{key}_ = \"{HUSH}\"\n"));
    }
    files.push(format!("[bus]\nmode = \"nats://me:{HUSH}@host\"\n"));
    files.push(format!("[http]\nworkers = \"{HUSH}\"\n"));
    files
}

fn silent(result: Result<Config, ConfigError>, what: &str) {
    let shown = match result {
        Ok(config) => config.to_toml() + &config.changes().join("\n") + &format!("{config:?}"),
        Err(error) => error.to_string(),
    };
    assert!(!shown.contains(HUSH) && !shown.contains("7070"), "{what}: {shown}");
}

#[test]
fn no_fault_of_a_file_shows_a_secret() {
    for file in files() {
        silent(load(&format!("{MODEL}{file}"), &[], &[]), &file);
        silent(load(&file, &[], &[]), &file);
    }
}

#[test]
fn no_fault_of_a_variable_or_flag_shows_a_secret() {
    let values = [
        "HUSH",
        "[\"HUSH\"",
        "[\"HUSH\"]",
        "\"HUSH",
        "{a=\"HUSH\"}",
        "nats://me:HUSH@h:1",
        "707070",
    ];
    for value in values.map(|value| value.replace("HUSH", HUSH)) {
        for key in keys().iter().filter(|key| key.0.is_secret || key.0.path == "bus.url") {
            let path = &key.0.path;
            let variable = key.variable();
            if path == "bus.url" && !value.contains('@') {
                continue;
            }
            silent(load(MODEL, &[(&variable, &value)], &[]), &variable);
            silent(load(MODEL, &[(&format!("{variable}S"), &value)], &[]), &variable);
            for flag in
                [format!("{path}={value}"), format!("{path}:{value}"), format!("{path}s={value}")]
            {
                silent(load(MODEL, &[], &[&flag]), &flag);
            }
        }
    }
    assert!(keys().iter().filter(|key| key.0.is_secret).count() >= 3);
}
