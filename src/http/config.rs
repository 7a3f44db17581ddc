//! The section `[http]`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::secret::{self, Secret};
use crate::settings;

/// The section `[http]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether the node has an HTTP door.
    pub enabled: bool,
    /// Where to listen, `ip:port`; port 0 takes a free one. Beyond loopback, `api_keys` must be set.
    pub bind: String,
    /// Bearer keys of which a client must show one, for everything but health and metrics; empty: none is asked for.
    #[serde(deserialize_with = "secret::several")]
    pub api_keys: Vec<Secret>,
    /// A file with further keys, one on each line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_file: Option<PathBuf>,
    /// Web pages that may use the door from a browser, as `scheme://host[:port]` or `*`; empty: browsers let none.
    pub allowed_origins: Vec<String>,
    /// Whether a body's unknown members are refused by name, or ignored and named in the answer's header `x-inferno-ignored`.
    pub unknown_parameters: UnknownParameters,
    /// Threads that serve connections; each takes about one core when 100,000 tokens a second are streamed.
    #[schemars(range(min = 1, max = 256))]
    pub workers: usize,
    /// Most connections at once, over all workers. Beyond, the one that has been idle longest is closed; where all are busy, only
    /// health and metrics are answered, others with 429. Each costs two file descriptors and about 20 kB.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub max_connections: usize,
    /// Longest request body in bytes; a longer one is refused as `too_large`. All bodies beyond 64 KiB that are being read or
    /// parsed hold 16 times as much at most; what goes beyond is refused as `queue_full`.
    #[schemars(range(min = 1_024, max = 1_073_741_824))]
    pub max_body_bytes: usize,
    /// Most prompts in one `/v1/completions` request; each is a request of its own to admission.
    #[schemars(range(min = 1, max = 4_096))]
    pub max_prompts: usize,
    /// Seconds a client may take to send the head of a request, and again for its body.
    #[schemars(range(min = 1, max = 3_600))]
    pub read_timeout_s: u64,
    /// Seconds an idle connection is kept for the client's next request. Clients that reuse connections should give up
    /// earlier than this; 0 closes after each answer.
    #[schemars(range(max = 3_600))]
    pub keep_alive_s: u64,
    /// Seconds after which a reader that takes nothing is cancelled and its connection closed.
    #[schemars(range(min = 1, max = 3_600))]
    pub slow_reader_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            bind: "127.0.0.1:8000".to_owned(),
            api_keys: Vec::new(),
            api_key_file: None,
            allowed_origins: Vec::new(),
            unknown_parameters: UnknownParameters::Refuse,
            workers: 1,
            max_connections: 4_096,
            max_body_bytes: 4 << 20,
            max_prompts: 128,
            read_timeout_s: 30,
            keep_alive_s: 75,
            slow_reader_s: 60,
        }
    }
}

