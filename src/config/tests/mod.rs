use std::ffi::OsString;

use super::*;

mod secrets;

fn load(file: &str, environment: &[(&str, &str)], flags: &[&str]) -> Result<Config, ConfigError> {
    let path = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(path.path(), file).expect("writes");
    let flags = flags.iter().map(|flag| Set::Any((*flag).to_owned())).collect();
    load_with(path.path(), environment, flags)
}

fn load_with(
    file: &std::path::Path,
    environment: &[(&str, &str)],
    flags: Vec<Set>,
) -> Result<Config, ConfigError> {
    let pair = |(name, value): &(&str, &str)| (OsString::from(*name), OsString::from(*value));
    let environment = environment.iter().map(pair).collect();
    Config::load(&Sources { file: Some(file.to_owned()), environment, flags })
}

/// Without a file.
fn load_flags(flags: Vec<Set>) -> Result<Config, ConfigError> {
    Config::load(&Sources { flags, ..Sources::default() })
}

const MODEL: &str = "[[models]]\nname = \"demo\"\nmodel_path = \"models/demo\"\n";

#[test]
fn flags_go_over_environment_over_file() {
    let file = format!("{MODEL}[http]\nbind = \"127.0.0.1:1\"\nworkers = 2\n[node]\nid = \"a\"\n");
    let environment = [("INFERNO_HTTP_BIND", "127.0.0.1:2"), ("INFERNO_NODE_ID", "b")];
    let config = load(&file, &environment, &["http.bind=127.0.0.1:3"]).expect("valid");
    assert_eq!(config.http.bind, "127.0.0.1:3");
    assert_eq!((config.node_id().as_str(), config.http.workers), ("b", 2));
    assert_eq!(config.drain_timeout(), Duration::from_secs(30));
}

#[test]
fn the_environment_reaches_models_and_inner_tables() {
    let environment = [
        ("INFERNO_MODEL_PATH", "models/demo"),
        ("INFERNO_MODEL_NAME", "tiny"),
        ("INFERNO_BUS_MANAGED__PORT", "4300"),
        ("INFERNO_HTTP_API_KEYS", "[\"secret\"]"),
        ("INFERNO_CONFIG", "read by the command line"),
        ("INFERNO_API_KEY", "a client's"),
    ];
    let config = load("", &environment, &["bus.tls.required=true"]).expect("valid");
    assert_eq!(config.models[0].name, "tiny");
    assert_eq!((config.bus.managed.port, config.bus.tls.required), (4300, true));
    assert!(!config.to_toml().contains("secret"), "{}", config.to_toml());
    assert!(config.to_toml().contains("name = \"tiny\""));
}

#[test]
fn faults_name_their_keys_all_at_once() {
    let file = format!(
        "{MODEL}{MODEL}[http]\nworkers = 0\n[node]\nid = \"a b\"\ndrain_timeout_s = 0\n[scheduler]\nageing_s = -1\n"
    );
    let error = load(&file, &[], &[]).expect_err("five faults");
    for key in
        ["models.name", "http.workers", "node.id", "node.drain_timeout_s", "scheduler.ageing_s"]
    {
        assert!(error.0.iter().any(|line| line.starts_with(key)), "{key} in {error}");
    }
    let none = load("", &[], &[]).expect_err("no model");
    assert!(none.to_string().contains("[[models]]"), "{none}");
}

#[test]
fn a_block_size_is_one_that_the_kernels_of_the_devices_have() {
    for (block_size, on_gpus) in [(8, false), (16, true), (128, true), (256, false)] {
        let size = format!("batcher.block_size={block_size}");
        // In a build without CUDA, GPUs are a fault of their own.
        let is_taken = |devices| {
            let error = load(MODEL, &[], &[&size, devices]).err();
            error.is_none_or(|error| !error.to_string().contains("batcher.block_size"))
        };
        assert_eq!(is_taken("executor.gpu_devices=[0]"), on_gpus, "{block_size}");
        assert!(is_taken("executor.gpu_devices=[]"), "{block_size}");
    }
}

