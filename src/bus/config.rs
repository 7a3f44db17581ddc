//! Settings of the bus, checked before anything is opened.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::secret::Secret;
use crate::settings;

/// `[bus]`: how the node is reached over NATS.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `external`: a NATS server that runs elsewhere. `managed`: the node runs its own nats-server as a child. `off`: no bus.
    /// `auto`: `external` where a URL (or a credentials file, or required TLS) is named, else `managed` where a nats-server is
    /// installed, else `off`.
    pub mode: Mode,
    /// Server to connect to in mode `external`: `nats://host:port` or `tls://host:port`; several are joined by commas. One that is
    /// not there is waited for. Absent: `nats://127.0.0.1:4222`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// First part of every subject.
    pub prefix: String,
    /// User name, with `password`.
    pub user: Option<String>,
    /// Password of `user`.
    pub password: Option<Secret>,
    /// Token, instead of user and password.
    pub token: Option<Secret>,
    /// NATS credentials file (JWT and seed), instead of user and password.
    pub credentials_file: Option<PathBuf>,
    /// Certificates.
    pub tls: Tls,
    /// Where answers to the node itself come in; change it where accounts restrict `_INBOX`.
    pub inbox_prefix: String,
    /// Largest request body in bytes; beyond it `too_large`. NATS has a limit of its own (`max_payload`, 1 MiB by default).
    #[schemars(range(min = 1))]
    pub max_request_bytes: usize,
    /// After a reconnect, how long streams from before are held back and absent subscribers are forgiven, in milliseconds:
    /// clients take seconds to come back (nats-py 2). Shorter loses events to clients that are slower than this.
    #[schemars(range(max = 600_000))]
    pub reconnect_hold_ms: u64,
    /// The child of mode `managed`.
    pub managed: Managed,
}

/// Where the NATS server comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// As the configuration and the machine suggest; see [`Config::mode`].
    #[default]
    Auto,
    /// It runs elsewhere.
    External,
    /// A child of the node, on loopback, ended with it.
    Managed,
    /// No bus; HTTP works alone.
    Off,
}

/// `[bus.tls]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// Refuse a server without TLS. Set by `tls://` URLs too.
    pub required: bool,
    /// PEM file of the authorities to trust; absent: the system's.
    pub ca: Option<PathBuf>,
    /// PEM file of the client certificate, with `key`.
    pub cert: Option<PathBuf>,
    /// PEM file of the client certificate's key.
    pub key: Option<PathBuf>,
}

/// `[bus.managed]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Managed {
    /// The program, looked up in `PATH` unless it is a path.
    pub binary: PathBuf,
    /// Loopback port; 0 takes a free one, which the ready line names. Kept over restarts of the child.
    pub port: u16,
    /// Where JetStream keeps its files; absent: a new temporary directory, removed at the end.
    pub store_dir: Option<PathBuf>,
}

/// Where NATS is if nobody says.
const DEFAULT_URL: &str = "nats://127.0.0.1:4222";

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::Auto,
            url: None,
            prefix: "inferno.v1".to_owned(),
            user: None,
            password: None,
            token: None,
            credentials_file: None,
            tls: Tls::default(),
            inbox_prefix: "_INBOX".to_owned(),
            max_request_bytes: 1 << 20,
            reconnect_hold_ms: 5_000,
            managed: Managed::default(),
        }
    }
}

impl Managed {
    /// Whether the program is there.
    pub(super) fn is_installed(&self) -> bool {
        if self.binary.components().count() > 1 {
            return self.binary.is_file();
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|folder| folder.join(&self.binary).is_file())
    }
}

impl Default for Managed {
    fn default() -> Self {
        Self { binary: PathBuf::from("nats-server"), port: 0, store_dir: None }
    }
}

