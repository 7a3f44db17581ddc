//! Inferno's protocol of registration: what a node says, and what an answer means; pure.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::policy::{Outcome, RegistrationAction, RegistrationAttempt, RegistrationForm};

/// The longest text of an answer that is logged, in characters.
const MAX_REASON_LEN: usize = 200;

/// The most that is remembered of whom one load balancer knows.
const MAX_PEERS: usize = 1_024;

/// What a node says of itself.
#[derive(Debug, Clone)]
pub(super) struct Introduction<'a> {
    pub(super) id: &'a str,
    pub(super) address: SocketAddr,
    pub(super) metrics_port: u16,
    pub(super) capabilities: &'a [String],
    /// Now, in Unix seconds.
    pub(super) unix_seconds: u64,
}

impl Introduction<'_> {
    /// The body of a registration.
    pub(super) fn body(&self, attempt: RegistrationAttempt) -> Vec<u8> {
        #[derive(Serialize)]
        struct ShortRegistration<'a> {
            id: &'a str,
            address: SocketAddr,
            metrics_port: u16,
        }
        #[derive(Serialize)]
        struct WholeRegistration<'a> {
            action: &'static str,
            node: NodeObject<'a>,
        }
        #[derive(Serialize)]
        struct NodeObject<'a> {
            id: &'a str,
            address: SocketAddr,
            metrics_port: u16,
            node_type: &'static str,
            is_load_balancer: bool,
            capabilities: &'a [String],
            last_updated: u64,
        }
        let &Self { id, address, metrics_port, capabilities, unix_seconds } = self;
        let body = match attempt.form {
            RegistrationForm::Short => {
                serde_json::to_vec(&ShortRegistration { id, address, metrics_port })
            }
            RegistrationForm::Whole => serde_json::to_vec(&WholeRegistration {
                action: match attempt.action {
                    RegistrationAction::Register => "register",
                    RegistrationAction::Update => "update",
                },
                node: NodeObject {
                    id,
                    address,
                    metrics_port,
                    node_type: "backend",
                    is_load_balancer: false,
                    capabilities,
                    last_updated: unix_seconds,
                },
            }),
        };
        body.expect("plain fields serialise")
    }
}

/// A node that a load balancer knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Peer {
    pub(super) id: String,
    address: String,
    metrics_port: u16,
    node_type: String,
    is_load_balancer: bool,
    /// Unix seconds.
    #[serde(default)]
    pub(super) last_updated: u64,
}

/// An answer, judged.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Judged {
    pub(super) outcome: Outcome,
    /// Whom the load balancer knows; none where it does not say.
    pub(super) peers: Option<Vec<Peer>>,
    /// For the log.
    pub(super) reason: String,
}

