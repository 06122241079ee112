//! Calls to whichever member of an etcd answers.
//!
//! Each member has a connection of its own, and a call that one does not answer soon goes to the next: a member that was
//! cut off, or waits for others that were, must not hold up a head that can reach a better one.

use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error, Txn, TxnResponse};
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::Code;

use super::url::EtcdUrl;

/// How long one member may take: longer than a healthy one does, and short enough to ask all three of an etcd several
/// times before a leader's time is over. What was not answered may be asked again, see `session`.
const ATTEMPT: Duration = Duration::from_millis(400);
const CONNECT: Duration = Duration::from_millis(300);
/// Between two attempts that failed at once.
const PAUSE: Duration = Duration::from_millis(50);
/// A whole table may come in one answer.
const MAX_ANSWER: usize = 256 << 20;

/// The members, the one that answered last first.
pub(crate) struct Members {
    members: Vec<Member>,
    current: usize,
    options: ConnectOptions,
}

struct Member {
    address: String,
    client: Option<Client>,
    /// What its last failure was about.
    trouble: String,
}

/// Why a call came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// No member answered in time: each with what it said. The call may have been carried out, or may be yet.
    Silent(String),
    /// Etcd will not do it, today or tomorrow.
    Refused(String),
}

impl Members {
    /// Connects when it is needed. A member that is cut off from the others says so instead of waiting for them.
    pub(crate) fn new(url: &EtcdUrl, password: Option<&str>) -> Self {
        Self::with(url, password, true)
    }

    /// For reading what a member has, be it cut off from the others or not.
    pub(crate) fn each_alone(url: &EtcdUrl, password: Option<&str>) -> Self {
        Self::with(url, password, false)
    }

    fn with(url: &EtcdUrl, password: Option<&str>, require_leader: bool) -> Self {
        let mut options = ConnectOptions::new()
            .with_require_leader(require_leader)
            .with_connect_timeout(CONNECT)
            .with_keep_alive(Duration::from_secs(2), Duration::from_secs(2));
        if let Some(user) = &url.user {
            options = options.with_user(user, password.unwrap_or_default()).with_auto_token_refresh(true);
        }
        let member = |address: &String| Member {
            address: address.clone(),
            client: None,
            trouble: "not asked yet".to_owned(),
        };
        Self { members: url.members.iter().map(member).collect(), current: 0, options }
    }

    /// Asks that member first which answered these last.
    pub(crate) fn begin_with(&mut self, others: &Self) {
        self.current = others.current;
    }

    /// Carries out a transaction, asking one member after the other until the deadline.
    pub(crate) async fn transact(&mut self, txn: &Txn, deadline: Instant) -> Result<TxnResponse, Trouble> {
        self.call(deadline, async |client| {
            let mut kv = client.kv_client().max_decoding_message_size(MAX_ANSWER);
            kv.txn(txn.clone()).await
        })
        .await
    }

    /// Any call.
    pub(crate) async fn call<T>(
        &mut self,
        deadline: Instant,
        ask: impl AsyncFn(Client) -> Result<T, Error>,
    ) -> Result<T, Trouble> {
        loop {
            let begun = Instant::now();
            if begun >= deadline {
                return Err(Trouble::Silent(self.troubles()));
            }
            match self.attempt(deadline.min(begun + ATTEMPT), &ask).await {
                Ok(answer) => return Ok(answer),
                Err(Trouble::Refused(reason)) => return Err(Trouble::Refused(reason)),
                Err(Trouble::Silent(reason)) => {
                    let member = &mut self.members[self.current];
                    member.trouble = reason;
                    // Whatever its connection is, the next begins anew.
                    member.client = None;
                    self.current = (self.current + 1) % self.members.len();
                }
            }
            sleep_until(deadline.min(begun + PAUSE)).await;
        }
    }

    async fn attempt<T>(
        &mut self,
        until: Instant,
        ask: &impl AsyncFn(Client) -> Result<T, Error>,
    ) -> Result<T, Trouble> {
        let member = &mut self.members[self.current];
        let asked = async {
            let client = match &member.client {
                Some(client) => client.clone(),
                None => {
                    let options = Some(self.options.clone());
                    let url = format!("http://{}", member.address);
                    member.client.insert(Client::connect([url], options).await?).clone()
                }
            };
            ask(client).await
        };
        match timeout_at(until, asked).await {
            Ok(answered) => answered.map_err(|error| trouble(&error)),
            Err(_) => Err(Trouble::Silent("does not answer".to_owned())),
        }
    }

    fn troubles(&self) -> String {
        let each = self.members.iter().map(|member| format!("{}: {}", member.address, member.trouble));
        each.collect::<Vec<_>>().join("; ")
    }
}

fn trouble(error: &Error) -> Trouble {
    let Error::GRpcStatus(status) = error else { return Trouble::Silent(innermost(error)) };
    match status.code() {
        Code::InvalidArgument
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::FailedPrecondition
        | Code::ResourceExhausted
        | Code::Unimplemented => Trouble::Refused(status.message().to_owned()),
        // Of a connection that did not come about, tonic's own sentence says nothing.
        _ => Trouble::Silent(match std::error::Error::source(status) {
            Some(source) => innermost(source),
            None => status.message().to_owned(),
        }),
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
