//! Our errors as OpenAI's clients expect them: status, body and headers.

use std::fmt;

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use serde::Serialize;

use super::json;
use crate::error::{Error, Kind};

/// A request that is not answered as asked: what handlers return as error.
#[derive(Debug)]
pub(super) struct ErrorResponse(pub(super) Error);

impl fmt::Display for ErrorResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Error> for ErrorResponse {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl ResponseError for ErrorResponse {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.0.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        response.insert_header((CONTENT_TYPE, "application/json"));
        if let Some(ms) = self.0.retry_after_ms {
            // The second header is what OpenAI's own clients look at first.
            response.insert_header((RETRY_AFTER, ms.div_ceil(1_000)));
            response.insert_header(("retry-after-ms", ms));
        }
        if self.0.kind == Kind::Unauthorized {
            response.insert_header((WWW_AUTHENTICATE, "Bearer"));
        }
        response.body(body(&self.0))
    }
}

/// The answer to a method that the path does not have.
pub(super) fn method_not_allowed(allowed: &'static str, got: &str) -> HttpResponse {
    let message = format!("expected {allowed}, got {got}");
    let mut answer = of_protocol(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", &message);
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

/// The answer to what is wrong with the HTTP around a request, for which there is no kind of error.
pub(super) fn of_protocol(status: StatusCode, code: &'static str, message: &str) -> HttpResponse {
    let fault = ErrorObject { message, r#type: "invalid_request_error", param: None, code };
    HttpResponse::build(status)
        .insert_header((CONTENT_TYPE, "application/json"))
        .body(encode(&fault))
}

/// OpenAI's error body: `{"error": {message, type, param, code}}`.
pub(super) fn body(error: &Error) -> Vec<u8> {
    let (r#type, code) = names(error);
    encode(&ErrorObject { message: &error.text(), r#type, param: error.param.as_deref(), code })
}

#[derive(Serialize)]
struct ErrorObject<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: &'static str,
}

fn encode(fault: &ErrorObject<'_>) -> Vec<u8> {
    #[derive(Serialize)]
    struct ErrorBody<'a> {
        error: &'a ErrorObject<'a>,
    }
    json::to_vec(&ErrorBody { error: fault })
}

/// OpenAI's `type` and `code`; where OpenAI has no code of its own, ours is the kind.
fn names(error: &Error) -> (&'static str, &'static str) {
    const REQUEST: &str = "invalid_request_error";
    match error.kind {
        Kind::ContextLength => (REQUEST, "context_length_exceeded"),
        Kind::Unauthorized => (REQUEST, "invalid_api_key"),
        Kind::NotFound if error.param.as_deref() == Some("model") => (REQUEST, "model_not_found"),
        Kind::QueueFull => ("rate_limit_error", "rate_limit_exceeded"),
        Kind::Forbidden => ("permission_error", error.kind.as_str()),
        Kind::Cancelled => ("cancelled_error", error.kind.as_str()),
        Kind::Internal
        | Kind::Draining
        | Kind::Unavailable
        | Kind::LogFull
        | Kind::LogUnavailable => ("server_error", error.kind.as_str()),
        kind @ (Kind::Invalid
        | Kind::Unsupported
        | Kind::NotFound
        | Kind::Conflict
        | Kind::TooLarge
        | Kind::Expired) => (REQUEST, kind.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(error: &Error) -> serde_json::Value {
        serde_json::from_slice(&body(error)).expect("JSON")
    }

    #[test]
    fn every_kind_has_type_code_and_status() {
        for kind in Kind::ALL {
            let error = Error::new(kind, "why");
            let fault = &json(&error)["error"];
            assert_eq!(fault["message"], "why");
            assert!(fault["type"].is_string() && fault["code"].is_string(), "{fault}");
            assert_eq!(ErrorResponse(error).error_response().status().as_u16(), kind.status());
        }
    }

    #[test]
    fn names_are_openais_where_it_has_them() {
        let model = Error::new(Kind::NotFound, "no such model").with_param("model");
        assert_eq!(json(&model)["error"]["code"], "model_not_found");
        assert_eq!(json(&model)["error"]["message"], "model: no such model");
        assert_eq!(json(&Error::new(Kind::NotFound, "x"))["error"]["code"], "not_found");
        assert_eq!(json(&Error::new(Kind::Unauthorized, "x"))["error"]["code"], "invalid_api_key");
    }

    #[test]
    fn the_member_at_fault_stands_in_the_message_and_beside_it() {
        let error = Error::unsupported("n", "not supported by this node; expected 1 or nothing");
        let fault = &json(&error)["error"];
        assert_eq!(fault["param"], "n");
        assert_eq!(fault["message"], "n: not supported by this node; expected 1 or nothing");
    }

    #[test]
    fn times_to_come_back_are_rounded_up_to_seconds() {
        let error = Error::new(Kind::QueueFull, "full").with_retry_after_ms(1_001);
        let refused = ErrorResponse(error);
        assert_eq!(refused.to_string(), "queue_full: full");
        let response = refused.error_response();
        assert_eq!(response.headers().get(RETRY_AFTER).map(|v| v.as_bytes()), Some(&b"2"[..]));
        assert_eq!(
            response.headers().get("retry-after-ms").map(|v| v.as_bytes()),
            Some(&b"1001"[..])
        );
    }

    #[test]
    fn a_wrong_method_is_told_the_right_one() {
        let response = method_not_allowed("POST", "PUT");
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(response.headers().get("allow").map(|v| v.as_bytes()), Some(&b"POST"[..]));
    }
}