#[test]
fn unknown_keys_and_broken_layers_are_refused() {
    for (file, environment, flags, part) in [
        ("[http]\nport = 1\n", None, None, "port"),
        ("[what]\nis = 1\n", None, None, "what"),
        ("[http\n", None, None, ":1:6: unclosed table"),
        ("models = 3\n", None, Some("model.name=x"), "models"),
        ("", None, Some("htpp.bind=1"), "the nearest is http.bind"),
        ("", None, Some("what=1"), "--set what: no such key"),
        ("http = 3\n", None, Some("http.bind=x"), "http"),
        ("", Some(("INFERNO_HTTP", "1")), None, "INFERNO_HTTP"),
        ("", Some(("INFERNO_HTTP_PROT", "1")), None, "INFERNO_HTTP_PROT"),
        ("", None, Some("http.bind"), "http.bind"),
        ("", None, Some("bind=1"), "--set bind: no such key"),
    ] {
        let environment: Vec<_> = environment.into_iter().collect();
        let flags: Vec<_> = flags.into_iter().collect();
        let error = load(file, &environment, &flags).expect_err(part);
        assert!(error.to_string().contains(part), "{part} in {error}");
    }
    let sources = Sources { file: Some("/does/not/exist.toml".into()), ..Sources::default() };
    assert!(Config::load(&sources).is_err());
}

#[test]
fn unknown_keys_and_wrong_types_are_named_with_their_section_all_at_once() {
    let file = "[[models]]\nname = \"a\"\nmodel_path = \"b\"\ncolour = 1\n\
        [http]\nport = 1\nhost = 1\nworkers = \"two\"\n[bus.tls]\ncrt = \"x\"\n[hppt]\nbind = \"y\"\n\
        [executor]\nisa = \"sse\"\nfaults = [{ kind = \"panic\", steps = 1 }]\n";
    let error = load(file, &[], &[]).expect_err("eight faults");
    let keys = [
        "models.colour",
        "http.port",
        "http.host",
        "http.workers",
        "bus.tls.crt",
        "hppt",
        "executor.isa",
        "executor.faults.steps",
    ];
    for key in keys {
        let named = |line: &&String| line.starts_with(&format!("{key}: "));
        assert_eq!(error.0.iter().filter(named).count(), 1, "{key} in {error}");
    }
    assert_eq!(error.0.len(), keys.len(), "{error}");
    let missing = load("[[models]]\nname = \"a\"\n", &[], &[]).expect_err("no path");
    assert!(missing.to_string().contains("model_path"), "{missing}");
}

#[test]
fn a_library_configuration_opens_no_door() {
    let config = Config::library("demo", "models/demo");
    assert_eq!(config.check(), Ok(()));
    assert!(!config.http.enabled && config.bus.mode == bus::Mode::Off);
    assert!(!config.node_id().is_empty());
}

#[test]
fn a_variable_that_is_none_is_named_with_the_nearest_and_so_is_every_other() {
    let environment = [
        ("INFERNO_HTTP_BNID", "x"),
        ("INFERNO_MODEL_MAX_SEQLEN", "9"),
        ("INFERNO_COLOUR", "red"),
        ("INFERNO_HTTP_WORKERS", "2"),
    ];
    let error = load(MODEL, &environment, &["http.wrokers=2"]).expect_err("four faults");
    let expected = [
        "INFERNO_HTTP_BNID: no such variable; the nearest is INFERNO_HTTP_BIND",
        "INFERNO_MODEL_MAX_SEQLEN: no such variable; the nearest is INFERNO_MODEL_MAX_SEQ_LEN",
        "INFERNO_COLOUR: no such variable; docs/configuration.md lists them",
        "--set http.wrokers: no such key; the nearest is http.workers",
    ];
    assert_eq!(error.0, expected);
}

#[test]
fn a_list_in_the_environment_is_toml_or_has_commas() {
    let keys = |text: &str| {
        let config = load(MODEL, &[("INFERNO_HTTP_API_KEYS", text)], &[]).expect(text);
        let keys = config.http.api_keys.iter().map(|key| key.expose().to_owned());
        keys.collect::<Vec<String>>()
    };
    assert_eq!(keys("secret"), ["secret"]);
    assert_eq!(keys("a, b"), ["a", "b"]);
    assert_eq!(keys("[\"a\", \"b,c\"]"), ["a", "b,c"]);
    let flags = ["executor.devices=sim:0,sim:1", "executor.kv_cache_size=8GiB"];
    let config = load(MODEL, &[("INFERNO_BUS_TOKEN", "007")], &flags).expect("valid");
    assert_eq!(config.executor.devices, ["sim:0", "sim:1"]);
    assert_eq!(config.executor.kv_cache_size.map(|size| size.0), Some(8 << 30));
    assert_eq!(config.bus.token.as_ref().map(|token| token.expose()), Some("007"));
    let gpus = load(MODEL, &[("INFERNO_EXECUTOR_GPU_DEVICES", "0,1")], &[]);
    // Without CUDA they are refused, but as two.
    let text = gpus.map_or_else(|error| error.to_string(), |config| config.to_toml());
    assert!(text.contains("cuda:1") || text.contains("[0, 1]"), "{text}");
    let unclosed = load(MODEL, &[("INFERNO_EXECUTOR_DEVICES", "[\"sim:0\"")], &[]);
    let error = unclosed.expect_err("no list").to_string();
    assert!(error.starts_with("INFERNO_EXECUTOR_DEVICES: expected [\"a\""), "{error}");
}

