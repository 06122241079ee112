//! The worker daemon: registration, executor supervision, device discovery.
//!
//! A daemon is an edge around pure cores: events in, effects out, all on one thread.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`daemon`] | puts a daemon together and runs it: [`run_worker`], [`run_embedded`] |
//! | `event_loop` | the queue, the pump, the turn of the loop |
//! | `sockets`, `gateway` | clients by Unix socket, and by gRPC |
//! | `clients`, `outbox` | what an attached client is; writing without blocking |
//! | `head_side`, `head_link` | the head beside us in the same process, or over gRPC |
//! | `tunnels` | conversations with other nodes about calls to actors |
//! | `store_host` | segments, spill files, the data port |
//! | [`supervisor`], `executors` | processes; what the core knows of them |
//! | `jobs`, `job_process`, `job_env` | submitted programs: the process beside each, what it finds around it |
//! | `environments`, `packages` | what runtime environments need: files, interpreters |
//! | `log_archive` | logs of jobs in durable storage |
//! | `log_files` | what executors and jobs print, on disk |
//! | `devices`, `memory_monitor` | what this machine has, and how much of its memory is used |

mod client_socket;
mod clients;
pub mod config;
pub mod daemon;
mod devices;
mod environments;
mod event_loop;
mod executors;
mod gateway;
mod head_link;
mod head_side;
mod job_env;
mod job_process;
mod jobs;
mod log_archive;
mod log_files;
mod memory_monitor;
mod orphans;
mod outbox;
mod packages;
mod programs;
mod sockets;
mod store_host;
pub mod supervisor;
#[cfg(test)]
mod tests;
mod tunnels;

pub use config::{EmbeddedConfig, Offer, Ready, WorkerConfig, WorkerError};
pub use daemon::HEADS_NAME;
pub use daemon::{run_embedded, run_worker};
pub use job_process::run_job_process;
pub use sockets::SOCKET_NAME;
pub use store_host::check_durable_url;
