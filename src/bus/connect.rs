//! Options of the connection to NATS, for the node and for clients.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use async_nats::{ConnectOptions, Event};

use super::config::{Config, Secret, Tls};
use super::outbox::Outbox;

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

/// The node's options: it waits for NATS for ever, at the start and after every loss.
pub(super) async fn node_options(
    config: &Config,
    node_id: &str,
    outbox: Arc<Outbox>,
) -> std::io::Result<ConnectOptions> {
    let last = Arc::new(Mutex::new(None));
    let options = Auth::of(config).options().await?;
    Ok(options
        .name(format!("inferno-node {node_id}"))
        .custom_inbox_prefix(&config.inbox_prefix)
        .retry_on_initial_connect()
        .reconnect_delay_callback(pause)
        // Three without an answer, and the connection counts as lost.
        .ping_interval(Duration::from_secs(10))
        .client_capacity(COMMANDS)
        .event_callback(move |event| {
            log(&event, &last);
            match event {
                Event::Closed => outbox.set_closed(),
                Event::SlowConsumer(_) => outbox.lost(),
                _ => outbox.wake(),
            }
            std::future::ready(())
        }))
}

/// The pause before try number `attempt`, counted from 1: none, then doubling from 4 ms.
fn pause(attempt: usize) -> Duration {
    match attempt {
        0 | 1 => Duration::ZERO,
        _ => MAX_PAUSE.min(Duration::from_millis(1 << attempt.min(20))),
    }
}

/// Logs an event; one that repeats, such as a refused connection, only once.
fn log(event: &Event, last: &Mutex<Option<Event>>) {
    let repeats = match last.lock() {
        Ok(mut last) => last.replace(event.clone()).as_ref() == Some(event),
        Err(_) => false,
    };
    match event {
        _ if repeats => tracing::debug!(%event, "NATS"),
        Event::Connected => tracing::info!("connected to NATS"),
        Event::Disconnected => tracing::warn!("lost NATS; generation goes on, events wait"),
        Event::SlowConsumer(_) => {
            tracing::error!(%event, "NATS messages were lost: they came faster than they were taken");
        }
        Event::ServerError(_) | Event::ClientError(_) => tracing::warn!(%event, "NATS"),
        Event::LameDuckMode => tracing::info!("this NATS server is going to end"),
        Event::Draining | Event::Closed => tracing::debug!(%event, "NATS"),
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
