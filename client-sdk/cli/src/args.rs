//! Flags, the environment variables that stand for them, and help.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::units::{
    Resources, parse_amount, parse_bytes, parse_label, parse_resources, parse_share, parse_time,
    parse_variable,
};

/// Run Python functions on every core, GPU and machine you have: start a cluster, look at it, end it.
#[derive(Debug, Parser)]
#[command(
    name = "cluster",
    version,
    arg_required_else_help = true,
    after_help = "\
Examples:
  cluster up                           start a cluster on this machine
  cluster up --join 10.0.0.1:8264      make this machine part of another's cluster
  cluster status                       what there is and what is in use
  cluster why 9f3c21aa.17              why a task is where it is
  cluster down                         end what runs on this machine

Exit codes:
  0  done
  1  failed
  2  a flag, a variable or the configuration file makes no sense
  3  no cluster can be reached
  4  the token is missing or wrong, or the cluster refused this machine"
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a cluster on this machine, or join one, in the background.
    #[command(after_help = "\
Examples:
  cluster up
  cluster up --num-cpus 4 --num-gpus 1 --memory 16GiB --object-store-memory 4GiB
  cluster up --host 10.0.0.1                         let other machines join
  cluster up --join 10.0.0.1:8264 --label zone=west  join, from another machine
  cluster up --state etcd://e1:2379,e2:2379,e3:2379  on several machines, which can stand in for each other
  cluster up --config cluster.toml

Where the head or the worker daemon of this machine has died, the same command starts it again; what the other does goes on.

Every setting can come from its flag, its environment variable or the file, in this order. The file has the flags'
names with underscores:
  num_cpus = 4
  object_store_memory = \"4GiB\"
  [resources]
  tpu = 1")]
    Up(Box<UpArgs>),
    /// End the daemons of this machine and all they started.
    #[command(after_help = "\
Examples:
  cluster down
  cluster down --dir /tmp/second-cluster")]
    Down(DownArgs),
    /// Have a node leave: nothing new starts there, what runs may end, objects that are only there move to other nodes.
    #[command(after_help = "\
Examples:
  cluster drain worker-3
  cluster drain 5b1fd2c0 --deadline 10m
  cluster drain worker-3 --no-wait       and look at `cluster list nodes`")]
    Drain(DrainArgs),
    /// Show a cluster at a glance: nodes, tasks, resources, memory.
    #[command(after_help = "\
Examples:
  cluster status
  cluster status --address 10.0.0.1:8264 --token-file token
  cluster status --json | jq .resources.available")]
    Status(AskArgs),
    /// List nodes, tasks, actors, objects or placement groups.
    #[command(after_help = "\
Examples:
  cluster list nodes
  cluster list tasks --limit 1000
  cluster list actors
  cluster list placement-groups
  cluster list objects --json")]
    List(ListArgs),
    /// Say why a task is where it is: what it waits for, or what became of it.
    #[command(after_help = "\
Examples:
  cluster why 5b1fd2c09f3c21aa.17
  cluster why 21aa.17                  any end of a task's id that is unambiguous")]
    Why(WhyArgs),
    /// Have the cluster run a program: it goes on when this command, or this machine, is gone.
    #[command(after_help = "\
Examples:
  cluster submit -- python -c 'print(42)'
  cluster submit --name nightly --retries 2 --timeout 2h --num-cpus 1 -- python train.py --epochs 3
  cluster submit --working-dir . --requirements requirements.txt -- python train.py
  cluster submit --wait --env MODE=test -- ./measure.sh

It runs on a node with room, in a directory of its own there, with CLUSTER_ADDRESS and CLUSTER_TOKEN set.")]
    Submit(Box<SubmitArgs>),
    /// Like submit, with this terminal: output as it comes, Ctrl-C ends the job, the exit code is the program's.
    #[command(after_help = "\
Examples:
  cluster run -- python -c 'print(42)'
  cluster run --num-gpus 1 -- python train.py")]
    Run(Box<ProgramArgs>),
    /// List submitted jobs, newest first.
    #[command(after_help = "\
