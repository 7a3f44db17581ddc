//! How the node stands with NATS, from what its connection reports: what health says of it, and what the log says once.

use std::collections::{BTreeMap, BTreeSet};

use crate::health::BusState;

/// Different things said of one connection, or of one outage; beyond that silence. Servers have fewer, and a log has no room for
/// more.
const MAX_SAID: usize = 32;

/// What the connection reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::bus) enum LinkReport {
    /// There is a connection, and all subscriptions are asked for on it.
    Connected,
    /// There is none any more; it is tried again.
    Lost,
    /// A try to connect failed.
    Failed {
        /// Host and port.
        server: String,
        /// The library's words.
        error: String,
    },
    /// NATS says an error on a connection that stands.
    Error(String),
    /// NATS has taken a subscription that was asked for again, and has not denied it since.
    Granted(String),
}

/// A line for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::bus) enum Line {
    /// All is well.
    Good(String),
    /// Something is wrong.
    Bad(String),
}

/// See the module.
#[derive(Debug)]
pub(super) struct LinkState {
    servers: String,
    is_connected: bool,
    /// Once there was a connection.
    was_connected: bool,
    /// Why there is none.
    cause: Option<Cause>,
    /// Subscriptions of the node's that last, by subject.
    watched: BTreeMap<String, Watched>,
    said: BTreeSet<String>,
}

#[derive(Debug)]
struct Watched {
    /// Requests come by it.
    is_door: bool,
    denial: Option<Denial>,
}

#[derive(Debug, PartialEq, Eq)]
enum Denial {
    Stands,
    AskedAgain,
}

impl LinkState {
    /// Not connected yet. `servers` is where NATS is, for people.
    pub fn new(servers: String) -> Self {
        Self {
            servers,
            is_connected: false,
            was_connected: false,
            cause: None,
            watched: BTreeMap::new(),
            said: BTreeSet::new(),
        }
    }

    /// A subscription that lasts is asked for; `is_door` if requests come by it.
    pub fn watch(&mut self, subject: &str, is_door: bool) {
        self.watched.insert(subject.to_owned(), Watched { is_door, denial: None });
    }

    /// The subscription is left.
    pub fn forget(&mut self, subject: &str) {
        self.watched.remove(subject);
    }

    /// Asks for a subscription again if NATS denies it; says whether it does.
    pub fn ask_again(&mut self, subject: &str) -> bool {
        let denial = self.watched.get_mut(subject).and_then(|watched| watched.denial.as_mut());
        denial.map(|denial| *denial = Denial::AskedAgain).is_some()
    }

    /// Whether NATS denies a subscription that lasts.
    pub fn denies(&self, subject: &str) -> bool {
        self.watched.get(subject).is_some_and(|watched| watched.denial.is_some())
    }

    /// Takes a report; gives the line that is to be logged.
    pub fn take(&mut self, report: LinkReport) -> Option<Line> {
        match report {
            LinkReport::Connected => Some(self.connected()),
            LinkReport::Lost => {
                self.is_connected = false;
                // Why it does not come back at once is no news, unless it is refused.
                self.said.insert(String::new());
                let servers = &self.servers;
                Some(Line::Bad(format!("lost NATS at {servers}; generation goes on, events wait")))
            }
            LinkReport::Failed { server, error } => self.failed(&server, &error),
            LinkReport::Error(error) => self.error(&error),
            LinkReport::Granted(subject) => self.granted(&subject),
        }
    }

    fn connected(&mut self) -> Line {
        self.is_connected = true;
        self.cause = None;
        self.said.clear();
        // What is denied is denied again by this connection.
        self.watched.values_mut().for_each(|watched| watched.denial = None);
        let servers = &self.servers;
        match std::mem::replace(&mut self.was_connected, true) {
            false => Line::Good(format!("connected to NATS at {servers}")),
            true => Line::Good(format!("NATS at {servers} is back")),
        }
    }

    fn failed(&mut self, server: &str, error: &str) -> Option<Line> {
        let cause = Cause::of(server, error);
        let text = format!("{}; tried again until it works", cause.text);
        // Away is away, for whatever reason; a refusal is for someone to mend.
        let key = if cause.is_refusal { cause.text.clone() } else { String::new() };
        self.cause = Some(cause);
        self.say_once(key).then_some(Line::Bad(text))
    }

