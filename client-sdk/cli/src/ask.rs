//! `cluster status`, `list` and `why`: one question to the head.

use std::io::Write;
use std::time::{Duration, Instant};

use cluster_proto::auth::AddToken;
use cluster_proto::heads::{KnownHeads, heads_of};
use cluster_proto::limits::MAX_FRAME;
use cluster_proto::v1::QueryRequest;
use cluster_proto::v1::head_client::HeadClient;
use cluster_proto::{decode_reply, encode_query};
use cluster_types::query::{Query, QueryReply};
use cluster_types::{Heads, PROTOCOL_VERSION};
use serde::Serialize;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

use crate::args::{AskArgs, ListArgs, Listed, WhyArgs};
use crate::config::AskConfig;
use crate::error::CliError;
use crate::run_dir::find_token;
use crate::views::{ActorReport, GroupReport, NodeReport, ObjectReport, StatusReport, TaskReport, WhyReport};

/// Connecting and the answer, each: together below the five seconds within which a person is told.
const PATIENCE: Duration = Duration::from_millis(2200);

/// How long a cluster of several heads may be without a leader before that is what is said.
const ELECTION: Duration = Duration::from_secs(8);
const PAUSE: Duration = Duration::from_millis(200);

pub fn status(args: &AskArgs) -> Result<(), CliError> {
    let (address, reply) = ask(args, Query::Status)?;
    let QueryReply::Status(view) = reply else { return Err(other_answer()) };
    show(args, &StatusReport::new(address, view), |report| report.text())
}

pub fn list(args: &ListArgs) -> Result<(), CliError> {
    let limit = args.limit;
    let query = match args.what {
        Listed::Nodes => Query::Nodes,
        Listed::Tasks => Query::Tasks { limit },
        Listed::Objects => Query::Objects { limit },
        Listed::Actors => Query::Actors { limit },
        Listed::PlacementGroups => Query::Groups { limit },
    };
    match ask(&args.ask, query)?.1 {
        QueryReply::Nodes(views) => {
            show_list(args, views.into_iter().map(NodeReport::new), NodeReport::table)
        }
        QueryReply::Tasks(views) => {
            show_list(args, views.into_iter().map(TaskReport::new), TaskReport::table)
        }
        QueryReply::Objects(views) => {
            show_list(args, views.into_iter().map(ObjectReport::new), ObjectReport::table)
        }
        QueryReply::Actors(views) => {
            show_list(args, views.into_iter().map(ActorReport::new), ActorReport::table)
        }
        QueryReply::Groups(views) => {
            show_list(args, views.into_iter().map(GroupReport::new), GroupReport::table)
        }
        _ => Err(other_answer()),
    }
}

pub fn why(args: &WhyArgs) -> Result<(), CliError> {
    let reply = ask(&args.ask, Query::Why { task: args.task.clone() });
    let reply = reply.map_err(|error| match error {
        CliError::Failed(reason) if !reason.contains(&args.task) => {
            CliError::Failed(format!("no answer about task {}: {reason}", args.task))
        }
        other => other,
    })?;
    let QueryReply::Why(view) = reply.1 else { return Err(other_answer()) };
    show(&args.ask, &WhyReport::new(view), |report| report.text())
}

fn show<R: Serialize>(args: &AskArgs, report: &R, text: impl Fn(&R) -> String) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    if args.place.json {
        writeln!(out, "{}", serde_json::to_string_pretty(report).unwrap_or_default())?;
    } else {
        write!(out, "{}", text(report))?;
    }
    Ok(())
}

fn show_list<R: Serialize>(
    args: &ListArgs,
    reports: impl Iterator<Item = R>,
    table: impl Fn(&[R]) -> String,
) -> Result<(), CliError> {
    let reports: Vec<R> = reports.collect();
    show(&args.ask, &reports, |reports| {
        let mut text = table(reports);
        if reports.len() >= args.limit as usize {
            text += &format!("(the first {}; --limit shows more)\n", args.limit);
        }
        text
    })
}

pub fn other_answer() -> CliError {
    CliError::Failed("the head answered another question than was asked; is it another version?".to_owned())
}

/// The answer, and who gave it.
pub fn ask(args: &AskArgs, query: Query) -> Result<(String, QueryReply), CliError> {
    let (addresses, token) = heads_and_token(args)?;
    let runtime = runtime()?;
    let reply = runtime.block_on(ask_heads(&addresses, &token, &query));
    // A resolver that hangs must not hold up the sentence about it.
    runtime.shutdown_background();
    reply
}

