//! The daemon from its listener to its end.

use std::time::Duration;

use cluster_proto::auth::CheckToken;
use cluster_proto::limits::{MAX_GRPC_MESSAGE, MAX_GRPC_PAYLOAD};
use cluster_proto::strangers::{Incoming, Patience};
use cluster_proto::v1::head_server::HeadServer;
use cluster_types::Span;
use head_core::HeadConfig;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tracing::{info, warn};

use crate::config::Config;
use crate::driver::{Core, Driver};
use crate::history::HistoryFile;
use crate::leadership::Leadership;
use crate::service::{Door, HeadService};
use crate::store::StoreError;

/// How long the streams may take to end after they were told that the head stops.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why a head ended that was not told to.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    /// What it must remember cannot be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It cannot listen any more.
    #[error("the head's server ended: {0}")]
    Server(#[from] tonic::transport::Error),
}

/// Runs a head until `shutdown`. All of it runs on the calling thread's runtime; the core on the calling task alone.
/// `new_core` is called whenever this head begins to lead: at once, unless others may. `ready` is called once the
/// state store is there.
///
/// # Errors
/// If the state store fails, at the start or later, or the server does.
pub async fn serve<C: Core>(
    config: Config,
    mut new_core: impl FnMut(HeadConfig) -> C,
    listener: TcpListener,
    ready: impl FnOnce(),
    shutdown: impl Future<Output = ()>,
) -> Result<(), HeadError> {
    let history_at = config.history.clone();
    let mut leadership = Leadership::open(&config.state).await?;
    let loss_timeout = Span(u64::try_from(config.loss_timeout.as_micros()).unwrap_or(u64::MAX));
    let (tasks_kept, lineage_memory) = (config.tasks_kept, config.lineage_memory);
    let address = listener.local_addr().map(|address| address.to_string()).unwrap_or_default();
    info!(address, "head started");
    ready();

    let (door, seen) = watch::channel(Door::StandsBy(leadership.position()));
    let service = HeadService::new(seen, config.outbox_limit);
    let pages = crate::http::router(service.clone(), &config.token);
    let service = HeadServer::new(service).max_decoding_message_size(MAX_GRPC_MESSAGE);
    let service = InterceptedService::new(service, CheckToken::new(&config.token));
    let routes = Routes::from(pages).add_service(service);
    let (stop, stopped) = oneshot::channel::<()>();
    let window = u32::try_from(8 * MAX_GRPC_PAYLOAD).unwrap_or(u32::MAX);
    let server = Server::builder()
        .initial_stream_window_size(window)
        .initial_connection_window_size(window)
        // A machine that vanished without a word is noticed even if nothing is to be sent to it.
        .http2_keepalive_interval(Some(config.loss_timeout))
        .http2_keepalive_timeout(Some(config.loss_timeout))
        .accept_http1(true)
        .add_routes(routes)
        .serve_with_incoming_shutdown(Incoming::new(listener, Patience::default()), async {
            let _ = stopped.await;
        });
    tokio::pin!(server);

    let lead = async {
        tokio::pin!(shutdown);
        loop {
            let reign = tokio::select! {
                biased;
                () = &mut shutdown => break,
                reign = leadership.reign() => reign?,
            };
            let term = reign.begun.term;
            info!(term = term.0, address, "head leads");
            let (file, history) = match &history_at {
                Some(path) => {
                    let (file, history) = HistoryFile::open(path, tasks_kept);
                    (Some(file), history)
                }
                None => Default::default(),
            };
            let core = new_core(HeadConfig {
                loss_timeout,
                history,
                finished_kept: tasks_kept,
                lineage_budget: lineage_memory,
                ..reign.begun
            });
            let (inputs, received) = mpsc::unbounded_channel();
            door.send_replace(Door::Leads(inputs));
            let driver = Driver::new(core, reign.store, reign.tenure, file);
            match driver.run(received, leadership.position(), &mut shutdown).await {
                Ok(()) => break,
                Err(error) if leadership.can_return() => {
                    door.send_replace(Door::StandsBy(leadership.position()));
                    warn!(term = term.0, %error, "head stands by");
                }
                Err(error) => return Err(error),
            }
        }
        door.send_replace(Door::StandsBy(leadership.position()));
        leadership.leave();
        Ok(())
    };
    tokio::select! {
        ended = lead => ended?,
        ended = &mut server => return Ok(ended?),
    }
    drop(stop);
    // Streams that do not end by themselves are cut when the runtime ends.
    let _ = tokio::time::timeout(FAREWELL, server).await;
    info!("head stopped");
    Ok(())
}
