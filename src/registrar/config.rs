//! The section `[registrar]`.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::capabilities::{MAX_OWN_WORDS, is_word};
use super::host_port::HostPort;
use crate::secret::Secret;
use crate::settings;

/// Where Inferno's load balancers take registrations.
const LOAD_BALANCER_PORT: u16 = 6_100;

/// Each has a metric and, every few seconds, a connection.
const MAX_LOAD_BALANCERS: usize = 64;

/// What ids of nodes that generate begin with.
const ID_PREFIX: &str = "backend-";

/// As Inferno limits it.
const MAX_ID_LEN: usize = 128;

/// The section `[registrar]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Inferno's load balancers, as `host` or `host:port` (6100 if none is said). Empty: the node registers nowhere, and the
    /// other keys mean nothing.
    pub load_balancers: Vec<String>,
    /// This node's id there: `backend-` and A-Z a-z 0-9 _ - ., at most 128 characters. Absent: `backend-` and the node's own id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Where the load balancers reach this node's HTTP door: `host` or `host:port`. A name is resolved, because they want an IP;
    /// an IPv4 address goes first. Absent: `http.bind`, which must not be `0.0.0.0` then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Where the node listens for the load balancers' questions how it is, `ip:port`; port 0 takes a free one. No key is asked
    /// for. They ask at the IP of `address`, so beyond this machine `0.0.0.0:9091` is right.
    pub metrics_bind: String,
    /// What the load balancers have as their shared secret; sent as `Authorization: Bearer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
    /// A file with the secret, instead of `secret`; a line end after it does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
    /// Capabilities that load balancers are told beside the node's own: 1 to 64 of A-Z a-z 0-9 _ each, at most 16.
    pub capabilities: Vec<String>,
    /// Longest pause between two registrations with a load balancer, in milliseconds; it is half of it at least, by chance. A
    /// load balancer that has forgotten the node has it again after this.
    #[schemars(range(min = 400, max = 5_000))]
    pub interval_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            load_balancers: Vec::new(),
            id: None,
            address: None,
            metrics_bind: "127.0.0.1:9091".to_owned(),
            secret: None,
            secret_file: None,
            capabilities: Vec::new(),
            interval_ms: 5_000,
        }
    }
}

impl Config {
    /// Whether there is anybody to register with.
    pub fn is_on(&self) -> bool {
        !self.load_balancers.is_empty()
    }

