//! Jobs over HTTP with JSON, at the head's own port: `/openapi.json` describes it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::rejection::StringRejection;
use axum::extract::{Path, Query as Parameters, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use cluster_proto::auth::{TOKEN_METADATA, token_refusal};
use cluster_proto::strangers::Caller;
use cluster_types::JobId;
use cluster_types::job::{JobSpec, LogOf, LogQuery};
use cluster_types::query::{Query, QueryReply};
use serde::Deserialize;
use serde_json::json;

use crate::service::HeadService;

/// What there is, for people and generators.
const OPENAPI: &str = include_str!("openapi.json");

/// The routes; every one of them wants the cluster's token.
pub(crate) fn router(service: HeadService, token: &str) -> Router {
    let token: Arc<str> = token.into();
    Router::new()
        .route("/openapi.json", get(openapi))
        .route("/api/v1/jobs", get(list).post(submit))
        .route("/api/v1/jobs/{job}", get(one).delete(delete))
        .route("/api/v1/jobs/{job}/stop", post(stop))
        .route("/api/v1/jobs/{job}/logs", get(logs))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .with_state(service)
        .layer(middleware::from_fn_with_state(token, check_token))
}

/// `{"error": "a sentence"}`.
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(json!({"error": self.1}))).into_response()
    }
}

impl From<tonic::Status> for Refusal {
    /// Another head leads, or none does.
    fn from(status: tonic::Status) -> Self {
        Refusal(StatusCode::SERVICE_UNAVAILABLE, status.message().to_owned())
    }
}

impl Refusal {
    /// What the head says to what was asked.
    fn of(reason: String) -> Refusal {
        let begins = |words: &[&str]| words.iter().any(|word| reason.starts_with(word));
        let code = match () {
            () if begins(&["no job", "the log of job"]) => StatusCode::NOT_FOUND,
            () if begins(&["a job called", "there is another job", "job "]) => StatusCode::CONFLICT,
            () => StatusCode::BAD_REQUEST,
        };
        Refusal(code, reason)
    }

    fn of_body(reason: &impl std::fmt::Display) -> Refusal {
        Refusal(StatusCode::BAD_REQUEST, format!("this describes no job: {reason} (see /openapi.json)"))
    }
}

async fn check_token(State(token): State<Arc<str>>, request: Request, next: Next) -> Response {
    let refusal = token_refusal(&token, given_token(request.headers()));
    match refusal {
        Some(sentence) => Refusal(StatusCode::UNAUTHORIZED, sentence).into_response(),
        None => {
            if let Some(caller) = request.extensions().get::<Caller>() {
                caller.is_known();
            }
            next.run(request).await
        }
    }
}

/// `Authorization: Bearer TOKEN`, or as gRPC has it.
fn given_token(headers: &HeaderMap) -> Option<&str> {
    let own = headers.get(TOKEN_METADATA).and_then(|value| value.to_str().ok());
    own.or_else(|| headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ").map(str::trim))
}

async fn unknown(uri: Uri) -> Refusal {
    Refusal(StatusCode::NOT_FOUND, format!("there is nothing at {} (see /openapi.json)", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> Refusal {
    Refusal(StatusCode::METHOD_NOT_ALLOWED, format!("{} takes no {method} (see /openapi.json)", uri.path()))
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

async fn ask(service: &HeadService, query: Query) -> Result<QueryReply, Refusal> {
    service.question(query).await?.map_err(Refusal::of)
}

async fn ask_for_one(service: &HeadService, query: Query) -> Result<Response, Refusal> {
    match ask(service, query).await? {
        QueryReply::Jobs(views) if views.len() == 1 => Ok(Json(&views[0]).into_response()),
        _ => Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, "the head answered something else".to_owned())),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Limit {
    limit: Option<u32>,
}

async fn list(State(service): State<HeadService>, limit: Parameters<Limit>) -> Result<Response, Refusal> {
    match ask(&service, Query::Jobs { limit: limit.limit.unwrap_or(100) }).await? {
        QueryReply::Jobs(views) => Ok(Json(views).into_response()),
        _ => Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, "the head answered something else".to_owned())),
    }
}

/// With `?job=` (eight hexadecimal digits) it may be sent twice and is run once.
async fn submit(
    State(service): State<HeadService>,
    Parameters(parameters): Parameters<BTreeMap<String, String>>,
    body: Result<String, StringRejection>,
) -> Result<Response, Refusal> {
    let body = body.map_err(|error| Refusal(error.status(), format!("this describes no job: {error}")))?;
    let mut spec: JobSpec = serde_json::from_str(&body).map_err(|error| Refusal::of_body(&error))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    spec.submitted_ms = now;
    if spec.submitter.is_empty() {
        "http".clone_into(&mut spec.submitter);
    }
    let job = match parameters.get("job") {
        Some(job) => job.clone(),
        None => {
            let id = getrandom::u32().map_err(|error| Refusal::of_body(&error))?;
            JobId(id).to_string()
        }
    };
    let made = ask_for_one(&service, Query::SubmitJob { job, spec: Box::new(spec) }).await?;
    Ok((StatusCode::CREATED, made).into_response())
}

async fn one(State(service): State<HeadService>, Path(job): Path<String>) -> Result<Response, Refusal> {
    ask_for_one(&service, Query::Job { job }).await
}

async fn stop(State(service): State<HeadService>, Path(job): Path<String>) -> Result<Response, Refusal> {
    ask_for_one(&service, Query::StopJob { job }).await
}

async fn delete(State(service): State<HeadService>, Path(job): Path<String>) -> Result<Response, Refusal> {
    ask_for_one(&service, Query::DeleteJob { job }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogPart {
    attempt: Option<u32>,
    from: Option<i64>,
    tail: Option<u32>,
}

async fn logs(
    State(service): State<HeadService>,
    Path(job): Path<String>,
    part: Parameters<LogPart>,
) -> Result<Response, Refusal> {
    let from = part.tail.map_or(part.from.unwrap_or(0), |lines| -i64::from(lines.max(1)));
    let log = LogQuery { of: LogOf::Job(job, part.attempt), from, ..LogQuery::default() };
    match ask(&service, Query::Log(log)).await? {
        QueryReply::Log(piece) => Ok(Json(piece).into_response()),
        _ => Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, "the head answered something else".to_owned())),
    }
}