impl Config {
    /// Checks every key.
    ///
    /// # Errors
    /// One line for each key at fault: name, expected, got.
    pub fn check(&self) -> Result<(), Vec<String>> {
        let mut faults = Vec::new();
        match self.address() {
            Err(fault) => faults.push(fault),
            Ok(address) if !address.ip().is_loopback() && self.api_keys.is_empty() => {
                faults.push(format!(
                    "http.api_keys: expected at least one key where http.bind is beyond loopback ({address})"
                ));
            }
            Ok(_) => {}
        }
        if self.api_keys.iter().any(|key| !is_sendable(key)) {
            faults.push("http.api_keys: expected visible ASCII characters, no spaces".to_owned());
        }
        if let Some(wrong) = self.allowed_origins.iter().find(|origin| !is_origin(origin)) {
            faults.push(format!(
                "http.allowed_origins: expected scheme://host[:port] without a path, or *, got {wrong:?}"
            ));
        }
        faults.extend(settings::out_of_range("http", self));
        if self.max_connections < self.workers {
            let (workers, got) = (self.workers, self.max_connections);
            faults.push(format!(
                "http.max_connections: expected at least http.workers ({workers}), got {got}"
            ));
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    /// Adds the keys of `api_key_file`.
    ///
    /// # Errors
    /// The file, and why it gives none.
    pub fn read_key_file(&mut self) -> Result<(), String> {
        let Some(path) = &self.api_key_file else { return Ok(()) };
        let fault = |reason: String| format!("http.api_key_file: {}: {reason}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| fault(error.to_string()))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let keys: Vec<Secret> = lines.map(Secret::new).collect();
        if keys.is_empty() {
            return Err(fault("expected a key on a line, got none".to_owned()));
        }
        self.api_keys.extend(keys);
        Ok(())
    }

    /// Where to listen.
    ///
    /// # Errors
    /// The fault of `http.bind`, as [`Config::check`] says it.
    pub fn address(&self) -> Result<SocketAddr, String> {
        let fault =
            || format!("http.bind: expected ip:port or localhost:port, got {:?}", self.bind);
        match self.bind.strip_prefix("localhost:") {
            Some(port) => {
                let port = port.parse().map_err(|_| fault())?;
                Ok((Ipv4Addr::LOCALHOST, port).into())
            }
            None => self.bind.parse().map_err(|_| fault()),
        }
    }

    pub(super) fn slow_reader(&self) -> Duration {
        Duration::from_secs(self.slow_reader_s)
    }

    pub(super) fn read_timeout(&self) -> Duration {
        Duration::from_secs(self.read_timeout_s)
    }
}

/// What browsers write as `Origin` (RFC 6454, 6.2), or any.
fn is_origin(origin: &str) -> bool {
    let is_plain = |text: &str| {
        let is_name = |b: u8| b.is_ascii_graphic() && !b"/?#@\\,".contains(&b);
        !text.is_empty() && text.bytes().all(is_name) && text == text.to_ascii_lowercase()
    };
    origin == "*"
        || origin.split_once("://").is_some_and(|(scheme, host)| is_plain(scheme) && is_plain(host))
}

/// What becomes of a body's unknown members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UnknownParameters {
    /// The first is refused by name.
    Refuse,
    /// They are passed over, and named in the answer's header `x-inferno-ignored` and in the log.
    Ignore,
}

/// Whether a header can carry it.
fn is_sendable(key: &Secret) -> bool {
    let text = key.expose();
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults_of(toml: &str) -> Vec<String> {
        let config: Config = toml::from_str(toml).expect("well-formed");
        config.check().expect_err("has faults")
    }

    #[test]
    fn the_default_is_loopback_without_keys() {
        let config = Config::default();
        assert_eq!(config.check(), Ok(()));
        assert_eq!(config.address().map(|a| a.to_string()), Ok("127.0.0.1:8000".to_owned()));
    }

    #[test]
    fn beyond_loopback_a_key_is_demanded() {
        assert_eq!(faults_of("bind = '0.0.0.0:80'").len(), 1);
        assert!(faults_of("bind = '[::]:80'")[0].starts_with("http.api_keys"));
        let config: Config =
            toml::from_str("bind = '0.0.0.0:80'\napi_keys = ['k']").expect("well-formed");
        assert_eq!(config.check(), Ok(()));
        for loopback in ["localhost:0", "127.0.0.2:1", "[::1]:80"] {
            let config = Config { bind: loopback.to_owned(), ..Config::default() };
            assert_eq!(config.check(), Ok(()), "{loopback}");
        }
    }

    #[test]
    fn every_bad_key_is_named() {
        let faults = faults_of(
            "bind = 'x'\napi_keys = ['a b']\nallowed_origins = ['http://a/']\nworkers = 0\nmax_connections = 0\nmax_body_bytes = 1\n\
             max_prompts = 0\nread_timeout_s = 0\nkeep_alive_s = 4000\nslow_reader_s = 0",
        );
        let keys: Vec<&str> = faults.iter().filter_map(|fault| fault.split(':').next()).collect();
        assert_eq!(
            keys,
            [
                "http.bind",
                "http.api_keys",
                "http.allowed_origins",
                "http.keep_alive_s",
                "http.max_body_bytes",
                "http.max_connections",
                "http.max_prompts",
                "http.read_timeout_s",
                "http.slow_reader_s",
                "http.workers"
            ]
        );
        assert!(faults[0].contains("got \"x\""));
        let port = Config { bind: "localhost:x".to_owned(), ..Config::default() };
        assert!(port.address().is_err());
        assert!(toml::from_str::<Config>("bindd = 'x'").is_err());
    }

    #[test]
    fn an_origin_is_what_a_browser_writes() {
        for good in
            ["*", "http://localhost:3000", "https://a.example", "http://[::1]:8", "tauri://x"]
        {
            assert!(is_origin(good), "{good}");
        }
        for bad in
            ["", "null", "a.example", "http://a/", "http://", "://a", "http://A", "http://a b"]
        {
            assert!(!is_origin(bad), "{bad}");
        }
    }

    #[test]
    fn a_file_gives_further_keys_and_one_without_any_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), "\n second \nthird\n").expect("writes");
        let mut config = Config {
            api_keys: vec![Secret::new("first")],
            api_key_file: Some(file.path().to_owned()),
            ..Config::default()
        };
        config.read_key_file().expect("reads");
        let keys: Vec<&str> = config.api_keys.iter().map(Secret::expose).collect();
        assert_eq!(keys, ["first", "second", "third"]);
        std::fs::write(file.path(), " \n").expect("writes");
        let fault = config.read_key_file().expect_err("no key in it");
        assert!(fault.starts_with("http.api_key_file: ") && fault.contains("got none"), "{fault}");
        let config = Config { workers: 8, max_connections: 4, ..Config::default() };
        assert!(config.check().is_err_and(|faults| faults[0].contains("http.workers (8)")));
    }
}