#[test]
fn every_key_has_a_variable_and_takes_its_default_by_it() {
    let plain = load(MODEL, &[], &[]).expect("valid");
    for key in keys().iter().filter(|key| key.section() != "models") {
        let Some(default) = &key.0.default else { continue };
        let text = default.as_str().map_or_else(|| default.to_string(), str::to_owned);
        let given = load(MODEL, &[(&key.variable(), &text)], &[]).map(|config| config.to_toml());
        assert_eq!(given, Ok(plain.to_toml()), "{}={text}", key.variable());
    }
}

#[test]
fn other_names_of_a_key_work_in_every_layer() {
    let mut seen = 0;
    for key in keys() {
        for alias in &key.0.aliases {
            seen += 1;
            let (table, _) = key.0.path.rsplit_once('.').expect("a section");
            let same = |text: &str, environment: &[(&str, &str)], flags: &[&str]| {
                load(text, environment, flags).map(|config| config.to_toml())
            };
            let value = match key.0.form {
                settings::Form::Toml if key.0.type_name == "integer" => "512",
                settings::Form::Toml => "false",
                _ => "\"1GiB\"",
            };
            let by_flag = same(MODEL, &[], &[&format!("{}={value}", key.0.path)]);
            assert!(by_flag.is_ok(), "{alias}: {by_flag:?}");
            assert_eq!(same(MODEL, &[], &[&format!("{table}.{alias}={value}")]), by_flag);
            let variable = key.variables().nth(1).expect("one for the alias");
            assert_eq!(same(MODEL, &[(&variable, value)], &[]), by_flag, "{variable}");
            let header = if table == "models" { String::new() } else { format!("[{table}]\n") };
            let file = format!("{MODEL}{header}{alias} = {value}\n");
            assert_eq!(same(&file, &[], &[]), by_flag, "{file}");
        }
    }
    assert_eq!(seen, 5, "the aliases that there are");
}

#[test]
fn the_command_lines_model_is_named_after_its_folder_and_fights_no_file() {
    let model =
        |text: &str| Set::Key { flag: "MODEL", key: "models.model_path", text: text.into() };
    let length =
        Set::Key { flag: "--max-seq-len", key: "models.max_seq_len", text: "100".to_owned() };
    let config = load_flags(vec![model("x/My_Model.1/"), length.clone()]).expect("valid");
    assert_eq!(config.models[0].name, "my-model-1");
    assert_eq!(config.models[0].max_seq_len, Some(100));
    let by_set = load_flags(vec![model("org/M"), Set::Any("models.max_seq_len=7".to_owned())]);
    assert_eq!(by_set.expect("valid").models[0].max_seq_len, Some(7));
    let with = |file: &str, flags: Vec<Set>| {
        let path = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(path.path(), file).expect("writes");
        load_with(path.path(), &[], flags).map_err(|error| error.to_string())
    };
    let other = with(MODEL, vec![model("other")]).expect_err("two answers to one question");
    assert!(other.starts_with("MODEL: the file has [[models]] of its own (demo)"), "{other}");
    let shorter = with(MODEL, vec![length.clone()]).expect("about the only model");
    assert_eq!(shorter.models[0].max_seq_len, Some(100));
    let two = format!("{MODEL}[[models]]\nmodel_path = \"b\"\n");
    assert_eq!(with(&two, Vec::new()).expect("valid").models[1].name, "b");
    let which = with(&two, vec![length]).expect_err("which of them?");
    assert!(which.starts_with("--max-seq-len: the file has several models (demo, b)"), "{which}");
}

#[test]
fn host_and_port_change_their_part_of_the_address_alone() {
    let model = Set::Any("model.path=m".to_owned());
    let bind = |flags: &[Set]| {
        let flags = [std::slice::from_ref(&model), flags].concat();
        load_flags(flags).map(|config| config.http.bind)
    };
    assert_eq!(bind(&[Set::Port(9)]).as_deref(), Ok("127.0.0.1:9"));
    assert_eq!(bind(&[Set::Host("localhost".into())]).as_deref(), Ok("localhost:8000"));
    let both = [Set::Any("http.bind=[::1]:7".into()), Set::Port(9)];
    assert_eq!(bind(&both).as_deref(), Ok("[::1]:9"));
}

