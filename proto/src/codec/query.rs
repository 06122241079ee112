//! Questions and answers: JSON of the types in `cluster_types::query`, the answer's kind beside it (an empty list says
//! nothing of what it is a list of).

use bytes::Bytes;
use cluster_types::query::{Query, QueryReply};
use serde_json::{from_slice, to_vec};

use crate::error::Required;
use crate::{WireError, v1};

/// A question for the wire.
pub fn encode_query(query: &Query) -> v1::Query {
    v1::Query { json: json(query) }
}

/// The question, if it is one.
///
/// # Errors
/// If it is not.
pub fn decode_query(wire: &v1::Query) -> Result<Query, WireError> {
    from_slice(&wire.json).map_err(|error| not_json("Query.json", &error))
}

/// An answer for the wire.
pub fn encode_reply(reply: &Result<QueryReply, String>) -> v1::QueryReply {
    use v1::query_reply::Kind;
    let kind = match reply {
        Ok(QueryReply::Status(view)) => Kind::Status(json(view)),
        Ok(QueryReply::Nodes(view)) => Kind::Nodes(json(view)),
        Ok(QueryReply::Tasks(view)) => Kind::Tasks(json(view)),
        Ok(QueryReply::Objects(view)) => Kind::Objects(json(view)),
        Ok(QueryReply::Why(view)) => Kind::Why(json(view)),
        Ok(QueryReply::Actors(view)) => Kind::Actors(json(view)),
        Ok(QueryReply::NamedActor(view)) => Kind::NamedActor(json(view)),
        Ok(QueryReply::Groups(view)) => Kind::Groups(json(view)),
        Ok(QueryReply::Group(view)) => Kind::Group(json(view)),
        Ok(QueryReply::States(view)) => Kind::States(json(view)),
        Ok(QueryReply::Jobs(view)) => Kind::Jobs(json(view)),
        Ok(QueryReply::Log(view)) => Kind::Log(json(view)),
        Err(reason) => Kind::Error(reason.clone()),
    };
    v1::QueryReply { kind: Some(kind) }
}

/// The answer, or what the other side says why there is none.
///
/// # Errors
/// If it is neither.
pub fn decode_reply(wire: v1::QueryReply) -> Result<Result<QueryReply, String>, WireError> {
    use v1::query_reply::Kind;
    let reply = match wire.kind.required("QueryReply.kind")? {
        Kind::Error(reason) => return Ok(Err(reason)),
        Kind::Status(json) => from_slice(&json).map(QueryReply::Status),
        Kind::Nodes(json) => from_slice(&json).map(QueryReply::Nodes),
        Kind::Tasks(json) => from_slice(&json).map(QueryReply::Tasks),
        Kind::Objects(json) => from_slice(&json).map(QueryReply::Objects),
        Kind::Why(json) => from_slice(&json).map(QueryReply::Why),
        Kind::Actors(json) => from_slice(&json).map(QueryReply::Actors),
        Kind::NamedActor(json) => from_slice(&json).map(QueryReply::NamedActor),
        Kind::Groups(json) => from_slice(&json).map(QueryReply::Groups),
        Kind::Group(json) => from_slice(&json).map(QueryReply::Group),
        Kind::States(json) => from_slice(&json).map(QueryReply::States),
        Kind::Jobs(json) => from_slice(&json).map(QueryReply::Jobs),
        Kind::Log(json) => from_slice(&json).map(QueryReply::Log),
    };
    reply.map(Ok).map_err(|error| not_json("QueryReply", &error))
}

/// The query types have string keys and derived serializers, so this cannot fail.
pub(super) fn json<T: serde::Serialize>(value: &T) -> Bytes {
    to_vec(value).expect("query types are plain data").into()
}

pub(super) fn not_json(field: &'static str, error: &serde_json::Error) -> WireError {
    WireError::invalid(field, format!("is not what it should be: {error}"))
}
