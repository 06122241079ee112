//! The SDK on an embedded cluster. This program is also what the cluster runs.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use concurrent_ml::jobs::{self, JobSpec, JobState};
use concurrent_ml::{
    Builder, Bundle, Cluster, Error, FailureKind, GroupStrategy, ObjectRef, PlacementGroup, SharedArray, get,
    put, remote, wait,
};
use libtest_mimic::{Arguments, Failed, Trial};
use ndarray::{Array, Array2, Ix2};
use serde::{Deserialize, Serialize};

type Checked = Result<(), Failed>;
type Test = (&'static str, fn() -> Checked);

/// Kept until the process ends; the cluster notices that.
static CLUSTER: OnceLock<Cluster> = OnceLock::new();

fn main() {
    concurrent_ml::serve_if_executor();
    let arguments = Arguments::from_args();
    let tests: [Test; 20] = [
        ("a_task_returns_its_value", a_task_returns_its_value),
        ("refs_are_arguments", refs_are_arguments),
        ("a_function_runs_here_when_called_here", a_function_runs_here_when_called_here),
        ("values_of_many_types_pass", values_of_many_types_pass),
        ("errors_and_panics_are_told_at_get", errors_and_panics_are_told_at_get),
        ("a_failed_argument_fails_its_task", a_failed_argument_fails_its_task),
        ("several_results_have_refs_of_their_own", several_results_have_refs_of_their_own),
        ("options_change_what_is_asked_for", options_change_what_is_asked_for),
        ("wait_tells_what_is_ready", wait_tells_what_is_ready),
        ("refs_are_awaited", refs_are_awaited),
        ("a_task_is_cancelled", a_task_is_cancelled),
        ("a_task_is_ended_at_its_timeout", a_task_is_ended_at_its_timeout),
        ("tasks_call_tasks", tasks_call_tasks),
        ("items_come_as_they_are_yielded", items_come_as_they_are_yielded),
        ("a_group_sets_resources_aside", a_group_sets_resources_aside),
        ("an_actor_keeps_its_state", an_actor_keeps_its_state),
        ("an_actor_is_found_by_its_name_and_killed", an_actor_is_found_by_its_name_and_killed),
        ("an_actor_is_made_anew", an_actor_is_made_anew),
        ("arrays_are_views_of_shared_memory", arrays_are_views_of_shared_memory),
        ("programs_are_submitted_and_looked_after", programs_are_submitted_and_looked_after),
    ];
    let trials = tests
        .into_iter()
        .map(|(name, test)| {
            Trial::test(name, move || {
                CLUSTER.get_or_init(|| match Builder::new().address("local").num_cpus(4.0).connect() {
                    Ok(cluster) => cluster,
                    Err(error) => panic!("{error}"),
                });
                test()
            })
        })
        .collect();
    // One cluster is one connection: made by the first that needs it.
    libtest_mimic::run(&Arguments { test_threads: Some(1), ..arguments }, trials).exit();
}

#[remote]
fn add(a: i64, b: i64) -> i64 {
    a + b
}

fn a_task_returns_its_value() -> Checked {
    assert_eq!(add.remote(1, 2).get()?, 3);
    let many: Vec<_> = (0..1000).map(|i| add.remote(i, i)).collect();
    assert_eq!(get(&many)?, (0..1000).map(|i| 2 * i).collect::<Vec<_>>());
    Ok(())
}

fn refs_are_arguments() -> Checked {
    let three = add.remote(1, 2);
    let seven = put(&4_i64)?;
    assert_eq!(add.remote(&three, add.remote(three.clone(), seven)).get()?, 10);
    Ok(())
}

fn a_function_runs_here_when_called_here() -> Checked {
    assert_eq!(add(1, 2), 3);
    Ok(())
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Shape {
    Dot,
    Circle { radius: f32 },
    Named(String, Vec<u8>),
}

#[remote]
fn turn(
    shapes: BTreeMap<String, Option<Shape>>,
    text: String,
    inner: Vec<ObjectRef<i64>>,
) -> (Vec<Shape>, String, i64) {
    let sum = get(&inner).map_or(-1, |values| values.into_iter().sum());
    (shapes.into_values().flatten().collect(), text.to_uppercase(), sum)
}

fn values_of_many_types_pass() -> Checked {
    let circle = Shape::Circle { radius: 1.5 };
    let named = Shape::Named("x".repeat(10_000), vec![1, 2, 3]);
    let shapes: BTreeMap<_, _> =
        [("a", Some(circle.clone())), ("b", None), ("c", Some(Shape::Dot)), ("d", Some(named.clone()))]
            .map(|(name, shape)| (name.to_owned(), shape))
            .into();
    let (shapes, text, sum) = turn.remote(shapes, "grüße", vec![put(&1)?, add.remote(1, 1)]).get()?;
    assert_eq!((shapes, text.as_str(), sum), (vec![circle, Shape::Dot, named], "GRÜSSE", 3));
    Ok(())
}

#[remote]
fn half(x: i64) -> Result<i64, String> {
    if x % 2 == 0 { Ok(x / 2) } else { Err(format!("{x} is odd")) }
}

#[remote]
fn index(items: Vec<i64>, at: usize) -> i64 {
    items[at]
}

fn failure(error: Error) -> concurrent_ml::TaskError {
    match error {
        Error::Task(failure) => failure,
        other => panic!("{other}"),
    }
}

fn errors_and_panics_are_told_at_get() -> Checked {
    assert_eq!(half.remote(4).get()?, 2);
    let error = failure(half.remote(3).get().unwrap_err());
    assert!(error.message.contains("task half") && error.message.contains("3 is odd"), "{error}");
    assert!(error.kind == FailureKind::Exception && error.backtrace.is_none());
    let error = failure(index.remote(vec![1], 5).get().unwrap_err());
    assert!(
        error.message.contains("panicked at") && error.message.contains("index out of bounds"),
        "{error}"
    );
    assert!(error.message.contains("sdk.rs"), "{error}");
    let backtrace = error.backtrace.ok_or("no backtrace")?;
    assert!(backtrace.contains("index_here"), "{backtrace}");
    // The executor goes on.
    assert_eq!(index.remote(vec![7], 0).get()?, 7);
    Ok(())
}

fn a_failed_argument_fails_its_task() -> Checked {
    let error = failure(add.remote(half.remote(5), 1).get().unwrap_err());
    assert!(error.message.contains("5 is odd"), "{error}");
    Ok(())
}

#[remote(num_returns = 2)]
fn divided(a: u32, b: u32) -> Result<(u32, String), String> {
    let whole = a.checked_div(b).ok_or("division by zero")?;
    Ok((whole, format!("rest {}", a % b)))
}

fn several_results_have_refs_of_their_own() -> Checked {
    let (whole, rest) = divided.remote(7, 2);
    assert_eq!((whole.get()?, rest.get()?.as_str()), (3, "rest 1"));
    let (whole, rest) = divided.remote(7, 0);
    assert!(whole.get().is_err() && rest.get().is_err());
    Ok(())
}

#[remote(cpus = 0.5, name = "reader")]
fn variable(name: String) -> Option<String> {
    std::env::var(name).ok()
}

fn options_change_what_is_asked_for() -> Checked {
    let read = variable.options(|options| options.env_var("COLOUR", "blue")).remote("COLOUR");
    assert_eq!(read.get()?.as_deref(), Some("blue"));
    assert_eq!(variable.remote("COLOUR").get()?, None);
    let never = variable.options(|options| options.cpus(-1.0)).remote("COLOUR");
    assert!(never.get().unwrap_err().to_string().contains("cpus"));
    Ok(())
}

#[remote(cpus = 0.1)]
fn sleep(seconds: f64) -> f64 {
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    while Instant::now() < end && !concurrent_ml::is_cancelled() {
        std::thread::sleep(Duration::from_millis(5));
    }
    seconds
}

fn wait_tells_what_is_ready() -> Checked {
    let refs = [sleep.remote(30.0), sleep.remote(0.0)];
    let (ready, rest) = wait(&refs, 1, Some(Duration::from_secs(20)))?;
    assert_eq!((ready, rest), (vec![1], vec![0]));
    assert!(matches!(refs[0].get_timeout(Duration::from_millis(10)), Err(Error::TimedOut)));
    refs[0].cancel()?;
    Ok(())
}

fn refs_are_awaited() -> Checked {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    let sum = futures_executor::block_on(async {
        let slow: Vec<_> = (0..50).map(|i| add.remote(i, sleep_then(i))).collect();
        let mut sum = 0;
        for value in slow {
            sum += value.await?;
        }
        Ok::<_, Error>(sum)
    })?;
    assert_eq!(sum, 2 * (0..50).sum::<i64>());
    assert!(std::fs::read_dir("/proc/self/task")?.count() <= threads + 1);
    let failed = futures_executor::block_on(half.remote(1).into_future());
    assert!(failed.unwrap_err().to_string().contains("1 is odd"));
    Ok(())
}

#[remote(cpus = 0.1)]
fn after_a_while(x: i64) -> i64 {
    std::thread::sleep(Duration::from_millis(1));
    x
}

fn sleep_then(x: i64) -> ObjectRef<i64> {
    after_a_while.remote(x)
}

fn a_task_is_cancelled() -> Checked {
    let long = sleep.remote(60.0);
    // It may be anywhere between here and its executor.
    let _ = long.get_timeout(Duration::from_millis(100));
    let begun = Instant::now();
    long.cancel()?;
    let error = failure(long.get().unwrap_err());
    assert!(error.is_cancelled() && error.message.contains("cancelled by process"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10));
    Ok(())
}

fn a_task_is_ended_at_its_timeout() -> Checked {
    let long = sleep.options(|options| options.timeout(Duration::from_millis(50))).remote(60.0);
    let error = failure(long.get().unwrap_err());
    assert!(error.is_cancelled() && error.message.contains("timeout of 0.05 s"), "{error}");
    Ok(())
}

#[remote]
fn fibonacci(n: u64) -> concurrent_ml::Result<u64> {
    if n < 2 {
        return Ok(n);
    }
    let (one, two) = (fibonacci.remote(n - 1), fibonacci.remote(n - 2));
    Ok(one.get()? + two.get()?)
}

fn tasks_call_tasks() -> Checked {
    assert_eq!(fibonacci.remote(8).get()?, 21);
    Ok(())
}

#[remote]
fn count_up(to: u64) -> impl Iterator<Item = u64> {
    (0..to).inspect(|&i| assert!(i < 100, "too many"))
}

fn items_come_as_they_are_yielded() -> Checked {
    let items = count_up.remote(10).map(|item| item.get()).collect::<Result<Vec<_>, _>>()?;
    assert_eq!(items, (0..10).collect::<Vec<_>>());
    // Endless, but for who reads it.
    let endless = count_up.options(|options| options.max_items(3)).remote(u64::MAX);
    assert_eq!(endless.take(5).last().ok_or("nothing")?.get()?, 4);
    let mut failing = count_up.remote(1000);
    let failed = failing.find_map(|item| item.get().err()).ok_or("no failure")?;
    assert!(failed.to_string().contains("too many"), "{failed}");
    Ok(())
}

fn a_group_sets_resources_aside() -> Checked {
    let group = PlacementGroup::new(&[Bundle::new().cpus(1.0)], GroupStrategy::Pack)?;
    assert!(group.wait(Duration::from_secs(20))?);
    let inside = add.options(|options| options.placement_group(&group, Some(0))).remote(1, 1);
    assert_eq!(inside.get()?, 2);
    group.remove()?;
    let late = add.options(|options| options.placement_group(&group, None)).remote(1, 1);
    assert!(late.get().is_err());
    Ok(())
}

struct Counter {
    count: i64,
}

#[remote]
impl Counter {
    /// From where it counts.
    pub fn new(start: i64) -> Result<Counter, String> {
        if start < 0 { Err("it counts from 0".to_owned()) } else { Ok(Counter { count: start }) }
    }

    /// How many there are with `n` more.
    pub fn add(&mut self, n: i64) -> i64 {
        self.count += n;
        self.count
    }

    pub fn fail(&self) -> Result<(), String> {
        Err(format!("at {}", self.count))
    }

    pub fn up(&self) -> impl Iterator<Item = i64> {
        0..self.count
    }

    pub fn exit(&self) {
        std::process::exit(3);
    }

    pub fn pid(&self) -> u32 {
        std::process::id()
    }
}

#[remote]
fn add_elsewhere(counter: CounterActor, n: i64) -> concurrent_ml::Result<i64> {
    counter.add(n).get()
}

fn an_actor_keeps_its_state() -> Checked {
    let counter = Counter::remote(5);
    let counts: Vec<_> = (0..100).map(|_| counter.add(1)).collect();
    assert_eq!(get(&counts)?, (6..106).collect::<Vec<_>>());
    assert_eq!(add_elsewhere.remote(counter.clone(), 10).get()?, 115);
    let error = failure(counter.fail().get().unwrap_err());
    assert!(error.message.contains("Counter.fail") && error.message.contains("at 115"), "{error}");
    let items = counter.up().take(3).map(|item| item.get()).collect::<Result<Vec<_>, _>>()?;
    assert_eq!(items, [0, 1, 2]);
    let never = Counter::remote(-1);
    let error = never.add(1).get().unwrap_err();
    assert!(error.to_string().contains("it counts from 0"), "{error}");
    Ok(())
}

fn an_actor_is_found_by_its_name_and_killed() -> Checked {
    let named = |options: concurrent_ml::Options| options.name("the counter").detached(true);
    let counter = Counter::options(named).remote(1);
    assert_eq!(Counter::named("the counter")?.add(1).get()?, 2);
    let second = Counter::options(named).remote(1).add(1).get().unwrap_err();
    assert!(second.to_string().contains("is taken"), "{second}");
    counter.kill(false)?;
    let dead = counter.add(1).get().unwrap_err();
    assert_eq!(failure(dead).kind, FailureKind::ActorDied);
    assert!(Counter::named("nobody").unwrap_err().to_string().contains("nobody"));
    Ok(())
}

fn an_actor_is_made_anew() -> Checked {
    let counter = Counter::options(|options| options.max_restarts(1).max_task_retries(-1)).remote(7);
    let before = counter.pid().get()?;
    assert_eq!(counter.add(1).get()?, 8);
    let _ = counter.actor().kill(true);
    let deadline = Instant::now() + Duration::from_secs(20);
    while counter.pid().get()? == before {
        assert!(Instant::now() < deadline);
    }
    assert_eq!(counter.add(1).get()?, 8);
    Ok(())
}

#[remote]
fn sum_of(matrix: SharedArray<f64, Ix2>) -> (f64, bool) {
    (matrix.view().sum(), matrix.is_shared())
}

#[remote]
fn ones(rows: usize, columns: usize) -> SharedArray<f64, Ix2> {
    Array2::from_elem((rows, columns), 1.0).into()
}

fn arrays_are_views_of_shared_memory() -> Checked {
    let large = put(&SharedArray::from(Array::from_shape_fn((1000, 100), |(row, _)| row as f64)))?;
    assert_eq!(sum_of.remote(&large).get()?, (49_950_000.0, true));
    let got = large.get()?;
    assert!(got.is_shared() && got.view()[[999, 99]] == 999.0);
    assert_eq!(sum_of.remote(ones.remote(300, 300)).get()?, (90_000.0, true));
    // A small one, an empty one, one that is not in C's order.
    assert_eq!(sum_of.remote(Array2::from_elem((2, 2), 0.5)).get()?.0, 2.0);
    assert_eq!(sum_of.remote(Array2::<f64>::zeros((0, 5))).get()?.0, 0.0);
    let turned = Array::from_shape_fn((50, 20), |(row, column)| (row * 100 + column) as f64).reversed_axes();
    assert_eq!(put(&SharedArray::from(turned.clone()))?.get()?.to_owned(), turned);
    // Another type of number than the task takes.
    let wrong = put(&SharedArray::from(Array2::<f32>::zeros((2, 2))))?.cast();
    let error = sum_of.remote(wrong).get().unwrap_err().to_string();
    assert!(error.contains("argument matrix") && error.contains("<f4"), "{error}");
    Ok(())
}

fn programs_are_submitted_and_looked_after() -> Checked {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect();
    let spec = JobSpec { entrypoint: words("echo from a job"), name: "echo".into(), ..JobSpec::default() };
    let job = jobs::submit(&spec)?;
    let ended = jobs::wait("echo", Some(Duration::from_secs(20)))?;
    assert_eq!((ended.state, ended.exit_code()), (JobState::Succeeded, Some(0)));
    assert_eq!(jobs::logs(&job.job)?, "from a job\n");
    let endless = jobs::submit(&JobSpec { entrypoint: words("sleep 1000"), ..JobSpec::default() })?;
    assert!(jobs::delete(&endless.job).is_err_and(|error| error.to_string().contains("stop it first")));
    jobs::stop(&endless.job)?;
    assert_eq!(jobs::wait(&endless.job, Some(Duration::from_secs(20)))?.state, JobState::Stopped);
    assert_eq!(jobs::list(10)?.len(), 2);
    jobs::delete("echo")?;
    assert!(jobs::get("echo").is_err_and(|error| error.to_string().contains("no job echo")));
    Ok(())
}
