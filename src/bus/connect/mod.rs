//! The connection to NATS: its options for the node and for clients, how it stands, subscriptions that last, and a nats-server of
//! our own.

mod link;
mod managed;
mod subscription;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::{ClientError, ConnectOptions, Event, Server, ServerError};

use self::link::{Line, LinkReport, LinkState};
pub use self::managed::{ManagedError, ManagedServer};
pub(super) use self::subscription::{Subscription, taken};
use super::config::{Config, Tls};
use crate::health::Vitals;
use crate::secret::Secret;

/// Commands on their way to the connection. More than the unconfirmed messages that the writer allows, so that the writer never
/// waits here while NATS takes what it is given.
const COMMANDS: usize = 32_768;

/// Longest pause between two tries to connect.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Who the node is to NATS, and whom it trusts.
#[derive(Debug, Clone, Default)]
pub struct Auth {
    /// User name and password.
    pub user: Option<(String, Secret)>,
    /// Token.
    pub token: Option<Secret>,
    /// JWT and seed in a file.
    pub credentials_file: Option<PathBuf>,
    /// Certificates.
    pub tls: Tls,
}

impl Auth {
    /// What the configuration says.
    pub fn of(config: &Config) -> Self {
        Self {
            user: config.user.clone().zip(config.password.clone()),
            token: config.token.clone(),
            credentials_file: config.credentials_file.clone(),
            tls: config.tls.clone(),
        }
    }

    /// Options of a connection with this.
    ///
    /// # Errors
    /// A credentials file that cannot be read.
    pub async fn options(&self) -> std::io::Result<ConnectOptions> {
        let mut options = ConnectOptions::new();
        if let Some((user, password)) = &self.user {
            options = options.user_and_password(user.clone(), password.expose().to_owned());
        }
        if let Some(token) = &self.token {
            options = options.token(token.expose().to_owned());
        }
        if let Some(file) = &self.credentials_file {
            let named = |error: std::io::Error| {
                std::io::Error::new(error.kind(), format!("{}: {error}", file.display()))
            };
            options = options.credentials_file(file).await.map_err(named)?;
        }
        options = options.require_tls(self.tls.required);
        if let Some(ca) = &self.tls.ca {
            options = options.add_root_certificates(ca.clone());
        }
        if let (Some(cert), Some(key)) = (&self.tls.cert, &self.tls.key) {
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
        Ok(options)
    }
}

/// The node's options: it waits for NATS for ever, at the start and after every loss. What happens is told to `link`, and then to
/// `told`.
pub(super) async fn node_options(
    config: &Config,
    node_id: &str,
    link: Arc<NatsLink>,
    told: impl Fn(&Event) + Send + Sync + 'static,
) -> std::io::Result<ConnectOptions> {
    let options = Auth::of(config).options().await?;
    let tries = link.clone();
    Ok(options
        .name(format!("inferno-node {node_id}"))
        .custom_inbox_prefix(&config.inbox_prefix)
        .retry_on_initial_connect()
        .reconnect_delay_callback(pause)
        // Three without an answer, and the connection counts as lost.
        .ping_interval(Duration::from_secs(10))
        .client_capacity(COMMANDS)
        // Before each try the library shows why the last one failed; its events say no more than "IO error".
        .reconnect_to_server_callback(move |servers, _| {
            servers.iter().for_each(|server| tries.tried(server));
            std::future::ready(None)
        })
        .event_callback(move |event| {
            link.happened(&event);
            told(&event);
            std::future::ready(())
        }))
}

/// How the connection stands, told by its callbacks and subscriptions: tells health, and the log what is new.
pub(super) struct NatsLink {
    state: Mutex<LinkState>,
    vitals: Arc<Vitals>,
}

impl NatsLink {
    /// Not connected yet to `servers`.
    pub fn new(servers: &str, vitals: Arc<Vitals>) -> Self {
        let link = Self { state: Mutex::new(LinkState::new(servers.to_owned())), vitals };
        link.change(|_| ());
        link
    }

    fn tried(&self, server: &Server) {
        if let Some(error) = &server.last_error {
            // Not the address as it was given: that may have a password in it.
            let server = format!("{}:{}", server.addr.host(), server.addr.port());
            self.report(LinkReport::Failed { server, error: error.clone() });
        }
    }

    fn happened(&self, event: &Event) {
        match event {
            Event::Connected => self.report(LinkReport::Connected),
            Event::Disconnected => self.report(LinkReport::Lost),
            Event::ServerError(ServerError::Other(error)) => {
                self.report(LinkReport::Error(error.clone()));
            }
            Event::ServerError(error) => self.report(LinkReport::Error(error.to_string())),
            Event::SlowConsumer(_) => {
                let text = "messages were lost: they came faster than they were taken";
                self.report(LinkReport::Error(text.to_owned()));
            }
            // The kinds of failed tries; why they failed comes with the next one.
            Event::ClientError(ClientError::Other(_)) => tracing::debug!(%event, "NATS"),
            Event::ClientError(error) => self.report(LinkReport::Error(error.to_string())),
            Event::LameDuckMode => tracing::info!("this NATS server is going to end"),
            Event::Draining | Event::Closed => tracing::debug!(%event, "NATS"),
        }
    }

    fn report(&self, report: LinkReport) {
        match self.change(|state| state.take(report)) {
            Some(Line::Good(line)) => tracing::info!("{line}"),
            Some(Line::Bad(line)) => tracing::warn!("{line}"),
            None => {}
        }
    }

    fn watch(&self, subject: &str, is_door: bool) {
        self.change(|state| state.watch(subject, is_door));
    }

    fn forget(&self, subject: &str) {
        self.change(|state| state.forget(subject));
    }

    fn ask_again(&self, subject: &str) -> bool {
        self.change(|state| state.ask_again(subject))
    }

    /// Resolves when there is a connection or it is known why not, after `limit` at most.
    pub async fn settled(&self, limit: Duration) {
        let mut news = self.vitals.news();
        let settles = async {
            // The sender is the vitals', which this has.
            while !self.lock().is_settled() && news.changed().await.is_ok() {}
        };
        // A server that says nothing is waited for in the background.
        let _ = tokio::time::timeout(limit, settles).await;
    }

    /// Whether NATS denies a subscription that lasts.
    pub fn denies(&self, subject: &str) -> bool {
        self.lock().denies(subject)
    }

    fn change<T>(&self, change: impl FnOnce(&mut LinkState) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        self.vitals.set_bus(state.state());
        result
    }

    fn lock(&self) -> MutexGuard<'_, LinkState> {
        // Only whole values are written under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pause before try number `attempt`, counted from 1: none, then doubling from 4 ms.
fn pause(attempt: usize) -> Duration {
    match attempt {
        0 | 1 => Duration::ZERO,
        _ => MAX_PAUSE.min(Duration::from_millis(1 << attempt.min(20))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_second() {
        assert_eq!(pause(1), Duration::ZERO);
        assert_eq!(pause(2), Duration::from_millis(4));
        assert!(pause(5) < pause(6));
        assert_eq!(pause(1_000_000), MAX_PAUSE);
    }

    #[tokio::test]
    async fn a_missing_credentials_file_is_named() {
        let config =
            Config { credentials_file: Some("/does/not/exist.creds".into()), ..Config::default() };
        let error = Auth::of(&config).options().await.expect_err("fails");
        assert!(error.to_string().contains("/does/not/exist.creds"), "{error}");
    }
}