/// What a whole answer means.
pub(super) fn judge(status: u16, body: &[u8]) -> Judged {
    #[derive(Deserialize)]
    struct RegistrationAnswer {
        status: String,
        /// Each by itself, so that one that cannot be read spoils no other.
        #[serde(default)]
        peers: Option<Vec<serde_json::Value>>,
    }
    let text = String::from_utf8_lossy(body);
    let short: String = text.chars().take(MAX_REASON_LEN).collect();
    let reason = format!("it answered {status} {short:?}");
    let bare = |outcome| Judged { outcome, peers: None, reason: reason.clone() };
    match status {
        200..=299 => match serde_json::from_slice::<RegistrationAnswer>(body) {
            Ok(answer) if ["registered", "updated"].contains(&answer.status.as_str()) => {
                let peers = answer.peers.map(|peers| {
                    let read =
                        peers.into_iter().filter_map(|peer| serde_json::from_value(peer).ok());
                    read.take(MAX_PEERS).collect()
                });
                Judged { peers, ..bare(Outcome::Registered) }
            }
            // Such as `received`, from a node that keeps no list.
            _ => bare(Outcome::Failed),
        },
        409 | 500 if text.to_ascii_lowercase().contains("already exists") => bare(Outcome::Exists),
        401 | 403 => bare(Outcome::Unauthorized),
        400 | 404 | 405 | 413 | 415 | 422 => bare(Outcome::Refused),
        _ => bare(Outcome::Failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn said(form: RegistrationForm, action: RegistrationAction) -> Value {
        let introduction = Introduction {
            id: "backend-1",
            address: "10.0.0.1:8000".parse().expect("an address"),
            metrics_port: 9_091,
            capabilities: &["inference".to_owned()],
            unix_seconds: 1_700_000_000,
        };
        let body = introduction.body(RegistrationAttempt { form, action });
        serde_json::from_slice(&body).expect("JSON")
    }

    #[test]
    fn a_registration_has_infernos_two_forms() {
        let short = json!({"id": "backend-1", "address": "10.0.0.1:8000", "metrics_port": 9091});
        assert_eq!(said(RegistrationForm::Short, RegistrationAction::Register), short);
        let node = json!({
            "id": "backend-1", "address": "10.0.0.1:8000", "metrics_port": 9091, "node_type": "backend",
            "is_load_balancer": false, "capabilities": ["inference"], "last_updated": 1_700_000_000
        });
        for (action, word) in
            [(RegistrationAction::Register, "register"), (RegistrationAction::Update, "update")]
        {
            let whole = json!({"action": word, "node": node});
            assert_eq!(said(RegistrationForm::Whole, action), whole);
        }
    }

    #[test]
    fn an_answer_means_what_inferno_means_by_it() {
        for (status, body, outcome) in [
            (200, r#"{"status":"registered"}"#, Outcome::Registered),
            (201, r#"{"status":"updated","message":"x","peers":[]}"#, Outcome::Registered),
            (200, r#"{"status":"registered","peers":null}"#, Outcome::Registered),
            (200, r#"{"status":"received","peers":[]}"#, Outcome::Failed),
            (200, r#"{"status":"regis"#, Outcome::Failed),
            (200, "", Outcome::Failed),
            (200, "[]", Outcome::Failed),
            (204, "", Outcome::Failed),
            (500, r#"{"error":"Backend Already Exists: backend-1"}"#, Outcome::Exists),
            (409, "backend-1 already exists", Outcome::Exists),
            (500, r#"{"error":"disk full"}"#, Outcome::Failed),
            (401, r#"{"error":"Authentication required"}"#, Outcome::Unauthorized),
            (403, "", Outcome::Unauthorized),
            (400, r#"{"error":"Invalid registration data format"}"#, Outcome::Refused),
            (413, "already exists", Outcome::Refused),
            (302, "", Outcome::Failed),
            (503, "", Outcome::Failed),
        ] {
            assert_eq!(judge(status, body.as_bytes()).outcome, outcome, "{status} {body}");
        }
    }

    #[test]
    fn peers_are_read_one_by_one_and_bounded() {
        let peer = |id: &str| {
            json!({"id": id, "address": "10.0.0.2:80", "metrics_port": 6100, "node_type": "proxy",
                   "is_load_balancer": true, "last_updated": 7, "more": 1})
        };
        let body = json!({"status": "registered", "peers": [peer("a"), {"id": 1}, peer("b")]});
        let judged = judge(200, body.to_string().as_bytes());
        let ids: Vec<String> = judged.peers.into_iter().flatten().map(|peer| peer.id).collect();
        assert_eq!(ids, ["a", "b"]);
        let many: Vec<Value> = (0..2_000).map(|i| peer(&i.to_string())).collect();
        let body = json!({"status": "registered", "peers": many});
        let judged = judge(200, body.to_string().as_bytes());
        assert_eq!(judged.peers.map(|peers| peers.len()), Some(MAX_PEERS));
    }

    #[test]
    fn what_is_logged_of_an_answer_is_short_and_on_one_line() {
        let body = "a\nb\u{1b}[31m".repeat(1_000);
        let reason = judge(500, body.as_bytes()).reason;
        assert!(reason.len() < 2_000 && !reason.contains(['\n', '\u{1b}']), "{reason}");
    }
}
