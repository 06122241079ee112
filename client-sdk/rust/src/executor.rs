//! This program as an executor: it takes a task, runs it, answers, until there are no more.

use std::any::Any;
use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use client_runtime::{
    Client, ConnectOptions, Got, HandleSource, Kind, Parcel, Target, Task, ValueBytes, Work,
};
use cluster_types::client_node::{Cancellation, ExecutorFailure};
use cluster_types::{ClientKind, Failure, FailureKind, ObjectId, Payload, TaskKind};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::codec::{self, Inside, Reader};
use crate::error::BACKTRACE;
use crate::function::{Entry, IS_REF};
use crate::{Error, Result, current};

/// Set by the daemon in the environment of an executor.
const EXECUTOR: &str = "CLUSTER_EXECUTOR";
/// Who cancelled a task is told beside the signal that interrupts: it comes within this time.
const REASON_WITHIN: Duration = Duration::from_millis(500);

static IS_EXECUTOR: AtomicBool = AtomicBool::new(false);
static CLIENT: OnceLock<Client> = OnceLock::new();

pub(crate) fn is_executor() -> bool {
    IS_EXECUTOR.load(Ordering::Relaxed)
}

/// Whether the task that runs was cancelled.
pub(crate) fn is_cancelled() -> bool {
    if !is_executor() || !IS_MAIN.with(|main| *main.borrow()) {
        return false;
    }
    if CLIENT.get().is_some_and(Client::take_cancel) {
        current::cancelled_flag(Some(true));
    }
    current::cancelled_flag(None)
}

thread_local! {
    /// This thread runs tasks.
    static IS_MAIN: RefCell<bool> = const { RefCell::new(false) };
    /// Where the last panic of this thread began.
    static PANIC: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
}

/// What the daemon tells the process that it starts.
#[derive(Deserialize)]
struct Order {
    socket: PathBuf,
    executor: u32,
    token: String,
    page: i32,
}

/// Where the cluster started this program to run its tasks, serves them and does not return; elsewhere does nothing.
///
/// [`crate::init`] does this first. A program that does more before it connects (reads its arguments, starts threads, opens
/// files) calls this at the beginning of `main`, so that its executors do not.
pub fn serve_if_executor() {
    let Ok(order) = std::env::var(EXECUTOR) else { return };
    let code = match serde_json::from_str::<Order>(&order) {
        Ok(order) => run(order),
        Err(error) => Err(Error::Misuse(format!("{EXECUTOR} is not what a daemon sets: {error}"))),
    };
    match code {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("this program could not become an executor: {error}");
            std::process::exit(1);
        }
    }
}

fn run(order: Order) -> Result<()> {
    let misuse = |what: &str, error: &dyn std::fmt::Display| Error::Misuse(format!("{what}: {error}"));
    IS_EXECUTOR.store(true, Ordering::Relaxed);
    IS_MAIN.set(true);
    // Interrupts waits, which then look whether the task is to end (rule E3).
    let noticed = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGINT, noticed)
        .map_err(|error| misuse("the signal handler", &error))?;
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("a value that is no text").to_owned();
        let place = panic.location().map(|place| format!(" at {place}")).unwrap_or_default();
        let backtrace = Backtrace::force_capture();
        PANIC.set(Some((format!("panicked{place}: {message}"), backtrace.to_string())));
    }));
    let mut options = ConnectOptions::new(ClientKind::Executor { executor: order.executor }, order.token);
    options.page = Some(page(order.page)?);
    let client = Client::connect(Target::Unix(order.socket), options, &mut || Ok(()))?;
    current::connect(client.clone())?;
    let _ = CLIENT.set(client.clone());
    let mut executor = Executor { client: client.clone(), functions: HashMap::new(), actor: None };
    loop {
        match client.next_work(&mut || Ok(())) {
            Ok(Some(Work::Run(task))) => executor.execute(task),
            Ok(Some(Work::Cancel(_))) => {}
            Ok(None) | Err(_) => break,
        }
    }
    drop(executor);
    current::disconnect();
    Ok(())
}

/// The page shared with the daemon. Opened anew, since the number it was passed as is but a number.
fn page(number: i32) -> Result<OwnedFd> {
    let path = format!("/proc/self/fd/{number}");
    let opened = std::fs::File::options().read(true).write(true).open(&path);
    opened
        .map(OwnedFd::from)
        .map_err(|error| Error::Misuse(format!("the page shared with the daemon ({path}): {error}")))
}