impl Config {
    /// Checks every key.
    ///
    /// # Errors
    /// One line for each wrong key, with what was expected and what came.
    pub fn check(&self) -> Result<(), Vec<String>> {
        let mut wrong = settings::out_of_range("bus", self);
        if !is_subject(&self.prefix) {
            let prefix = &self.prefix;
            wrong.push(format!(
                "bus.prefix: expected words of A-Z a-z 0-9 _ - joined by dots, got {prefix:?}"
            ));
        }
        if !is_subject(&self.inbox_prefix) {
            let prefix = &self.inbox_prefix;
            wrong.push(format!(
                "bus.inbox_prefix: expected words of A-Z a-z 0-9 _ - joined by dots, got {prefix:?}"
            ));
        }
        self.check_urls(&mut wrong);
        self.check_auth(&mut wrong);
        self.check_files(&mut wrong);
        if self.managed.binary.as_os_str().is_empty() {
            wrong.push("bus.managed.binary: expected a program, got nothing".to_owned());
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    /// The servers of `url`.
    pub fn servers(&self) -> impl Iterator<Item = &str> {
        self.url.as_deref().unwrap_or(DEFAULT_URL).split(',').map(str::trim)
    }

    /// Whether there is no bus on this machine.
    pub fn is_off(&self) -> bool {
        self.decided(|| self.managed.is_installed()) == Mode::Off
    }

    /// The mode, with `auto` decided: `has_server` says whether `managed.binary` is installed.
    pub(super) fn decided(&self, has_server: impl FnOnce() -> bool) -> Mode {
        let named = self.url.is_some() || self.credentials_file.is_some() || self.tls.required;
        match self.mode {
            Mode::Auto if named => Mode::External,
            Mode::Auto if has_server() => Mode::Managed,
            Mode::Auto => Mode::Off,
            mode => mode,
        }
    }

    fn check_urls(&self, wrong: &mut Vec<String>) {
        if self.url.as_ref().is_some_and(|url| url.contains('@')) {
            wrong.push(
                "bus.url: expected no user or password in it, got one; bus.user, bus.password and bus.token are for them"
                    .to_owned(),
            );
            return;
        }
        for url in self.servers() {
            let scheme = url.split_once("://").map_or("nats", |(scheme, _)| scheme);
            let known = matches!(scheme, "nats" | "tls");
            let parsed = url.parse::<async_nats::ServerAddr>();
            if !(known && parsed.is_ok_and(|server| !server.host().is_empty())) {
                wrong.push(format!(
                    "bus.url: expected nats://host:port or tls://host:port, got {url:?}"
                ));
            }
        }
    }

    fn check_auth(&self, wrong: &mut Vec<String>) {
        if self.user.is_some() != self.password.is_some() {
            wrong.push("bus.user, bus.password: expected both or neither, got one".to_owned());
        }
        let ways = [self.user.is_some(), self.token.is_some(), self.credentials_file.is_some()];
        if ways.into_iter().filter(|given| *given).count() > 1 {
            wrong.push(
                "bus.user, bus.token, bus.credentials_file: expected at most one, got more"
                    .to_owned(),
            );
        }
        if self.mode == Mode::Managed && self.credentials_file.is_some() {
            wrong.push("bus.credentials_file: expected none in mode managed, got one".to_owned());
        }
        if self.mode == Mode::Managed && self.tls.required {
            wrong.push("bus.tls.required: expected false in mode managed, got true".to_owned());
        }
        if self.tls.cert.is_some() != self.tls.key.is_some() {
            wrong.push("bus.tls.cert, bus.tls.key: expected both or neither, got one".to_owned());
        }
    }

    /// Whether the files can be read, so that a wrong path is said before anything is opened.
    fn check_files(&self, wrong: &mut Vec<String>) {
        if self.mode == Mode::Off {
            return;
        }
        for (key, file) in [
            ("credentials_file", &self.credentials_file),
            ("tls.ca", &self.tls.ca),
            ("tls.cert", &self.tls.cert),
            ("tls.key", &self.tls.key),
        ] {
            let Some(path) = file else { continue };
            if let Err(error) = std::fs::read(path) {
                wrong.push(format!("bus.{key}: {} cannot be read: {error}", path.display()));
            }
        }
    }
}

/// Whether this is a subject without wildcards, of the letters that our subjects use.
fn is_subject(subject: &str) -> bool {
    subject.split('.').all(is_token)
}

/// Whether this can be one word of a subject.
pub(super) fn is_token(word: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    !word.is_empty() && word.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::default();
        change(&mut config);
        config.check().err().unwrap_or_default().join("; ")
    }

    #[test]
    fn the_default_is_right() {
        assert_eq!(Config::default().check(), Ok(()));
    }

    #[test]
    fn a_wrong_key_is_named_with_what_came() {
        assert!(wrong(|c| c.prefix = "a..b".into()).contains("bus.prefix"));
        assert!(wrong(|c| c.inbox_prefix = "a.*".into()).contains("bus.inbox_prefix"));
        assert!(wrong(|c| c.url = Some(String::new())).contains("bus.url"));
        assert!(wrong(|c| c.url = Some("nats://a:1, http://x".into())).contains("\"http://x\""));
        assert!(wrong(|c| c.max_request_bytes = 0).contains("bus.max_request_bytes"));
        assert!(wrong(|c| c.reconnect_hold_ms = 700_000).contains("bus.reconnect_hold_ms"));
        assert!(wrong(|c| c.user = Some("a".into())).contains("bus.password"));
        assert!(wrong(|c| c.tls.cert = Some("a".into())).contains("bus.tls.key"));
        assert!(wrong(|c| c.managed.binary = "".into()).contains("bus.managed.binary"));
        let two = wrong(|c| {
            c.token = Some(Secret::new("t"));
            c.credentials_file = Some("f".into());
        });
        assert!(two.contains("at most one"), "{two}");
        let managed = wrong(|c| {
            c.mode = Mode::Managed;
            c.credentials_file = Some("f".into());
        });
        assert!(managed.contains("managed"), "{managed}");
    }

    #[test]
    fn a_password_in_a_url_is_refused_and_not_shown() {
        for url in ["nats://me:hush@host:1", "http://me:hush@host:1", "nats://a:1,tls://hush@b:2"] {
            let text = wrong(|c| c.url = Some(url.into()));
            assert!(text.contains("bus.password") && !text.contains("hush"), "{text}");
        }
    }

    #[test]
    fn a_server_of_our_own_asks_for_no_tls() {
        let managed = wrong(|c| {
            c.mode = Mode::Managed;
            c.tls.required = true;
        });
        assert!(managed.contains("bus.tls.required"), "{managed}");
    }

    #[test]
    fn auto_is_external_where_a_server_is_named_else_managed_where_one_is_installed() {
        let decided = |config: Config, has_server| config.decided(|| has_server);
        let auto = Config::default;
        assert_eq!(
            decided(Config { url: Some("nats://a:1".into()), ..auto() }, true),
            Mode::External
        );
        let with_credentials = Config { credentials_file: Some("f".into()), ..auto() };
        assert_eq!(decided(with_credentials, true), Mode::External);
        assert_eq!(decided(auto(), true), Mode::Managed);
        assert_eq!(decided(auto(), false), Mode::Off);
        for mode in [Mode::External, Mode::Managed, Mode::Off] {
            assert_eq!(decided(Config { mode, ..auto() }, true), mode);
        }
        let nowhere = Managed { binary: "no-such-nats-server".into(), ..Managed::default() };
        assert!(!nowhere.is_installed());
        let here = Managed { binary: "sh".into(), ..Managed::default() };
        assert!(here.is_installed());
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let config = Config {
            credentials_file: Some("/does/not/exist.creds".into()),
            tls: Tls { ca: Some("/does/not/exist.pem".into()), ..Tls::default() },
            ..Config::default()
        };
        let faults = config.check().expect_err("neither is there");
        assert_eq!(faults.len(), 2);
        assert!(faults[0].starts_with("bus.credentials_file: /does/not/exist.creds"), "{faults:?}");
        assert!(faults[1].starts_with("bus.tls.ca: /does/not/exist.pem"), "{faults:?}");
        assert_eq!(Config { mode: Mode::Off, ..config }.check(), Ok(()));
    }

    #[test]
    fn unknown_keys_are_refused_and_secrets_hidden() {
        assert!(toml::from_str::<Config>("modes = 'off'").is_err());
        let config: Config =
            toml::from_str("user = 'me'\npassword = 'hush'\nmode = 'managed'").expect("parses");
        assert_eq!(config.password.as_ref().map(Secret::expose), Some("hush"));
        let shown = toml::to_string(&config).expect("serializes") + &format!("{config:?}");
        assert!(!shown.contains("hush") && shown.contains("***"), "{shown}");
    }
}