pub fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().map_err(CliError::io("start the event loop"))
}

/// Where the cluster's heads are, with commas between, and what they ask for.
pub fn heads_and_token(args: &AskArgs) -> Result<(String, String), CliError> {
    let config = AskConfig::new(args)?;
    let here = config.dir.heads();
    let addresses = match &config.address {
        // A head of the cluster that this machine is part of: the others will do as well.
        Some(given) if given.split(',').any(|head| here.iter().any(|known| known == head)) => {
            format!("{given},{}", here.join(","))
        }
        Some(given) => given.clone(),
        None => match config.dir.read_cluster_file() {
            Some(_) => here.join(","),
            None => {
                return Err(CliError::Unreachable(format!(
                    "no cluster was started in {}: `cluster up` starts one; --address or CLUSTER_ADDRESS names one \
                     elsewhere",
                    config.dir.path().display()
                )));
            }
        },
    };
    let token = find_token(&config.dir, config.token_file.as_deref())?.unwrap_or_default();
    Ok((addresses, token))
}

/// Asks one head after the other until one that leads answers.
async fn ask_heads(addresses: &str, token: &str, query: &Query) -> Result<(String, QueryReply), CliError> {
    let mut heads = KnownHeads::new(addresses);
    let begun = Instant::now();
    loop {
        let address = heads.next(Instant::now());
        let error = match ask_head(&address, token, query).await {
            Ok(reply) => return Ok((address, reply)),
            Err(NoAnswer::Elsewhere(known, error)) => {
                heads.learn(&known);
                error
            }
            Err(NoAnswer::Failed(error @ CliError::Unreachable(_))) if heads.are_several() => {
                heads.unreachable(&address, Instant::now());
                error
            }
            Err(NoAnswer::Failed(error)) => return Err(error),
        };
        if begun.elapsed() > ELECTION {
            return Err(error);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Why a head did not answer the question.
enum NoAnswer {
    /// Another may.
    Elsewhere(Heads, CliError),
    Failed(CliError),
}

impl From<CliError> for NoAnswer {
    fn from(error: CliError) -> Self {
        Self::Failed(error)
    }
}

async fn ask_head(address: &str, token: &str, query: &Query) -> Result<QueryReply, NoAnswer> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| CliError::Usage(format!("`{address}` is no address: write HOST:PORT")))?
        .connect_timeout(PATIENCE);
    let channel = tokio::time::timeout(PATIENCE, endpoint.connect())
        .await
        .map_err(|_| unreachable(address, &format!("no answer within {:.1} s", PATIENCE.as_secs_f64())))?
        .map_err(|error| unreachable(address, &innermost(&error)))?;
    let mut head =
        HeadClient::with_interceptor(channel, AddToken::new(token)).max_decoding_message_size(MAX_FRAME);
    let request = QueryRequest { protocol: PROTOCOL_VERSION, query: Some(encode_query(query)) };
    let response = tokio::time::timeout(PATIENCE, head.ask(request))
        .await
        .map_err(|_| unreachable(address, "something listens there and does not answer"))?
        .map_err(|status| match heads_of(&status) {
            Some(heads) => NoAnswer::Elsewhere(heads, unreachable(address, status.message())),
            None => NoAnswer::Failed(refused(address, &status)),
        })?
        .into_inner();
    let reply = decode_reply(response.reply.unwrap_or_default())
        .map_err(|error| CliError::Failed(format!("the answer of {address} makes no sense: {error}")))?;
    Ok(reply.map_err(CliError::Failed)?)
}

fn unreachable(address: &str, reason: &str) -> CliError {
    CliError::Unreachable(format!(
        "no cluster answers at {address} ({reason}): is it up, and is this address right? (--address, CLUSTER_ADDRESS)"
    ))
}

fn refused(address: &str, status: &Status) -> CliError {
    match status.code() {
        Code::Unauthenticated => CliError::Token(format!("{address}: {}", status.message())),
        Code::Unavailable | Code::DeadlineExceeded => unreachable(address, status.message()),
        Code::FailedPrecondition => CliError::Failed(format!("{address}: {}", status.message())),
        code => CliError::Failed(format!(
            "{address} is no head of a cluster, or a broken one ({code}: {})",
            status.message()
        )),
    }
}

/// What an error is about in the end: `Connection refused` rather than `transport error`.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
