//! Where a command finds the bus: its flags, and what nodes of this machine say of themselves.

use std::path::PathBuf;
use std::time::Duration;

use super::presence::LocalNode;
use crate::bus::client::{Client, ClientError, Timeouts};
use crate::bus::{Auth, Tls};
use crate::secret::Secret;

/// The flags of every command that is a client of the bus.
#[derive(Debug, Clone, clap::Args)]
pub struct BusArgs {
    /// NATS servers, joined by commas; default: those of a node on this machine, else nats://127.0.0.1:4222
    #[arg(long, env = "INFERNO_BUS_URL")]
    pub url: Option<String>,
    /// First part of every subject; default: that of a node on this machine, else inferno.v1
    #[arg(long, env = "INFERNO_BUS_PREFIX")]
    pub prefix: Option<String>,
    /// NATS user
    #[arg(long, env = "INFERNO_BUS_USER", requires = "password")]
    pub user: Option<String>,
    /// NATS password
    #[arg(long, env = "INFERNO_BUS_PASSWORD", hide_env_values = true, requires = "user")]
    pub password: Option<String>,
    /// NATS token
    #[arg(long, env = "INFERNO_BUS_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// NATS credentials file
    #[arg(long, env = "INFERNO_BUS_CREDENTIALS_FILE")]
    pub credentials_file: Option<PathBuf>,
    /// PEM file of the authorities to trust
    #[arg(long, env = "INFERNO_BUS_TLS__CA")]
    pub tls_ca: Option<PathBuf>,
}

/// Why a command has no connection.
#[derive(Debug, thiserror::Error)]
pub enum NoConnection {
    /// No address is given, no node is found, and no NATS is at the usual place.
    #[error(
        "no node with a bus runs on this machine; start one (inferno-node serve MODEL) or give --url ({0})"
    )]
    NoNode(ClientError),
    /// NATS is not there, or says no.
    #[error("{0}")]
    Client(#[from] ClientError),
}

impl BusArgs {
    fn auth(&self) -> Auth {
        Auth {
            user: self.user.clone().zip(self.password.as_deref().map(Secret::new)),
            token: self.token.as_deref().map(Secret::new),
            credentials_file: self.credentials_file.clone(),
            tls: Tls { ca: self.tls_ca.clone(), ..Tls::default() },
        }
    }
}

/// Where requests go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BusTarget {
    url: String,
    prefix: String,
    /// Those of the node that was found.
    models: Vec<String>,
    /// Nobody said where.
    is_guess: bool,
}

impl BusTarget {
    /// From the arguments, and from what nodes of this machine say of themselves, the newest first. Of these, one that started with
    /// the model is asked.
    pub fn choose(args: &BusArgs, model: Option<&str>, nodes: &[LocalNode]) -> Self {
        let with_bus = || nodes.iter().filter(|node| node.nats.is_some());
        let has_model =
            |node: &&LocalNode| model.is_none_or(|model| node.models.iter().any(|of| of == model));
        let found = match &args.url {
            Some(url) => nodes.iter().find(|node| node.nats.as_ref() == Some(url)),
            None => with_bus().find(has_model).or_else(|| with_bus().next()),
        };
        let url = args.url.clone().or_else(|| found?.nats.clone());
        let prefix = args.prefix.clone().or_else(|| Some(found?.prefix.clone()));
        Self {
            is_guess: url.is_none(),
            url: url.unwrap_or_else(|| "nats://127.0.0.1:4222".to_owned()),
            prefix: prefix.unwrap_or_else(|| "inferno.v1".to_owned()),
            models: found.map(|node| node.models.clone()).unwrap_or_default(),
        }
    }

    /// The model that is asked, where only one can be meant.
    ///
    /// # Errors
    /// What was expected.
    pub fn model(&self, given: Option<&str>) -> Result<String, String> {
        match (given, self.models.as_slice()) {
            (Some(model), _) => Ok(model.to_owned()),
            (None, [only]) => Ok(only.clone()),
            (None, []) => Err("expected a model's alias".to_owned()),
            (None, several) => Err(format!("expected one of {}", several.join(", "))),
        }
    }

    /// Connects; answers and events are waited for as long as `wait`.
    ///
    /// # Errors
    /// See [`NoConnection`].
    pub async fn connect(&self, args: &BusArgs, wait: Duration) -> Result<Client, NoConnection> {
        let connected = Client::connect(&self.url, &args.auth(), &self.prefix).await;
        let client = connected.map_err(|error| match self.is_guess {
            true => NoConnection::NoNode(error),
            false => error.into(),
        })?;
        Ok(client.with_timeouts(Timeouts { accept: wait, event: wait }))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: BusArgs,
    }

    fn parse(line: &[&str]) -> BusArgs {
        Command::try_parse_from([&["x"], line].concat()).expect("parses").args
    }

    fn local(nats: &str, models: &[&str]) -> LocalNode {
        LocalNode {
            node: "n".to_owned(),
            nats: (!nats.is_empty()).then(|| nats.to_owned()),
            prefix: "own.v1".to_owned(),
            http: None,
            models: models.iter().map(|model| (*model).to_owned()).collect(),
        }
    }

    #[test]
    fn a_node_of_this_machine_says_where_and_what_and_an_argument_goes_first() {
        let nodes =
            [local("", &["c"]), local("nats://new:1", &["a"]), local("nats://old:1", &["b"])];
        let choose = |line: &[&str], model: Option<&str>| {
            let target = BusTarget::choose(&parse(line), model, &nodes);
            (target.url.clone(), target.prefix.clone(), target.model(model))
        };
        let target = |url: &str, prefix: &str, model: &str| {
            (url.to_owned(), prefix.to_owned(), Ok(model.to_owned()))
        };
        assert_eq!(choose(&[], None), target("nats://new:1", "own.v1", "a"));
        assert_eq!(choose(&[], Some("b")), target("nats://old:1", "own.v1", "b"));
        assert_eq!(choose(&[], Some("x")), target("nats://new:1", "own.v1", "x"));
        let far = ["--url", "nats://far:1"];
        assert_eq!(choose(&far, Some("b")), target("nats://far:1", "inferno.v1", "b"));
        let none = BusTarget::choose(&parse(&[]), Some("a"), &[]);
        assert!(none.is_guess && none.url == "nats://127.0.0.1:4222");
        let several = BusTarget::choose(&parse(&[]), None, &[local("nats://a:1", &["a", "b"])]);
        assert_eq!(several.model(None), Err("expected one of a, b".to_owned()));
        assert!(BusTarget::choose(&parse(&[]), None, &[]).model(None).is_err());
    }

    #[test]
    fn credentials_are_those_of_the_flags() {
        assert!(parse(&[]).auth().user.is_none());
        let auth = parse(&["--user", "me", "--password", "hush"]).auth();
        assert_eq!(auth.user.map(|(user, _)| user).as_deref(), Some("me"));
    }
}