Examples:
  cluster jobs
  cluster jobs --json")]
    Jobs(JobsArgs),
    /// Show a job: its state, its attempts, its exit code.
    #[command(after_help = "\
Examples:
  cluster job 5b1fd2c0
  cluster job nightly")]
    Job(JobArgs),
    /// Show what a job, a task, an actor, a process or a node's daemon printed.
    #[command(after_help = "\
Examples:
  cluster logs 5b1fd2c0 -f               a job's, as it comes
  cluster logs nightly --tail 20
  cluster logs --task 21aa.17
  cluster logs --actor trainer
  cluster logs --node worker-3 -f")]
    Logs(LogsArgs),
    /// End a job and all that it started: it is asked first, and killed after five seconds.
    #[command(after_help = "\
Examples:
  cluster stop 5b1fd2c0
  cluster stop nightly")]
    Stop(JobArgs),
    /// Forget a job that has ended, and its log.
    #[command(after_help = "\
Examples:
  cluster delete 5b1fd2c0")]
    Delete(JobArgs),
    /// Print completions for a shell.
    #[command(after_help = "\
Examples:
  cluster completions bash > ~/.local/share/bash-completion/completions/cluster
  cluster completions zsh > ~/.zfunc/_cluster
  cluster completions fish > ~/.config/fish/completions/cluster.fish")]
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
    #[command(hide = true)]
    HeadDaemon(DaemonArgs),
    #[command(hide = true)]
    WorkerDaemon(DaemonArgs),
    /// Starts users' own programs as executors, for a daemon at the other end of its standard input.
    #[command(hide = true)]
    Launcher,
    /// The process beside a submitted job.
    #[command(hide = true)]
    JobProcess,
    /// Makes a runtime environment of files ready to travel: JSON on standard input, JSON on standard output.
    #[command(hide = true)]
    Pack(PackArgs),
    /// A cluster of one process for one driver. It ends when its standard input does; one line of JSON on its standard
    /// output says that it is ready. The token, if one is wanted, is in CLUSTER_TOKEN.
    #[command(hide = true)]
    Embedded(Box<EmbeddedArgs>),
}

/// Where the daemons of this machine keep their files.
#[derive(Args, Clone, Debug, Default)]
pub struct Place {
    /// The directory of this machine's daemons [default: $XDG_RUNTIME_DIR/concurrent-ml or /tmp/concurrent-ml-UID]
    #[arg(long, env = "CLUSTER_DIR", value_name = "DIR", help_heading = "General")]
    pub dir: Option<PathBuf>,
    /// A TOML file with settings
    #[arg(long, env = "CLUSTER_CONFIG", value_name = "FILE", help_heading = "General")]
    pub config: Option<PathBuf>,
    /// Print JSON
    #[arg(long, help_heading = "General")]
    pub json: bool,
}

/// The cluster's secret. `CLUSTER_TOKEN` itself is read where it is needed, so that no help or error shows it.
#[derive(Args, Clone, Debug, Default)]
pub struct TokenArgs {
    /// A file that holds the cluster's token; CLUSTER_TOKEN may hold the token itself [default: DIR/token]
    #[arg(long, env = "CLUSTER_TOKEN_FILE", value_name = "FILE", help_heading = "General")]
    pub token_file: Option<PathBuf>,
}

