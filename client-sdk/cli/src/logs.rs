//! `cluster logs`: what a job, task, actor, process or daemon printed.

use std::io::Write;
use std::time::{Duration, Instant};

use cluster_types::job::{LogOf, LogQuery};
use cluster_types::query::{Query, QueryReply};

use crate::args::{AskArgs, LogsArgs};
use crate::ask::{ask, other_answer};
use crate::error::CliError;

/// Between two looks at a log that nothing is added to.
const LOOK: Duration = Duration::from_millis(200);
/// How long a cluster that was there may be out of reach.
const AWAY: Duration = Duration::from_secs(600);

pub fn run(args: &LogsArgs) -> Result<(), CliError> {
    let of = match (&args.job, &args.task, &args.actor, &args.node, args.executor) {
        (Some(job), None, None, None, None) => LogOf::Job(job.clone(), args.attempt),
        (None, Some(task), None, None, None) => LogOf::Task(task.clone()),
        (None, None, Some(actor), None, None) => LogOf::Actor(actor.clone()),
        (None, None, None, Some(node), None) => LogOf::Node(node.clone()),
        (None, None, None, None, Some(pid)) => LogOf::Executor(pid),
        _ => {
            return Err(CliError::Usage(
                "name one of: a job, --task, --actor, --node, --executor (see `cluster logs --help`)"
                    .to_owned(),
            ));
        }
    };
    let from = args.tail.map_or(0, |lines| -i64::from(lines.max(1)));
    let mut follower = Follower::new(of, from);
    // Who asks for something that is not there is told at once.
    follower.first(&args.ask)?;
    loop {
        let came = follower.step(&args.ask)?;
        if !came && (follower.ended || !args.follow) {
            return Ok(());
        }
        if !came {
            std::thread::sleep(LOOK);
        }
    }
}

/// Reads on where it was.
pub struct Follower {
    of: LogOf,
    from: i64,
    ended: bool,
}

impl Follower {
    pub fn new(of: LogOf, from: i64) -> Follower {
        Follower { of, from, ended: false }
    }

    fn first(&mut self, args: &AskArgs) -> Result<(), CliError> {
        let log = LogQuery { of: self.of.clone(), from: self.from, ..LogQuery::default() };
        self.take(ask(args, Query::Log(log))?.1).map(|_| ())
    }

    /// Shows what there is from here on. Whether there was something.
    pub fn step(&mut self, args: &AskArgs) -> Result<bool, CliError> {
        let log = LogQuery { of: self.of.clone(), from: self.from, ..LogQuery::default() };
        let reply = patiently(|| ask(args, Query::Log(log.clone())))?.1;
        self.take(reply)
    }

    fn take(&mut self, reply: QueryReply) -> Result<bool, CliError> {
        let QueryReply::Log(piece) = reply else { return Err(other_answer()) };
        if piece.missing > 0 && self.from >= 0 {
            eprintln!("({} bytes of this log are deleted: it had grown too long)", piece.missing);
        }
        let moved = piece.next != self.from && piece.next > 0;
        self.from = piece.next;
        self.ended = piece.ended;
        let mut out = std::io::stdout().lock();
        out.write_all(piece.text.as_bytes())?;
        out.flush()?;
        Ok(moved)
    }
}

/// Asks again while the cluster is out of reach: it was there before.
pub fn patiently<T>(mut question: impl FnMut() -> Result<T, CliError>) -> Result<T, CliError> {
    let begun = Instant::now();
    let mut told = false;
    loop {
        match question() {
            Err(CliError::Unreachable(reason)) if begun.elapsed() < AWAY => {
                if !std::mem::replace(&mut told, true) {
                    eprintln!("({reason}; trying on for {} minutes)", AWAY.as_secs() / 60);
                }
                std::thread::sleep(Duration::from_millis(500));
            }
            other => return other,
        }
    }
}