/// One found in the registry: what runs it.
#[derive(Clone, Copy)]
enum Found {
    Function(fn(&mut Execution<'_>) -> Result<(), Fault>),
    Actor(&'static ActorEntry),
}

/// A function of this program that can be called.
pub struct FunctionEntry {
    /// With its module.
    pub path: &'static str,
    /// What runs it.
    pub run: fn(&mut Execution<'_>) -> Result<(), Fault>,
}

/// A type of this program of which actors can be made.
pub struct ActorEntry {
    /// With its module.
    pub path: &'static str,
    /// Makes one.
    pub make: fn(&mut Execution<'_>) -> Result<Box<dyn Any>, Fault>,
    /// Calls a method.
    pub call: fn(&mut dyn Any, &str, &mut Execution<'_>) -> Result<(), Fault>,
}

inventory::collect!(FunctionEntry);
inventory::collect!(ActorEntry);

/// Why a task has no result.
#[derive(Debug)]
pub enum Fault {
    /// User code returned an error, or its arguments or result cannot be.
    Raised(String),
    /// It was asked to end.
    Cancelled,
}

/// What user code returned as an error.
pub fn raised<E: std::fmt::Display + ?Sized>(error: &E) -> Fault {
    // Of errors that keep what caused them, all of it.
    Fault::Raised(format!("{error:#}"))
}

/// The actor here is not of that type.
pub fn another_type(expected: &str) -> Fault {
    Fault::Raised(format!("the actor is no {expected}"))
}

/// The type has no such method.
pub fn no_method(class: &str, method: &str) -> Fault {
    Fault::Raised(format!("{class} has no public method {method:?} that takes self"))
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        match error {
            Error::Cancelled => Fault::Cancelled,
            other => Fault::Raised(other.to_string()),
        }
    }
}

/// A task that runs, as the code around the user's sees it.
pub struct Execution<'a> {
    client: &'a Client,
    task: &'a Task,
    arguments: Incoming<'a>,
    results: Vec<(Parcel, Inside)>,
    streamed: bool,
}

enum Incoming<'a> {
    /// Rust's, one after the other.
    Own(Reader<'a>, usize),
    /// Plain ones, with the places of those that came as refs.
    Plain { reader: Reader<'a>, places: Vec<u32>, next: u32, count: u32 },
}

impl<'a> Execution<'a> {
    fn new(client: &'a Client, task: &'a Task, payload: &'a ValueBytes) -> Result<Execution<'a>> {
        let mut reader = Reader::new(payload, client, HandleSource::Task)?;
        let arguments = if reader.is_plain() {
            reader.list()?;
            let places = reader.next()?;
            let count = reader.list()?;
            Incoming::Plain { reader, places, next: 0, count }
        } else {
            Incoming::Own(reader, 0)
        };
        Ok(Execution { client, task, arguments, results: Vec::new(), streamed: false })
    }

    fn dependency<T: DeserializeOwned>(&self, index: usize) -> Result<T> {
        let lost = || Error::Value("an argument did not come with the task".to_owned());
        let id = *self.task.spec.deps.get(index).ok_or_else(lost)?;
        let found = self.task.values.iter().find(|(have, _)| *have == id);
        codec::value(self.client, &found.ok_or_else(lost)?.1, HandleSource::Task)
    }

    /// The next argument.
    ///
    /// # Errors
    /// If there is none, or of another type.
    pub fn argument<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, Fault> {
        let of = |error: Error| Fault::Raised(format!("argument {name}: {error}"));
        match &mut self.arguments {
            Incoming::Own(reader, refs) => {
                if reader.next::<u8>().map_err(of)? != IS_REF {
                    return reader.next().map_err(of);
                }
                *refs += 1;
                let index = *refs - 1;
                self.dependency(index).map_err(of)
            }
            Incoming::Plain { reader, places, next, count } => {
                if next == count {
                    return Err(Fault::Raised(format!("argument {name} is missing: {count} were given")));
                }
                let at = *next;
                *next += 1;
                match places.iter().position(|place| *place == at) {
                    None => reader.next().map_err(of),
                    Some(index) => {
                        reader.next::<()>().map_err(of)?;
                        self.dependency(index).map_err(of)
                    }
                }
            }
        }
    }

    /// There are no more arguments: user code begins, and can be cancelled.
    ///
    /// # Errors
    /// If there are more, or it was cancelled already.
    pub fn begin(&mut self) -> Result<(), Fault> {
        if let Incoming::Plain { next, count, reader, .. } = &mut self.arguments {
            if next != count {
                return Err(Fault::Raised(format!("it takes {next} arguments, and {count} were given")));
            }
            if reader.next::<Option<serde::de::IgnoredAny>>()?.is_some() {
                return Err(Fault::Raised(
                    "Rust functions take arguments by position, not by name".to_owned(),
                ));
            }
        }
        self.client.enter_user_code(self.task.tag);
        if is_cancelled() { Err(Fault::Cancelled) } else { Ok(()) }
    }

    fn kind(&self) -> Kind {
        match self.arguments {
            Incoming::Own(..) => Kind::BINCODE,
            Incoming::Plain { .. } => Kind::PLAIN,
        }
    }

    /// What it returned.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn finish<T: Serialize>(&mut self, value: &T) -> Result<(), Fault> {
        let parcel = codec::parts(self.kind(), value).and_then(|parts| codec::parcel(self.client, parts))?;
        self.results.push(parcel);
        Ok(())
    }

    /// What it yields, until nobody wants more.
    ///
    /// # Errors
    /// If an item cannot be written, or the task is cancelled.
    pub fn drain<T: Serialize>(&mut self, items: impl Iterator<Item = T>) -> Result<(), Fault> {
        let (tag, limits) = (self.task.tag, self.task.spec.template.stream.unwrap_or_default());
        self.streamed = true;
        if self.task.spec.template.stream.is_none() {
            return self.finish(&0_u64);
        }
        let mut count = 0_u64;
        for item in items {
            let parts = codec::parts(self.kind(), &item)?;
            let (parcel, refs) = codec::parcel(self.client, parts)?;
            count += 1;
            let wanted = self.client.yield_item(tag, parcel, refs.ids()).map_err(Error::from)?
                && self.client.wait_for_room(tag, limits, &mut current::interrupt).map_err(Error::from)?;
            if !wanted {
                break;
            }
        }
        self.finish(&count)
    }
}

struct Executor {
    client: Client,
    functions: HashMap<Vec<u8>, Option<Found>>,
    actor: Option<(&'static ActorEntry, Box<dyn Any>)>,
}

impl Executor {
    fn execute(&mut self, task: Task) {
        let began = Instant::now();
        current::cancelled_flag(Some(false));
        PANIC.set(None);
        let timer = self.timer(&task);
        // An actor's calls have no lease of their own: they use its.
        if !matches!(task.spec.template.kind, TaskKind::Method { .. }) {
            current::lease_gpus(task.gpus.iter().map(|share| share.index).collect());
        }
        let ended = catch_unwind(AssertUnwindSafe(|| self.call(&task)));
        self.client.leave_user_code();
        drop(timer);
        // Held until they are told of.
        let mut inside = Vec::new();
        let result = match ended {
            // What it returned when it had learnt that nobody wants it.
            Ok(_) if current::cancelled_flag(None) => Err(self.cancelled(&task)),
            Ok(Ok(results)) => Ok(results
                .into_iter()
                .map(|(parcel, refs)| {
                    let ids = refs.ids();
                    inside.push(refs);
                    (parcel, ids)
                })
                .collect()),
            Ok(Err(Fault::Cancelled)) => Err(self.cancelled(&task)),
            Ok(Err(Fault::Raised(message))) => Err(self.failed(&task, &format!("failed: {message}"), None)),
            Err(_) => {
                let (message, trace) = PANIC.take().unwrap_or_else(|| ("panicked".to_owned(), String::new()));
                Err(self.failed(&task, &message, Some(trace)))
            }
        };
        let micros = began.elapsed().as_micros() as u64;
        // Without a connection there is nobody to tell, and no more work either.
        let _ = self.client.complete(task.tag, result, micros);
    }

    fn call(&mut self, task: &Task) -> Result<Vec<(Parcel, Inside)>, Fault> {
        let payload = match &task.spec.payload {
            Payload::Inline(bytes) => ValueBytes::from(bytes.clone()),
            Payload::Stored(id) => value_of(task, *id)?,
        };
        let client = self.client.clone();
        let mut execution = Execution::new(&client, task, &payload)?;
        match &task.spec.template.kind {
            TaskKind::Method { method, .. } => {
                let Some((entry, actor)) = &mut self.actor else {
                    return Err(Fault::Raised("this process is no actor".to_owned()));
                };
                (entry.call)(actor.as_mut(), method, &mut execution)?;
            }
            _ => match self.find(task)? {
                Found::Function(run) => run(&mut execution)?,
                Found::Actor(entry) => {
                    let made = (entry.make)(&mut execution)?;
                    self.actor = Some((entry, made));
                    execution.finish(&())?;
                }
            },
        }
        let (made, template) = (execution.results.len(), &task.spec.template);
        if made != template.num_returns as usize {
            let (name, asked) = (&template.name, template.num_returns);
            return Err(Fault::Raised(format!(
                "{name} returns {made} values, and num_returns = {asked} was asked for"
            )));
        }
        if template.stream.is_some() != execution.streamed {
            let what =
                if execution.streamed { "yields its items: call it as a stream" } else { "yields nothing" };
            return Err(Fault::Raised(format!("{} {what}", template.name)));
        }
        Ok(execution.results)
    }

    fn find(&mut self, task: &Task) -> Result<Found, Fault> {
        let bytes = &task.spec.template.retry_exceptions;
        let found = match self.functions.get(&bytes[..]) {
            Some(found) => *found,
            None => {
                let is_actor = matches!(task.spec.template.kind, TaskKind::Actor(_));
                let found = Entry::decode(bytes).and_then(|entry| find(entry.name, is_actor));
                self.functions.insert(bytes.to_vec(), found);
                found
            }
        };
        found.ok_or_else(|| {
            let name = Entry::decode(bytes).map_or("?", |entry| entry.name);
            let mut known: Vec<&str> = inventory::iter::<FunctionEntry>().map(|entry| entry.path).collect();
            known.extend(inventory::iter::<ActorEntry>().map(|entry| entry.path));
            known.sort_unstable();
            Fault::Raised(format!(
                "the program has no single remote function or actor {name:?}; it has: {}",
                known.join(", ")
            ))
        })
    }

    fn timer(&self, task: &Task) -> Option<Timer> {
        let seconds = Entry::decode(&task.spec.template.retry_exceptions)?.timeout?;
        let what = Cancellation {
            object: task.spec.id.result(0),
            force: false,
            recursive: true,
            reason: format!("it ran longer than its timeout of {seconds} s"),
        };
        Timer::start(self.client.clone(), Duration::try_from_secs_f64(seconds).ok()?, what)
    }

    fn place(&self, task: &Task) -> String {
        format!(
            "task {} ({}, attempt {}) in executor {} on node {}",
            task.spec.template.name,
            task.spec.id,
            task.attempt.n,
            std::process::id(),
            self.client.welcome().node
        )
    }

    fn cancelled(&self, task: &Task) -> ExecutorFailure {
        let reason = self.client.cancel_reason(task.tag, REASON_WITHIN);
        let (name, id) = (&task.spec.template.name, task.spec.id);
        let message =
            format!("task {name} ({id}) was cancelled: {}", reason.as_deref().unwrap_or("on request"));
        failure(task, FailureKind::Cancelled, message, Vec::new(), false)
    }

    fn failed(&self, task: &Task, what: &str, trace: Option<String>) -> ExecutorFailure {
        let retryable =
            Entry::decode(&task.spec.template.retry_exceptions).is_some_and(|entry| entry.retry_errors);
        let mut message = format!("{} {what}", self.place(task));
        message.truncate(message.floor_char_boundary(4000));
        let mut payload = Vec::new();
        if let Some(mut trace) = trace {
            // What is longer would not fit the message.
            trace.truncate(trace.floor_char_boundary(48 << 10));
            payload.extend_from_slice(BACKTRACE);
            payload.extend_from_slice(trace.as_bytes());
        }
        failure(task, FailureKind::Exception, message, payload, retryable)
    }
}

fn failure(
    task: &Task,
    kind: FailureKind,
    message: String,
    payload: Vec<u8>,
    retryable: bool,
) -> ExecutorFailure {
    let failure =
        Failure { kind, message: message.into(), payload: payload.into(), task: Some(task.spec.id) };
    ExecutorFailure { failure, retryable }
}

fn value_of(task: &Task, id: ObjectId) -> Result<ValueBytes, Fault> {
    match task.values.iter().find(|(have, _)| *have == id) {
        Some((_, Got::Value(bytes))) => Ok(bytes.clone()),
        Some((_, Got::Failed(failure))) => Err(Fault::Raised(failure.message.to_string())),
        None => Err(Fault::Raised(format!("argument {id} did not come with the task"))),
    }
}

/// By its whole path, or by the end of it where only one has that.
fn find(name: &str, is_actor: bool) -> Option<Found> {
    let functions = inventory::iter::<FunctionEntry>()
        .filter(|_| !is_actor)
        .map(|entry| (entry.path, Found::Function(entry.run)));
    let actors =
        inventory::iter::<ActorEntry>().filter(|_| is_actor).map(|entry| (entry.path, Found::Actor(entry)));
    let all: Vec<(&str, Found)> = functions.chain(actors).collect();
    if let Some((_, found)) = all.iter().find(|(path, _)| *path == name) {
        return Some(*found);
    }
    let mut ends =
        all.iter().filter(|(path, _)| path.strip_suffix(name).is_some_and(|rest| rest.ends_with("::")));
    match (ends.next(), ends.next()) {
        (Some((_, found)), None) => Some(*found),
        _ => None,
    }
}

/// Cancels a task when its time is over, unless it is dropped before.
struct Timer {
    _end: std::sync::mpsc::Sender<()>,
}

impl Timer {
    fn start(client: Client, after: Duration, what: Cancellation) -> Option<Timer> {
        let (end, ended) = std::sync::mpsc::channel();
        std::thread::Builder::new()
            .name("task-timeout".to_owned())
            .spawn(move || {
                if ended.recv_timeout(after) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                    let _ = client.cancel(what);
                }
            })
            .ok()?;
        Some(Timer { _end: end })
    }
}
