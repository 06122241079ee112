//! The `cluster` command: starts and ends daemons, and asks a running cluster.
//!
//! | module | what it is |
//! | --- | --- |
//! | `args` | flags, environment, help |
//! | `config` | flag over environment over file over default, as one checked struct |
//! | `up`, `down` | the daemons of this machine |
//! | `drain` | a node that is to leave |
//! | `ask`, `views`, `table` | questions to a cluster, and their answers for people and programs |
//! | `environment` | what a job's program is to find around it, sent to where it is fetched from |
//! | `jobs`, `logs` | programs that the cluster runs by itself; what anything printed |
//! | `daemons` | what the hidden subcommands run |
//! | `run_dir`, `process` | the directory of a cluster on this machine; its processes |
//! | `units`, `error` | sizes and times as people write them; exit codes |

mod args;
mod ask;
mod config;
mod daemon_log;
mod daemons;
mod down;
mod drain;
mod environment;
mod error;
mod free_port;
mod jobs;
mod logs;
mod process;
mod run_dir;
mod table;
mod units;
mod up;
mod views;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command};
use error::CliError;

/// Daemons free in batches what they kept in the meantime, which the system's allocator takes long for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Who pipes us into `head` is not told that the pipe closed.
            if !error.is_quiet() {
                eprintln!("error: {error}");
            }
            error.exit_code()
        }
    }
}

fn run(command: Command) -> Result<(), CliError> {
    match command {
        Command::Up(args) => up::run(&args),
        Command::Down(args) => down::run(&args),
        Command::Status(args) => ask::status(&args),
        Command::List(args) => ask::list(&args),
        Command::Drain(args) => drain::run(&args),
        Command::Why(args) => ask::why(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "cluster", &mut std::io::stdout());
            Ok(())
        }
        Command::HeadDaemon(args) => daemons::head(&args),
        Command::WorkerDaemon(args) => daemons::worker(&args),
        Command::Submit(args) => jobs::submit(&args),
        Command::Run(args) => jobs::run(&args),
        Command::Jobs(args) => jobs::list(&args),
        Command::Job(args) => jobs::one(&args),
        Command::Stop(args) => jobs::stop(&args),
        Command::Delete(args) => jobs::delete(&args),
        Command::Logs(args) => logs::run(&args),
        Command::JobProcess => worker_node::run_job_process().map_err(CliError::io("run a job")),
        Command::Pack(args) => environment::pack_for(&args),
        Command::Launcher => {
            worker_node::supervisor::launch_programs().map_err(CliError::io("start programs"))
        }
        Command::Embedded(args) => daemons::embedded(&args),
    }
}
