//! What cannot be read as HTTP: refused like anything else, counted, and logged seldom, because anyone may send any number of it.

use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::body::BoxBody;
use actix_web::dev::Response;
use actix_web::error::ParseError;
use actix_web::http::{ConnectionType, StatusCode};

use super::intake::id;
use super::refusal;
use crate::clock::Timestamp;
use crate::error::Kind;
use crate::telemetry::Metrics;

/// The least time between two lines in the log.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// What `third_party/actix-http` looks for beside a connection.
pub(super) type ParseErrorHandler = Rc<dyn Fn(&ParseError) -> Response<BoxBody>>;

/// Answers for all connections of a server.
pub(super) struct Malformed {
    metrics: Arc<Metrics>,
    log: Mutex<SeldomLog>,
}

impl Malformed {
    pub(super) fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { metrics, log: Mutex::default() })
    }

    /// For one connection.
    pub(super) fn handler(self: &Arc<Self>) -> ParseErrorHandler {
        let shared = Arc::clone(self);
        Rc::new(move |fault| shared.answer(fault))
    }

    fn answer(&self, fault: &ParseError) -> Response<BoxBody> {
        let (status, message) = judged(fault);
        self.metrics.refused(Kind::Invalid);
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = log.note(Timestamp::now()) {
            tracing::warn!(count, last = message, "refused what is no HTTP request");
        }
        drop(log);
        let mut answer: HttpResponse = refusal::of_protocol(status, "malformed_request", message);
        let none = actix_web::http::header::HeaderMap::new();
        id::show(&none, None, answer.headers_mut());
        answer.head_mut().set_connection_type(ConnectionType::Close);
        answer.into()
    }
}

/// Status (RFC 9110, 15.5 and 15.6) and message.
fn judged(fault: &ParseError) -> (StatusCode, &'static str) {
    match fault {
        ParseError::TooLarge => (
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "expected a head of at most 128 KiB with at most 96 fields",
        ),
        ParseError::Timeout => {
            (StatusCode::REQUEST_TIMEOUT, "the head of the request did not arrive in time")
        }
        ParseError::Version => {
            (StatusCode::HTTP_VERSION_NOT_SUPPORTED, "expected HTTP/1.1 or HTTP/1.0")
        }
        ParseError::Method => (StatusCode::BAD_REQUEST, "the method is malformed"),
        // The library's error has no other way to be told apart.
        ParseError::Uri(fault) if fault.to_string() == "uri too long" => {
            (StatusCode::URI_TOO_LONG, "expected a target of less than 64 KiB")
        }
        ParseError::Uri(_) => (StatusCode::BAD_REQUEST, "the target is malformed"),
        _ => (StatusCode::BAD_REQUEST, "this is no HTTP/1 request (RFC 9112)"),
    }
}

/// Counts what happens, and says when a line about it is due.
#[derive(Default)]
struct SeldomLog {
    last: Option<Timestamp>,
    count: u64,
}

impl SeldomLog {
    /// How many there were since the last line, if one is due.
    fn note(&mut self, now: Timestamp) -> Option<u64> {
        self.count += 1;
        if self.last.is_some_and(|last| now.since(last) < LOG_EVERY) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.count))
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn it_is_counted_and_answered_and_the_connection_closes() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            let malformed = Malformed::new(Arc::new(Metrics::new("n")));
            let answer = malformed.handler()(&ParseError::Timeout);
            assert_eq!(answer.status(), StatusCode::REQUEST_TIMEOUT);
            assert_eq!(answer.head().connection_type(), ConnectionType::Close);
            let _ = malformed.handler()(&ParseError::Header);
        });
        let counted = r#"inferno_requests_refused_total{node="n",kind="invalid"} 2"#;
        assert!(handle.render().contains(counted), "{}", handle.render());
    }

    #[test]
    fn a_flood_is_a_line_in_ten_seconds_and_each_is_counted_in_one() {
        let mut log = SeldomLog::default();
        let at = |seconds: u64| Timestamp::from_micros(seconds * 1_000_000);
        let noted: Vec<u64> = (0..25).filter_map(|second| log.note(at(second))).collect();
        assert_eq!(noted, [1, 10, 10]);
    }
}