    /// Checks every key. `http` is where the HTTP door is to listen; none: there is no door, or its own key is at fault.
    ///
    /// # Errors
    /// One line for each key at fault: name, expected, got.
    pub fn check(&self, http: Option<SocketAddr>) -> Result<(), Vec<String>> {
        let mut faults = settings::out_of_range("registrar", self);
        self.check_load_balancers(&mut faults);
        self.check_words(&mut faults);
        let port = self.metrics_address();
        faults.extend(port.as_ref().err().cloned());
        if self.secret.as_ref().is_some_and(|secret| !is_sendable(secret)) {
            faults
                .push("registrar.secret: expected visible ASCII characters, no spaces".to_owned());
        }
        if self.is_on() {
            match http.map(|http| self.advertised(http)) {
                None => faults.push(
                    "registrar.load_balancers: expected none where there is no HTTP door"
                        .to_owned(),
                ),
                Some(Err(fault)) => faults.push(fault),
                Some(Ok(own)) => {
                    let is_hidden =
                        |port: SocketAddr| port.ip().is_loopback() && !own.is_loopback();
                    if port.is_ok_and(is_hidden) {
                        faults.push(format!(
                            "registrar.metrics_bind: expected an address beyond loopback, such as 0.0.0.0:9091, where load \
                             balancers reach the node at {own}, got {:?}",
                            self.metrics_bind
                        ));
                    }
                }
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    /// Takes the secret out of `secret_file`.
    ///
    /// # Errors
    /// The file, and why it gives none.
    pub fn read_secret_file(&mut self) -> Result<(), String> {
        let Some(path) = &self.secret_file else { return Ok(()) };
        let fault = |reason: &str| format!("registrar.secret_file: {}: {reason}", path.display());
        if self.secret.is_some() {
            return Err(fault("expected either this or registrar.secret, got both"));
        }
        let text = std::fs::read_to_string(path).map_err(|error| fault(&error.to_string()))?;
        let secret = Secret::new(text.trim_end());
        if !is_sendable(&secret) {
            return Err(fault("expected visible ASCII characters, no spaces"));
        }
        self.secret = Some(secret);
        Ok(())
    }

    /// The node's id among Inferno's.
    pub(super) fn id(&self, node_id: &str) -> String {
        self.id.clone().unwrap_or_else(|| format!("{ID_PREFIX}{node_id}"))
    }

    /// Where the node's HTTP door is for the load balancers. `http` is where it listens.
    ///
    /// # Errors
    /// The fault of `registrar.address`.
    pub(super) fn advertised(&self, http: SocketAddr) -> Result<HostPort, String> {
        let address = self.address.as_deref();
        let own = match address {
            None => Some(http.into()),
            Some(text) => HostPort::parse(text, http.port()),
        };
        let own = own.filter(|own| own.ip().is_none_or(|ip| !ip.is_unspecified()));
        own.ok_or_else(|| match address {
            None => format!(
                "registrar.address: expected where load balancers reach the node where http.bind is {http}, got nothing"
            ),
            Some(got) => format!("registrar.address: expected host or host:port, got {got:?}"),
        })
    }

    /// Where the load balancers' questions come in.
    ///
    /// # Errors
    /// The fault of `registrar.metrics_bind`.
    pub(super) fn metrics_address(&self) -> Result<SocketAddr, String> {
        let text = &self.metrics_bind;
        text.parse().map_err(|_| format!("registrar.metrics_bind: expected ip:port, got {text:?}"))
    }

    /// Whom to register with. Those at fault are left out; [`Config::check`] names them.
    pub(super) fn places(&self) -> Vec<HostPort> {
        let texts = self.load_balancers.iter();
        texts.filter_map(|text| HostPort::parse(text, LOAD_BALANCER_PORT)).collect()
    }

    pub(super) fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms)
    }

    fn check_load_balancers(&self, faults: &mut Vec<String>) {
        let count = self.load_balancers.len();
        if count > MAX_LOAD_BALANCERS {
            faults.push(format!(
                "registrar.load_balancers: expected at most {MAX_LOAD_BALANCERS}, got {count}"
            ));
        }
        let mut seen = HashSet::new();
        for text in &self.load_balancers {
            let fault = match HostPort::parse(text, LOAD_BALANCER_PORT) {
                // There may be a password in it.
                None if text.contains('@') => "expected host or host:port, got one with a login",
                None => &format!("expected host or host:port, got {text:?}"),
                Some(at) if !seen.insert(at.to_string()) => &format!("{text:?} is given twice"),
                Some(_) => continue,
            };
            faults.push(format!("registrar.load_balancers: {fault}"));
        }
    }

    fn check_words(&self, faults: &mut Vec<String>) {
        let is_id_letter = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
        let is_id = |id: &String| {
            let name = id.strip_prefix(ID_PREFIX).unwrap_or_default();
            !name.is_empty() && id.len() <= MAX_ID_LEN && name.bytes().all(is_id_letter)
        };
        if let Some(id) = self.id.as_ref().filter(|id| !is_id(id)) {
            faults.push(format!(
                "registrar.id: expected {ID_PREFIX} and A-Z a-z 0-9 _ - ., at most {MAX_ID_LEN}, got {id:?}"
            ));
        }
        if let Some(word) = self.capabilities.iter().find(|word| !is_word(word)) {
            faults.push(format!(
                "registrar.capabilities: expected 1 to 64 of A-Z a-z 0-9 _ each, got {word:?}"
            ));
        }
        let count = self.capabilities.len();
        if count > MAX_OWN_WORDS {
            faults.push(format!(
                "registrar.capabilities: expected at most {MAX_OWN_WORDS}, got {count}"
            ));
        }
    }
}

/// Whether a header can carry it.
fn is_sendable(secret: &Secret) -> bool {
    let text = secret.expose();
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HTTP: &str = "127.0.0.1:8000";

    fn faults_at(http: &str, toml: &str) -> Vec<String> {
        let config: Config = toml::from_str(toml).expect("well-formed");
        let http = http.parse().ok();
        config.check(http).err().unwrap_or_default()
    }

    #[test]
    fn nobody_is_registered_with_by_default_and_then_no_door_is_needed() {
        let config = Config::default();
        assert!(!config.is_on());
        assert_eq!(config.check(None), Ok(()));
        assert_eq!(faults_at(HTTP, "load_balancers = ['lb']"), [""; 0]);
        let off = faults_at("", "load_balancers = ['lb']");
        assert!(off[0].starts_with("registrar.load_balancers"), "{off:?}");
    }

    #[test]
    fn every_bad_key_is_named() {
        let toml = "load_balancers = ['a b', 'lb', 'LB:6100']\nid = 'frontend-1'\naddress = 'x y'\n\
                    metrics_bind = 'x'\nsecret = 'a b'\ncapabilities = ['gpu-1']\ninterval_ms = 9";
        let faults = faults_at(HTTP, toml);
        let keys: Vec<&str> = faults.iter().filter_map(|fault| fault.split(':').next()).collect();
        let expected = [
            "registrar.interval_ms",
            "registrar.load_balancers",
            "registrar.load_balancers",
            "registrar.id",
            "registrar.capabilities",
            "registrar.metrics_bind",
            "registrar.secret",
            "registrar.address",
        ];
        assert_eq!(keys, expected, "{faults:?}");
        assert!(toml::from_str::<Config>("load_balancer = ['lb']").is_err());
        let many: Vec<String> = (0..65).map(|i| format!("lb{i}")).collect();
        let config = Config { load_balancers: many, ..Config::default() };
        assert!(config.check(HTTP.parse().ok()).is_err_and(|faults| faults[0].contains("got 65")));
    }

    #[test]
    fn an_id_looks_like_infernos() {
        let fits = |id: &str| faults_at(HTTP, &format!("id = '{id}'")).is_empty();
        assert!(fits("backend-1") && fits("backend-a.b_c-D"));
        for bad in ["", "backend", "backend-", "1", "backend-ä", "backend-a b", "proxy-1"] {
            assert!(!fits(bad), "{bad}");
        }
        assert!(!fits(&format!("backend-{}", "x".repeat(121))));
        assert_eq!(Config::default().id("n-1"), "backend-n-1");
    }

    #[test]
    fn load_balancers_must_be_able_to_reach_the_node() {
        let on = "load_balancers = ['lb']\n";
        let anywhere = faults_at("0.0.0.0:80", on);
        assert!(anywhere[0].starts_with("registrar.address"), "{anywhere:?}");
        let hidden = faults_at("10.0.0.1:80", on);
        assert!(hidden[0].starts_with("registrar.metrics_bind"), "{hidden:?}");
        let seen = format!("{on}metrics_bind = '0.0.0.0:9091'\naddress = 'node-1'");
        assert_eq!(faults_at("0.0.0.0:80", &seen), [""; 0]);
        let unspecified = format!("{on}address = '0.0.0.0'");
        assert!(faults_at(HTTP, &unspecified)[0].starts_with("registrar.address"));
    }

    #[test]
    fn an_address_without_a_port_has_that_of_http() {
        let of = |address: Option<&str>| {
            let config = Config { address: address.map(str::to_owned), ..Config::default() };
            config.advertised("10.0.0.1:80".parse().expect("an address")).map(|at| at.to_string())
        };
        assert_eq!(of(None).as_deref(), Ok("10.0.0.1:80"));
        assert_eq!(of(Some("node-1")).as_deref(), Ok("node-1:80"));
        assert_eq!(of(Some("node-1:9")).as_deref(), Ok("node-1:9"));
    }

    #[test]
    fn the_secret_comes_from_one_place_and_no_fault_shows_one() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), "hush\n").expect("writes");
        let from_file =
            || Config { secret_file: Some(file.path().to_owned()), ..Config::default() };
        let mut config = from_file();
        config.read_secret_file().expect("reads");
        assert_eq!(config.secret.as_ref().map(Secret::expose), Some("hush"));
        let mut both = Config { secret: Some(Secret::new("x")), ..from_file() };
        assert!(both.read_secret_file().is_err_and(|fault| fault.contains("both")));
        std::fs::write(file.path(), "hush hush").expect("writes");
        let fault = from_file().read_secret_file().expect_err("a space");
        assert!(fault.starts_with("registrar.secret_file") && !fault.contains("hush"), "{fault}");
        let absent = Config { secret_file: Some("/does/not/exist".into()), ..Config::default() };
        assert!(absent.clone().read_secret_file().is_err());
        let login = faults_at(HTTP, "load_balancers = ['http://me:hush@lb']");
        assert!(!login.is_empty() && !login[0].contains("hush"), "{login:?}");
    }
}
