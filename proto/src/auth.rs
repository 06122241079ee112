//! The cluster's token on every gRPC call.

use std::sync::Arc;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::strangers::Caller;

/// The metadata entry that carries the token.
pub const TOKEN_METADATA: &str = "cluster-token";

const HINT: &str = "set CLUSTER_TOKEN or CLUSTER_TOKEN_FILE to the token of this cluster (`cluster up` made it: the \
                    file `token` in its directory, readable by its user only)";

/// Compares in a time that does not tell how much of a guess was right.
pub fn tokens_equal(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let differences = one.iter().zip(other).fold(0, |all, (a, b)| all | (a ^ b));
    // The optimiser must not turn the sum into a comparison that stops early.
    one.len() == other.len() && std::hint::black_box(differences) == 0
}

/// The sentence for somebody who came with this token: `None` if it is right.
pub fn token_refusal(expected: &str, given: Option<&str>) -> Option<String> {
    match given {
        Some(given) if tokens_equal(expected, given) => None,
        Some(_) => Some(format!("the token is not this cluster's: {HINT}")),
        None => Some(format!("this cluster answers nobody without its token: {HINT}")),
    }
}

/// A server's side: refuses every call without the right token.
#[derive(Clone)]
pub struct CheckToken {
    expected: Arc<str>,
}

impl CheckToken {
    /// Expects this token.
    pub fn new(expected: &str) -> Self {
        Self { expected: expected.into() }
    }
}

impl Interceptor for CheckToken {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let given = request.metadata().get(TOKEN_METADATA).and_then(|value| value.to_str().ok());
        match token_refusal(&self.expected, given) {
            None => {
                if let Some(caller) = request.extensions().get::<Caller>() {
                    caller.is_known();
                }
                Ok(request)
            }
            Some(sentence) => Err(Status::unauthenticated(sentence)),
        }
    }
}

/// A client's side: adds the token to every call.
#[derive(Clone)]
pub struct AddToken {
    token: Option<MetadataValue<Ascii>>,
}

impl AddToken {
    /// Adds this token. One that no header can carry (line breaks, say) is not sent: the refusal says what is wrong.
    pub fn new(token: &str) -> Self {
        Self { token: token.trim().parse().ok() }
    }
}

impl Interceptor for AddToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.token {
            request.metadata_mut().insert(TOKEN_METADATA, token.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(add: Option<&str>) -> Result<(), Status> {
        let mut request = Request::new(());
        if let Some(token) = add {
            request = AddToken::new(token).call(request)?;
        }
        CheckToken::new("secret").call(request).map(drop)
    }

    #[test]
    fn only_the_right_token_passes() {
        assert!(call(Some("secret")).is_ok());
        assert!(call(Some("secret\n")).is_ok(), "a token file may end with a line break");
        for wrong in [Some("Secret"), Some("secre"), Some("secrets"), Some(""), Some("a\nb"), None] {
            let status = call(wrong).unwrap_err();
            assert_eq!(status.code(), tonic::Code::Unauthenticated);
            assert!(status.message().contains("CLUSTER_TOKEN_FILE"), "{status}");
        }
    }
}