    fn error(&mut self, error: &str) -> Option<Line> {
        let Some(subject) = denied_subscription(error) else {
            // Not what is quoted: that differs with each request.
            let key = error.split('"').next().unwrap_or_default();
            return self.say_once(key.to_owned()).then(|| Line::Bad(format!("NATS says: {error}")));
        };
        let Some(watched) = self.watched.get_mut(subject) else {
            let key = subject.rsplit_once('.').map_or(subject, |(head, _)| head);
            let text = denial_of(subject);
            return self.say_once(key.to_owned()).then_some(Line::Bad(text));
        };
        watched.denial = Some(Denial::Stands);
        let text = format!("{}; asked for again until it is granted", denial_of(subject));
        self.say_once(subject.to_owned()).then_some(Line::Bad(text))
    }

    fn granted(&mut self, subject: &str) -> Option<Line> {
        let watched = self.watched.get_mut(subject)?;
        watched.denial.take_if(|denial| *denial == Denial::AskedAgain)?;
        self.said.remove(subject);
        Some(Line::Good(format!("NATS grants the subscription of {subject}")))
    }

    fn say_once(&mut self, key: String) -> bool {
        self.said.len() < MAX_SAID && self.said.insert(key)
    }

    /// Whether there is a connection, or it is known why not.
    pub fn is_settled(&self) -> bool {
        self.is_connected || self.cause.is_some()
    }

    /// What health says of it.
    pub fn state(&self) -> BusState {
        if !self.is_connected {
            return match &self.cause {
                Some(cause) if cause.is_refusal => BusState::Refused(cause.text.clone()),
                Some(cause) => BusState::Impaired(cause.text.clone()),
                None => BusState::Impaired(format!("no connection to NATS at {}", self.servers)),
            };
        }
        let mut denied = self.watched.iter().filter(|(_, watched)| watched.denial.is_some());
        let Some((mut subject, mut watched)) = denied.next() else { return BusState::Up };
        if let Some((door, of_door)) = denied.find(|(_, watched)| watched.is_door)
            && !watched.is_door
        {
            (subject, watched) = (door, of_door);
        }
        match watched.is_door {
            true => BusState::Refused(denial_of(subject)),
            false => BusState::Impaired(denial_of(subject)),
        }
    }
}

fn denial_of(subject: &str) -> String {
    format!("NATS denies the subscription of {subject}")
}

/// The subject in `Permissions Violation for Subscription to "a.b" using queue "q"`.
fn denied_subscription(error: &str) -> Option<&str> {
    error
        .to_ascii_lowercase()
        .starts_with("permissions violation for subscription")
        .then_some(())?;
    error.split('"').nth(1)
}

/// Why there is no connection.
#[derive(Debug)]
struct Cause {
    /// In words for people.
    text: String,
    /// The server is there and wants other credentials or certificates, or shows one that is not trusted.
    is_refusal: bool,
}