/// What a machine offers.
#[derive(Args, Clone, Debug, Default)]
pub struct OfferArgs {
    /// Cores; fractions are fine [default: those of this machine]
    #[arg(long, env = "CLUSTER_NUM_CPUS", value_name = "N", value_parser = parse_amount, allow_negative_numbers = true)]
    pub num_cpus: Option<f64>,
    /// GPUs [default: those of this machine]
    #[arg(long, env = "CLUSTER_NUM_GPUS", value_name = "N", value_parser = parse_amount, allow_negative_numbers = true)]
    pub num_gpus: Option<f64>,
    /// Memory for tasks that ask for some, like 4GiB [default: what the machine has beside the object store]
    #[arg(long, env = "CLUSTER_MEMORY", value_name = "SIZE", value_parser = parse_bytes)]
    pub memory: Option<u64>,
    /// Memory for objects, like 2GiB [default: a share of this machine's]
    #[arg(long, env = "CLUSTER_OBJECT_STORE_MEMORY", value_name = "SIZE", value_parser = parse_bytes)]
    pub object_store_memory: Option<u64>,
    /// The share of the machine's memory, used by anybody, beyond which a task is ended [default: 0.95]
    #[arg(long, env = "CLUSTER_MEMORY_THRESHOLD", value_name = "SHARE", value_parser = parse_share)]
    pub memory_threshold: Option<f64>,
    /// Custom resources, like '{"tpu": 1}'
    #[arg(long, env = "CLUSTER_RESOURCES", value_name = "JSON", value_parser = parse_resources)]
    pub resources: Option<Resources>,
    /// A label of this node; may be given many times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub labels: Vec<(String, String)>,
    /// The Python that runs tasks [default: the one this command was installed with, else python3]
    #[arg(long, env = "CLUSTER_PYTHON", value_name = "PATH")]
    pub python: Option<PathBuf>,
    /// Where objects go when memory is full [default: DIR/spill]
    #[arg(long, env = "CLUSTER_SPILL_DIR", value_name = "DIR")]
    pub spill_dir: Option<PathBuf>,
    /// Where copies of durable objects lie, for all nodes of a cluster the same: file:///mnt/shared/durable, or
    /// s3://bucket/prefix (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ... say how to reach it) [default: DIR/durable]
    #[arg(long, env = "CLUSTER_DURABLE", value_name = "URL")]
    pub durable: Option<String>,
}

#[derive(Args, Debug)]
pub struct UpArgs {
    /// Join the cluster whose head is at this address (any of its heads', or several with commas between) instead of
    /// starting one
    #[arg(long, value_name = "HOST:PORT")]
    pub join: Option<String>,
    /// Keep the cluster's state in this etcd, etcd://HOST:PORT,HOST:PORT,...[/NAME]: of all machines that are started so
    /// one leads, and another takes over when it fails [default: a file on this machine]
    #[arg(long, env = "CLUSTER_STATE", value_name = "URL")]
    pub state: Option<String>,
    #[command(flatten)]
    pub offer: OfferArgs,
    /// The address to listen on [default: 127.0.0.1; with --join, the address that faces the head]
    #[arg(long, env = "CLUSTER_HOST", value_name = "IP", help_heading = "Network")]
    pub host: Option<std::net::IpAddr>,
    /// The name or address by which other machines reach this one [default: the one listened on]
    #[arg(long, env = "CLUSTER_ADVERTISE", value_name = "HOST", help_heading = "Network")]
    pub advertise: Option<String>,
    /// The head's port; 0: any that is free [default: 8264]
    #[arg(long, env = "CLUSTER_PORT", value_name = "PORT", help_heading = "Network")]
    pub port: Option<u16>,
    /// The port for objects on their way between nodes [default: 8266]
    #[arg(long, env = "CLUSTER_DATA_PORT", value_name = "PORT", help_heading = "Network")]
    pub data_port: Option<u16>,
    /// The port for programs on machines without a daemon [default: 8267, or any if that is taken]
    #[arg(long, env = "CLUSTER_GATEWAY_PORT", value_name = "PORT", help_heading = "Network")]
    pub gateway_port: Option<u16>,
    /// How long a program on a machine without a daemon may be out of touch, its laptop's lid closed, before what it
    /// holds is let go of [default: 10m]
    #[arg(long, env = "CLUSTER_CLIENT_GRACE", value_name = "TIME", value_parser = parse_time, help_heading = "Network")]
    pub client_grace: Option<Duration>,
    /// How long SIGTERM lets what runs here end before the daemon does; 0 ends it at once [default: 25s]
    #[arg(long, env = "CLUSTER_DRAIN", value_name = "TIME", value_parser = parse_time)]
    pub drain: Option<Duration>,
    /// How long a node may be silent before it counts as lost; said to the head [default: 5s]
    #[arg(long, env = "CLUSTER_LOSS_TIMEOUT", value_name = "TIME", value_parser = parse_time)]
    pub loss_timeout: Option<Duration>,
    /// Finished tasks that `cluster list tasks` and `cluster why` know; said to the head [default: 10000]
    #[arg(long, env = "CLUSTER_TASKS_KEPT", value_name = "N")]
    pub tasks_kept: Option<usize>,
    /// Memory for what it takes to make lost objects again, like 1GiB; said to the head [default: 256MiB]
    #[arg(long, env = "CLUSTER_LINEAGE_MEMORY", value_name = "SIZE", value_parser = parse_bytes)]
    pub lineage_memory: Option<u64>,
    /// How large a daemon's log may grow; the one before it is kept too [default: 64MiB]
    #[arg(long, env = "CLUSTER_LOG_SIZE", value_name = "SIZE", value_parser = parse_bytes)]
    pub log_size: Option<u64>,
    #[command(flatten)]
    pub token: TokenArgs,
    #[command(flatten)]
    pub place: Place,
}

