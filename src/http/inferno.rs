//! The shape in which Inferno's load balancers ask and want to be answered, as an edge around `/v1/completions`: an integer
//! `request_id` without a `model` selects it. The model is the one that was loaded first.

use actix_web::http::StatusCode;
use actix_web::{HttpMessage as _, HttpRequest, HttpResponse, ResponseError as _};
use serde::Serialize;

use super::answer::bill::Bill;
use super::answer::wire::Whole;
use super::door::HttpDoor;
use super::intake::body::Body;
use super::refusal::ErrorResponse;
use super::{json, models};
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::reader;
use crate::request::{Fields, Params, Value};

/// All that a request of this shape says.
const MEMBERS: [&str; 6] = ["request_id", "prompt", "max_tokens", "temperature", "top_p", "seed"];

/// OpenAI's members that are no parameters of sampling.
const OPENAIS: [&str; 5] =
    ["stream", "stream_options", "priority", "max_completion_tokens", "detached"];

/// The number by which a load balancer knows its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InfernoNumber(u64);

/// A request of this shape.
#[derive(Debug, Clone, Copy)]
pub(super) struct InfernoCall {
    pub(super) number: InfernoNumber,
    /// When the door had its whole body.
    pub(super) received_at: Timestamp,
}

/// Takes what a body of this shape has more than one of OpenAI's; none: it has another shape.
///
/// # Errors
/// `invalid`: the number is below 0, or a member is OpenAI's alone.
pub(super) fn take_number(fields: &mut Fields<'_>) -> Result<Option<InfernoNumber>> {
    let is_ours = matches!(fields.get("request_id"), Some(Value::Int(_)));
    if !is_ours || fields.get("model").is_some() {
        return Ok(None);
    }
    let read = |value: Value, path: &str| value.integer(path, 0, u64::MAX.into());
    let number = fields.required("request_id", read)? as u64;
    fields.take("model");
    let is_openais = |name: &str| {
        !MEMBERS.contains(&name) && (Params::FIELDS.contains(&name) || OPENAIS.contains(&name))
    };
    fields.refuse_misplaced(is_openais, "beside a model, where request_id is no number")?;
    Ok(Some(InfernoNumber(number)))
}

/// Remembers that a request has this shape, for the answer to one that cannot be read.
pub(super) fn note_unread(http: &HttpRequest, body: &Body) {
    let value = reader::json(body.bytes()).ok();
    let fields = value.and_then(|value| Fields::of_body(value, None).ok());
    let Some(fields) = fields.filter(|fields| fields.get("model").is_none()) else { return };
    if let Some(Value::Int(number)) = fields.get("request_id") {
        note(http, InfernoNumber(u64::try_from(*number).unwrap_or(0)));
    }
}

/// Remembers that a request has this shape.
pub(super) fn note(http: &HttpRequest, number: InfernoNumber) {
    http.extensions_mut().insert(number);
}

/// The model of a request that names none.
///
/// # Errors
/// `not_found`: no model is loaded; `unavailable`: it is not known now.
pub(super) async fn first_model(door: &HttpDoor) -> Result<String> {
    let loaded = models::loaded(door).await?;
    let first = loaded.into_iter().min_by_key(|model| model.created);
    first.map(|model| model.name).ok_or_else(|| crate::door::not_loaded("", []))
}

#[derive(Serialize)]
struct InferenceAnswer<'a> {
    request_id: u64,
    generated_text: &'a str,
    generated_tokens: u32,
    inference_time_ms: f64,
    time_to_first_token_ms: Option<f64>,
    is_finished: bool,
    error: Option<String>,
}

/// The answer to a request that has finished.
pub(super) fn answer(call: InfernoCall, whole: &Whole, bill: &Bill) -> HttpResponse {
    let to_first = |receipt: &crate::request::Receipt| receipt.queue_ms + receipt.prefill_ms;
    let answer = InferenceAnswer {
        request_id: call.number.0,
        generated_text: &whole.text,
        generated_tokens: bill.completion_tokens(),
        inference_time_ms: Timestamp::now().since(call.received_at).as_secs_f64() * 1e3,
        time_to_first_token_ms: bill.receipt().map(to_first),
        is_finished: true,
        error: None,
    };
    json::response(StatusCode::OK, &answer)
}

/// The answer to a request that is refused or has failed: in this shape, with the status and the headers that the error has.
///
/// # Errors
/// The refusal itself, where the request has another shape.
pub(super) fn refused(
    http: &HttpRequest,
    refusal: ErrorResponse,
) -> std::result::Result<HttpResponse, ErrorResponse> {
    let Some(InfernoNumber(request_id)) = http.extensions().get().copied() else {
        return Err(refusal);
    };
    let ErrorResponse(error) = &refusal;
    let answer = InferenceAnswer {
        request_id,
        generated_text: "",
        generated_tokens: 0,
        inference_time_ms: 0.0,
        time_to_first_token_ms: None,
        is_finished: true,
        error: Some(Error::text(error)),
    };
    let body = json::to_vec(&answer);
    Ok(refusal.error_response().set_body(body).map_into_boxed_body())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn taken(body: &str) -> Result<Option<InfernoNumber>> {
        let value = reader::json(body.as_bytes()).expect("JSON");
        take_number(&mut Fields::of_body(value, None).expect("an object"))
    }

    #[test]
    fn a_number_without_a_model_is_infernos_shape() {
        let number = |number| Ok(Some(InfernoNumber(number)));
        assert_eq!(taken(r#"{"request_id":7,"prompt":"x"}"#), number(7));
        assert_eq!(taken(r#"{"request_id":0,"model":null,"seed":null}"#), number(0));
        assert_eq!(taken(r#"{"request_id":18446744073709551615}"#), number(u64::MAX));
        for other in [
            r#"{"request_id":"7"}"#,
            r#"{"request_id":7,"model":"demo"}"#,
            r#"{"prompt":"x"}"#,
            r#"{"request_id":null}"#,
            r#"{"request_id":7.5}"#,
        ] {
            assert_eq!(taken(other), Ok(None), "{other}");
        }
    }

    #[test]
    fn what_only_openais_shape_has_is_refused_by_name() {
        for (body, name) in [
            (r#"{"request_id":-1}"#, "request_id"),
            (r#"{"request_id":1,"stream":true}"#, "stream"),
            (r#"{"request_id":1,"top_k":4}"#, "top_k"),
            (r#"{"request_id":1,"n":2}"#, "n"),
        ] {
            let error = taken(body).expect_err(body);
            assert_eq!((error.kind, error.param.as_deref()), (Kind::Invalid, Some(name)));
        }
    }
}