impl Cause {
    /// From the library's words, which name TLS faults and the server's last words "IO error".
    fn of(server: &str, error: &str) -> Self {
        let detail = error.strip_prefix("IO error: ").unwrap_or(error);
        let lower = detail.to_ascii_lowercase();
        let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
        let (text, is_refusal) = if has(&["invalid peer certificate"]) {
            (format!("the certificate of NATS at {server} is not trusted ({detail})"), true)
        } else if has(&["fatal alert"]) {
            (format!("NATS at {server} does not trust the node's certificate ({detail})"), true)
        } else if has(&["tls", "corrupt message", "certificate"]) {
            (format!("no TLS with NATS at {server} ({detail})"), true)
        } else if has(&["authorization", "authentication", "signing nonce", "revoked"]) {
            (format!("NATS at {server} refuses the login ({detail})"), true)
        } else {
            (format!("no NATS at {server} ({detail})"), false)
        };
        Self { text, is_refusal }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GENERATE: &str = "inferno.v1.generate.demo";

    fn link() -> LinkState {
        LinkState::new("nats://host:4222".to_owned())
    }

    fn failed(error: &str) -> LinkReport {
        LinkReport::Failed { server: "host:4222".to_owned(), error: error.to_owned() }
    }

    fn denied(subject: &str) -> LinkReport {
        let queue = "using queue \"inferno\"";
        LinkReport::Error(format!(
            "Permissions Violation for Subscription to \"{subject}\" {queue}"
        ))
    }

    fn good(text: &str) -> Option<Line> {
        Some(Line::Good(text.to_owned()))
    }

    fn bad(text: &str) -> Option<Line> {
        Some(Line::Bad(text.to_owned()))
    }

    #[test]
    fn nats_that_is_not_there_is_said_once_and_again_when_it_is_back() {
        let mut link = link();
        let refused = "IO error: Connection refused (os error 111)";
        let text = "no NATS at host:4222 (Connection refused (os error 111))";
        assert_eq!(link.take(failed(refused)), bad(&format!("{text}; tried again until it works")));
        assert_eq!(link.take(failed(refused)), None);
        assert_eq!(link.take(failed("timed out")), None, "away for another reason is no news");
        link.take(failed(refused));
        assert_eq!(link.state(), BusState::Impaired(text.to_owned()));
        let connected = link.take(LinkReport::Connected);
        assert_eq!(connected, good("connected to NATS at nats://host:4222"));
        assert_eq!(link.state(), BusState::Up);
        let lost = "lost NATS at nats://host:4222; generation goes on, events wait";
        assert_eq!(link.take(LinkReport::Lost), bad(lost));
        assert_eq!(link.take(failed(refused)), None, "it was said with the loss");
        assert!(matches!(link.state(), BusState::Impaired(_)));
        assert_eq!(link.take(LinkReport::Connected), good("NATS at nats://host:4222 is back"));
    }

    #[test]
    fn a_login_that_is_refused_is_told_from_a_server_that_is_away() {
        for (error, words) in [
            ("authorization violation: nats: authorization violation", "refuses the login"),
            ("IO error: nats: User Authentication Expired", "refuses the login"),
            ("IO error: invalid peer certificate: UnknownIssuer", "is not trusted"),
            ("IO error: received fatal alert: CertificateRequired", "the node's certificate"),
            ("TLS error: no such file", "no TLS with"),
            ("IO error: received corrupt message of type InvalidContentType", "no TLS with"),
        ] {
            let mut link = link();
            link.take(LinkReport::Connected);
            link.take(LinkReport::Lost);
            let Some(Line::Bad(line)) = link.take(failed(error)) else { panic!("said: {error}") };
            assert!(line.contains(words) && line.contains("host:4222"), "{line}");
            assert_eq!(link.take(failed(error)), None, "once");
            let BusState::Refused(text) = link.state() else { panic!("refused: {error}") };
            assert!(text.contains(words) && !text.contains("IO error"), "{text}");
        }
    }

    #[test]
    fn a_denied_subscription_is_a_refusal_until_it_is_granted() {
        let mut link = link();
        link.watch(GENERATE, true);
        link.watch("$SRV.PING", false);
        link.take(LinkReport::Connected);
        let text = "NATS denies the subscription of inferno.v1.generate.demo";
        let line = format!("{text}; asked for again until it is granted");
        assert_eq!(link.take(denied(GENERATE)), bad(&line));
        assert!(link.take(denied("$SRV.PING")).is_some());
        assert_eq!(link.state(), BusState::Refused(text.to_owned()), "a door before others");
        assert!(link.ask_again(GENERATE));
        assert_eq!(link.take(denied(GENERATE)), None, "still");
        assert_eq!(link.take(LinkReport::Granted(GENERATE.to_owned())), None, "denied meanwhile");
        assert!(link.ask_again(GENERATE));
        assert_eq!(link.state(), BusState::Refused(text.to_owned()), "until NATS has answered");
        let granted = link.take(LinkReport::Granted(GENERATE.to_owned()));
        assert_eq!(granted, good("NATS grants the subscription of inferno.v1.generate.demo"));
        assert!(matches!(link.state(), BusState::Impaired(text) if text.contains("$SRV.PING")));
        link.forget("$SRV.PING");
        assert_eq!(link.state(), BusState::Up);
        assert!(!link.ask_again(GENERATE));
    }

    #[test]
    fn another_connection_denies_anew_or_not() {
        let mut link = link();
        link.watch(GENERATE, true);
        link.take(LinkReport::Connected);
        link.take(denied(GENERATE));
        link.take(LinkReport::Lost);
        link.take(LinkReport::Connected);
        assert_eq!(link.state(), BusState::Up);
        assert!(link.take(denied(GENERATE)).is_some());
    }

    #[test]
    fn errors_of_one_kind_are_said_once_for_a_connection_and_kinds_are_bounded() {
        let mut link = link();
        link.take(LinkReport::Connected);
        let said =
            |link: &mut LinkState, error: String| link.take(LinkReport::Error(error)).is_some();
        let publish =
            |id: u32| format!("Permissions Violation for Publish to \"inferno.v1.tokens.{id}\"");
        assert!(said(&mut link, publish(1)) && !said(&mut link, publish(2)));
        let LinkReport::Error(cancel) = denied("inferno.v1.cancel.a") else {
            unreachable!("an error")
        };
        assert!(said(&mut link, cancel.clone()) && !said(&mut link, cancel.replace(".a", ".b")));
        assert_eq!(link.state(), BusState::Up, "a client's subject is none of the node's");
        let many = (0..1_000).filter(|i| said(&mut link, format!("error {i}"))).count();
        assert!(many < MAX_SAID);
    }
}