#[test]
fn a_log_level_that_is_none_is_refused() {
    for bad in ["infoo", "info,infoo", "inferno_node=infoo", "", "a b"] {
        let error = load(MODEL, &[], &[&format!("node.log={bad}")]).expect_err(bad).to_string();
        assert!(error.starts_with("node.log: expected off, error, warn"), "{bad}: {error}");
    }
    for good in ["off", "INFO", "debug", "info,actix_http=debug", "warn,inferno_node::request=info"]
    {
        assert!(load(MODEL, &[], &[&format!("node.log={good}")]).is_ok(), "{good}");
    }
}

#[test]
fn a_node_that_nobody_can_ask_is_refused() {
    let deaf = ["http.enabled=false", "bus.mode=off"];
    let fault = load(MODEL, &[], &deaf).expect("valid").check_doors().expect_err("no door");
    let expected =
        "http.enabled is false and bus.mode is \"off\": nobody could ask this node anything";
    assert_eq!(fault.to_string(), expected);
    let nowhere = ["http.enabled=false", "bus.managed.binary=no-such-nats-server"];
    let fault = load(MODEL, &[], &nowhere).expect("valid").check_doors().expect_err("no door");
    assert!(fault.to_string().contains("bus.mode = \"auto\" finds no nats-server"), "{fault}");
    for one in ["http.enabled=false", "bus.mode=off"] {
        let more = if one.starts_with("http") { "bus.mode=external" } else { "http.enabled=true" };
        assert_eq!(load(MODEL, &[], &[one, more]).expect("valid").check_doors(), Ok(()));
    }
}

#[test]
fn what_was_changed_is_told_and_secrets_are_not() {
    let flags = ["executor.threads=1", "http.api_keys=hush", "bus.tls.required=true"];
    let changes = load(MODEL, &[], &flags).expect("valid").changes();
    let expected = ["bus.tls.required = true", "executor.threads = 1", "http.api_keys = [\"***\"]"];
    assert_eq!(changes, expected);
}

#[test]
fn a_file_that_is_no_toml_is_said_with_line_and_column() {
    let error = load("[http]\nworkers = \n", &[], &[]).expect_err("no value").to_string();
    assert!(error.contains(":2:1") && !error.contains('|'), "{error}");
}

#[test]
fn limits_are_held_at_both_ends() {
    let mut seen = 0;
    for key in keys().iter().filter(|key| key.section() != "models") {
        let path = &key.0.path;
        let fault = |value: &str| {
            let error = load(MODEL, &[], &[&format!("{path}={value}")]).err();
            error.is_some_and(|error| {
                error.0.iter().any(|line| line.starts_with(&format!("{path}: ")))
            })
        };
        let Some(text) = key.0.limits.text() else { continue };
        let (low, high) = match text.split_once(" to ") {
            Some((low, high)) => (low, Some(high)),
            None => (text.as_str(), None),
        };
        let low = low.trim_start_matches("at least ").to_owned();
        if let Some(high) = high {
            let above = high.parse::<f64>().expect("a number") + 1.0;
            assert!(fault(&above.to_string()), "{path} = {above}");
            seen += 1;
        }
        match low.strip_prefix("above ") {
            Some(low) => assert!(fault(low), "{path} = {low}"),
            None => {
                let below = low.parse::<f64>().expect("a number") - 1.0;
                assert!(fault(&below.to_string()), "{path} = {below}");
            }
        }
    }
    assert!(seen > 15, "{seen} keys with limits");
}

#[test]
fn the_page_has_every_key_with_its_names_and_no_long_line() {
    let page = page();
    for key in keys() {
        let (_, name) = key.0.path.split_once('.').expect("a section");
        let head = format!("* **`{name}`**");
        let entry = page.split(&head).skip(1);
        let entry = entry.filter_map(|rest| rest.split("\n*").next());
        let own = |entry: &&str| {
            let dense = entry.split_whitespace().collect::<Vec<_>>().join(" ");
            dense.contains(&format!("`{}`", key.variable())) && dense.contains(&key.0.about)
        };
        assert!(
            !key.0.about.is_empty() && entry.clone().any(|entry| own(&entry)),
            "{}",
            key.0.path
        );
    }
    let long: Vec<&str> = page.lines().filter(|line| line.chars().count() > 120).collect();
    assert_eq!(long, [""; 0]);
}
