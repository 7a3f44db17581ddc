//! `/v1/models`: what is loaded, as OpenAI's clients read it.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::web::{Data, Path};
use serde::Serialize;

use super::door::{HttpDoor, within};
use super::json;
use super::refusal::ErrorResponse;
use crate::door::{List, ModelInfo, not_loaded};
use crate::error::{Error, Kind, Result};

/// One entry of the list.
#[derive(Serialize)]
struct ModelObject {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// Not OpenAI's: longest prompt and completion together.
    max_seq_len: u32,
    /// The same under vLLM's name, which clients look for.
    max_model_len: u32,
}

impl From<ModelInfo> for ModelObject {
    fn from(info: ModelInfo) -> Self {
        Self {
            id: info.name,
            object: "model",
            created: info.created,
            owned_by: "inferno",
            max_seq_len: info.max_seq_len,
            max_model_len: info.max_seq_len,
        }
    }
}

/// What takes requests.
///
/// # Errors
/// `unavailable`: it is not known now.
pub(super) async fn loaded(door: &HttpDoor) -> Result<Vec<ModelInfo>> {
    within(door.models.send(List)).await?.map_err(|_| {
        let error = Error::new(Kind::Unavailable, "the list of models is not available now");
        error.with_retry_after_ms(1_000)
    })
}

/// `GET /v1/models`
pub(super) async fn list(door: Data<HttpDoor>) -> std::result::Result<HttpResponse, ErrorResponse> {
    #[derive(Serialize)]
    struct ModelList {
        object: &'static str,
        data: Vec<ModelObject>,
    }
    let data = loaded(&door).await?.into_iter().map(ModelObject::from).collect();
    Ok(json::response(StatusCode::OK, &ModelList { object: "list", data }))
}

/// `GET /v1/models/{model}`
pub(super) async fn show(
    door: Data<HttpDoor>,
    name: Path<String>,
) -> std::result::Result<HttpResponse, ErrorResponse> {
    let (name, mut loaded) = (name.into_inner(), loaded(&door).await?);
    match loaded.iter().position(|info| info.name == name) {
        Some(at) => Ok(json::response(StatusCode::OK, &ModelObject::from(loaded.swap_remove(at)))),
        None => Err(not_loaded(&name, loaded.iter().map(|info| info.name.as_str())).into()),
    }
}