#[derive(Args, Debug)]
pub struct DrainArgs {
    /// The node: its hostname, its id, or the beginning of that
    #[arg(value_name = "NODE")]
    pub node: String,
    /// When it leaves in any case; what still runs then is tried again elsewhere
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = parse_time)]
    pub deadline: Duration,
    /// Do not wait until it has left
    #[arg(long)]
    pub no_wait: bool,
    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(Args, Debug)]
pub struct DownArgs {
    #[command(flatten)]
    pub place: Place,
}

#[derive(Args, Debug, Default)]
pub struct AskArgs {
    /// The cluster's head, any of them or several with commas between [default: the one started on this machine]
    #[arg(long, env = "CLUSTER_ADDRESS", value_name = "HOST:PORT", help_heading = "General")]
    pub address: Option<String>,
    #[command(flatten)]
    pub token: TokenArgs,
    #[command(flatten)]
    pub place: Place,
}

#[derive(Args, Debug)]
pub struct ListArgs {
    /// What to list
    #[arg(value_enum)]
    pub what: Listed,
    /// At most so many
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub limit: u32,
    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Listed {
    /// The machines of the cluster
    Nodes,
    /// Tasks, newest first
    Tasks,
    /// Objects that the head knows, largest first
    Objects,
    /// Actors, newest first
    Actors,
    /// Placement groups, newest first, with where their bundles are
    PlacementGroups,
}

/// A program for the cluster to run.
#[derive(Args, Debug)]
pub struct ProgramArgs {
    /// What to call it; no two jobs that have not ended have the same name
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Set in the program's environment; may be given many times
    #[arg(long = "env", value_name = "KEY=VALUE", value_parser = parse_variable)]
    pub env: Vec<(String, String)>,
    /// A directory whose files it is started among, without what .gitignore excludes; what the cluster has of it is not
    /// sent again
    #[arg(long, value_name = "DIR")]
    pub working_dir: Option<PathBuf>,
    /// Directories of Python modules for its path; may be given many times
    #[arg(long = "py-module", value_name = "PATH")]
    pub py_modules: Vec<PathBuf>,
    /// What to install for it with uv: a requirements file, or a requirement like numpy>=2; may be given many times
    #[arg(long, value_name = "FILE")]
    pub requirements: Vec<String>,
    /// A module that its executors have imported when they start; may be given many times
    #[arg(long = "preload", value_name = "MODULE")]
    pub preload: Vec<String>,
    /// The Python interpreter on the nodes that runs it [default: the nodes' own]
    #[arg(long, value_name = "PATH")]
    pub executable: Option<String>,
    /// Cores for the program itself; what its tasks need is booked apart [default: 0]
    #[arg(long, value_name = "N", value_parser = parse_amount, allow_negative_numbers = true)]
    pub num_cpus: Option<f64>,
    /// GPUs for the program itself [default: 0]
    #[arg(long, value_name = "N", value_parser = parse_amount, allow_negative_numbers = true)]
    pub num_gpus: Option<f64>,
    /// Memory for the program itself, like 4GiB [default: 0]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub memory: Option<u64>,
    /// Custom resources for the program itself, like '{"tpu": 1}'
    #[arg(long, value_name = "JSON", value_parser = parse_resources)]
    pub resources: Option<Resources>,
    /// How often it is started again when it fails or its node is lost
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub retries: u32,
    /// After so long it is ended, and has failed
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub timeout: Option<Duration>,
    /// Something to find it by; may be given many times
    #[arg(long = "metadata", value_name = "KEY=VALUE", value_parser = parse_variable)]
    pub metadata: Vec<(String, String)>,
    #[command(flatten)]
    pub ask: AskArgs,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    pub entrypoint: Vec<String>,
}

#[derive(Args, Debug)]
pub struct PackArgs {
    /// Copy files there, instead of sending them to a gateway
    #[arg(long, value_name = "DIR")]
    pub into: Option<PathBuf>,
    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(Args, Debug)]
pub struct SubmitArgs {
    /// Wait until it has ended, and end with its exit code
    #[arg(long)]
    pub wait: bool,
    /// Only say that it is submitted, which is the default
    #[arg(long, conflicts_with = "wait")]
    pub no_wait: bool,
    #[command(flatten)]
    pub program: ProgramArgs,
}

#[derive(Args, Debug)]
pub struct JobsArgs {
    /// At most so many
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub limit: u32,
    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(Args, Debug)]
pub struct JobArgs {
    /// The job: its id, the beginning of that, or its name
    #[arg(value_name = "JOB")]
    pub job: String,
    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(Args, Debug)]
pub struct LogsArgs {
    /// A job's: its id, the beginning of that, or its name
    #[arg(value_name = "JOB")]
    pub job: Option<String>,
    /// Which of the job's attempts [default: the last]
    #[arg(long, value_name = "N", requires = "job")]
    pub attempt: Option<u32>,
    /// A task's: its id, or any end of it that is unambiguous
    #[arg(long, value_name = "TASK")]
    pub task: Option<String>,
    /// An actor's: its id, or its name
    #[arg(long, value_name = "ACTOR")]
    pub actor: Option<String>,
    /// That of a node's worker daemon: hostname, id, or the beginning of that
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
    /// An executor's, by its process id, where the cluster has one node
    #[arg(long, value_name = "PID")]
    pub executor: Option<u32>,
    /// Go on as more is written, until whoever writes it has ended
    #[arg(short, long)]
    pub follow: bool,
    /// Only so many lines from the end
    #[arg(long, value_name = "N")]
    pub tail: Option<u32>,
    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(Args, Debug)]
pub struct WhyArgs {
    /// The task's id, or any end of it that is unambiguous
    pub task: String,
    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(Args, Debug)]
pub struct DaemonArgs {
    /// JSON, from `cluster up`.
    #[arg(long)]
    pub settings: String,
}

#[derive(Args, Debug)]
pub struct EmbeddedArgs {
    #[arg(long, env = "CLUSTER_DIR")]
    pub dir: PathBuf,
    #[command(flatten)]
    pub offer: OfferArgs,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_public_command_shows_examples() {
        let mut cli = Cli::command();
        assert!(cli.render_help().to_string().contains("Exit codes:"));
        for command in
            cli.get_subcommands_mut().filter(|command| !command.is_hide_set() && command.get_name() != "help")
        {
            let help = command.render_long_help().to_string();
            assert!(help.contains("Examples:"), "{help}");
        }
    }

    #[test]
    fn values_that_make_no_sense_name_their_flag() {
        for flag in [
            "--num-cpus=-1",
            "--num-cpus=nan",
            "--memory=lots",
            "--port=99999",
            "--resources=tpu",
            "--label=x",
        ] {
            let error = Cli::try_parse_from(["cluster", "up", flag]).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(flag.split('=').next().unwrap()), "{error}");
        }
        let error = Cli::try_parse_from(["cluster", "up", "--num-cpus", "-1"]).unwrap_err();
        assert!(error.to_string().contains("negative"), "{error}");
    }
}
