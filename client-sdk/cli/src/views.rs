//! Answers of the head, for people (text) and for programs (the same fields as JSON).

use std::collections::BTreeMap;

use cluster_types::query::{
    ActorView, DrainView, GroupView, NodeView, ObjectView, StatusView, StoreUsage, TaskView, WhyView,
};
use serde::Serialize;

use crate::table::{Column, render};
use crate::units::{amount, bytes, count, milliseconds};

/// Resources by name: all there is, and what is free.
#[derive(Serialize)]
struct ResourcesReport {
    total: BTreeMap<String, f64>,
    available: BTreeMap<String, f64>,
}

impl ResourcesReport {
    /// `1.5 of 4` in use.
    fn used(&self, name: &str) -> String {
        let total = self.total.get(name).copied().unwrap_or(0.0);
        let used = (total - self.available.get(name).copied().unwrap_or(0.0)).max(0.0);
        let show = |number: f64| if name == "memory" { bytes(number as u64) } else { amount(number) };
        format!("{} of {}", show(used), show(total))
    }
}

#[derive(Serialize)]
pub struct StatusReport {
    address: String,
    term: u32,
    nodes: u32,
    drivers: u32,
    tasks: BTreeMap<String, u64>,
    resources: ResourcesReport,
    objects: u64,
    store: StoreUsage,
    /// Those that can take the leader's place.
    standbys: Vec<String>,
}

impl StatusReport {
    pub fn new(address: String, view: StatusView) -> Self {
        let resources = ResourcesReport { total: view.total, available: view.available };
        let StatusView { term, nodes, drivers, tasks, objects, store, heads, .. } = view;
        // As the heads call each other; this machine may reach the leader by another name.
        let address = if heads.leader.is_empty() { address } else { heads.leader.clone() };
        let standbys = heads.all.into_iter().filter(|head| *head != heads.leader).collect();
        Self { address, term, nodes, drivers, tasks, resources, objects, store, standbys }
    }

    pub fn text(&self) -> String {
        let mut lines = vec![format!("Cluster at {}", self.address)];
        let mut line = |name: &str, text: String| lines.push(format!("  {name:<10}{text}"));
        if !self.standbys.is_empty() {
            line("standbys", self.standbys.join(", "));
        }
        line("nodes", count(self.nodes.into()));
        line("drivers", count(self.drivers.into()));
        let tasks: Vec<_> = self.tasks.iter().filter(|(_, number)| **number > 0).collect();
        let tasks: Vec<_> =
            tasks.iter().map(|(state, number)| format!("{} {state}", count(**number))).collect();
        line("tasks", if tasks.is_empty() { "none".to_owned() } else { tasks.join(", ") });
        for name in self.resources.total.keys() {
            line(name, format!("{} in use", self.resources.used(name)));
        }
        line("objects", count(self.objects));
        let StoreUsage { capacity, reserved, live, spilled } = self.store;
        let [capacity, reserved, live, spilled] = [capacity, reserved, live, spilled].map(bytes);
        line("store", format!("{live} of objects in {reserved}, of {capacity}; {spilled} on disk"));
        lines.join("\n") + "\n"
    }
}

#[derive(Serialize)]
pub struct NodeReport {
    id: String,
    hostname: String,
    address: String,
    /// `alive`, `draining` or `lost`.
    state: &'static str,
    /// What keeps it, while it is draining.
    #[serde(skip_serializing_if = "Option::is_none")]
    draining: Option<DrainView>,
    resources: ResourcesReport,
    labels: BTreeMap<String, String>,
    running: u32,
    prefetched: u32,
    executors: u32,
    store: StoreUsage,
}

impl NodeReport {
    pub fn new(view: NodeView) -> Self {
        Self {
            id: view.node,
            hostname: view.hostname,
            address: view.address,
            state: match (view.alive, &view.draining) {
                (false, _) => "lost",
                (true, Some(_)) => "draining",
                (true, None) => "alive",
            },
            draining: view.draining,
            resources: ResourcesReport { total: view.total, available: view.available },
            labels: view.labels,
            running: view.running,
            prefetched: view.prefetched,
            executors: view.executors,
            store: view.store,
        }
    }

    pub fn table(reports: &[Self]) -> String {
        let columns = [
            Column::Left("NODE", 8),
            Column::Left("HOST", 10),
            Column::Left("STATE", 8),
            Column::Right("CPU"),
            Column::Right("GPU"),
            Column::Right("RUNNING"),
            Column::Right("STORE"),
        ];
        // As many as there are, and as long: they get lines of their own.
        let labels = |node: &Self| {
            let told = node.labels.iter().filter(|(key, _)| *key != "node-id");
            told.map(|(key, value)| format!("          {key}={value}\n")).collect::<String>()
        };
        let rows: Vec<_> = reports
            .iter()
            .map(|node| {
                vec![
                    short(&node.id),
                    node.hostname.clone(),
                    node.state.to_owned(),
                    node.resources.used("CPU"),
                    node.resources.used("GPU"),
                    count(node.running.into()),
                    format!("{} of {}", bytes(node.store.live), bytes(node.store.capacity)),
                ]
            })
            .collect();
        let table = render(&columns, &rows, "No nodes.");
        let below = std::iter::once(String::new()).chain(reports.iter().map(labels));
        table.lines().zip(below).map(|(line, below)| format!("{line}\n{below}")).collect()
    }
}

#[derive(Serialize)]
pub struct TaskReport {
    id: String,
    name: String,
    job: String,
    /// `pending`, `running`, `finished`, `failed`.
    state: &'static str,
    /// Finer: `waiting` for arguments, `queued` for a machine, `prefetched` to one.
    stage: String,
    attempt: u32,
    node: String,
    age_ms: u64,
    ran_ms: f64,
    error: String,
}

impl TaskReport {
    pub fn new(view: TaskView) -> Self {
        Self {
            state: match view.state.as_str() {
                "running" => "running",
                "finished" => "finished",
                "failed" => "failed",
                _ => "pending",
            },
            stage: view.state,
            id: view.task,
            name: view.name,
            job: view.job,
            attempt: view.attempt,
            node: view.node,
            age_ms: view.age_ms,
            ran_ms: view.ran_ms,
            error: view.error,
        }
    }

    pub fn table(reports: &[Self]) -> String {
        let columns = [
            Column::Left("TASK", 21),
            Column::Left("NAME", 16),
            Column::Left("STATE", 10),
            Column::Right("TRY"),
            Column::Left("NODE", 8),
            Column::Right("AGE"),
            Column::Right("RAN"),
        ];
        let rows: Vec<_> = reports
            .iter()
            .map(|task| {
                vec![
                    short_id(&task.id),
                    task.name.clone(),
                    task.stage.clone(),
                    task.attempt.to_string(),
                    short(&task.node),
                    milliseconds(task.age_ms as f64),
                    if task.ran_ms > 0.0 { milliseconds(task.ran_ms) } else { String::new() },
                ]
            })
            .collect();
        render(&columns, &rows, "No tasks.")
    }
}

#[derive(Serialize)]
pub struct ObjectReport {
    id: String,
    size: u64,
    state: String,
    nodes: Vec<String>,
    clients: u32,
    tasks: u32,
    containers: u32,
}

impl ObjectReport {
    pub fn new(view: ObjectView) -> Self {
        let ObjectView { object, size, state, nodes, clients, tasks, containers } = view;
        Self { id: object, size, state, nodes, clients, tasks, containers }
    }

    pub fn table(reports: &[Self]) -> String {
        let columns = [
            Column::Left("OBJECT", 25),
            Column::Right("SIZE"),
            Column::Left("STATE", 8),
            Column::Right("COPIES"),
            Column::Right("CLIENTS"),
            Column::Right("TASKS"),
            Column::Right("OBJECTS"),
        ];
        let rows: Vec<_> = reports
            .iter()
            .map(|object| {
                vec![
                    short_id(&object.id),
                    bytes(object.size),
                    object.state.clone(),
                    object.nodes.len().to_string(),
                    object.clients.to_string(),
                    object.tasks.to_string(),
                    object.containers.to_string(),
                ]
            })
            .collect();
        let mut text = render(&columns, &rows, "No objects.");
        if !reports.is_empty() {
            text += "(the last three columns: who holds it)\n";
        }
        text
    }
}

#[derive(Serialize)]
pub struct ActorReport {
    id: String,
    class: String,
    name: String,
    namespace: String,
    state: String,
    job: String,
    node: String,
    restarts: u32,
    queued_calls: u64,
    running_calls: u64,
    error: String,
}

impl ActorReport {
    pub fn new(view: ActorView) -> Self {
        let ActorView { actor, class, name, namespace, state, job, node, restarts, queued, running, error } =
            view;
        Self {
            id: actor,
            class,
            name,
            namespace,
            state,
            job,
            node,
            restarts,
            queued_calls: queued,
            running_calls: running,
            error,
        }
    }

    pub fn table(reports: &[Self]) -> String {
        let columns = [
            Column::Left("ACTOR", 25),
            Column::Left("CLASS", 20),
            Column::Left("NAME", 16),
            Column::Left("STATE", 10),
            Column::Left("NODE", 16),
            Column::Right("RESTARTS"),
            Column::Right("QUEUED"),
            Column::Right("RUNNING"),
        ];
        let rows: Vec<_> = reports
            .iter()
            .map(|actor| {
                vec![
                    short_id(&actor.id),
                    actor.class.clone(),
                    actor.name.clone(),
                    actor.state.clone(),
                    actor.node.clone(),
                    actor.restarts.to_string(),
                    actor.queued_calls.to_string(),
                    actor.running_calls.to_string(),
                ]
            })
            .collect();
        let mut text = render(&columns, &rows, "No actors.");
        for actor in reports.iter().filter(|actor| !actor.error.is_empty()) {
            text += &format!("{}\n", actor.error);
        }
        text
    }
}

#[derive(Serialize)]
pub struct BundleReport {
    resources: BTreeMap<String, f64>,
    available: BTreeMap<String, f64>,
    node: String,
    hostname: String,
    running: u32,
}

#[derive(Serialize)]
pub struct GroupReport {
    id: String,
    name: String,
    namespace: String,
    strategy: String,
    state: String,
    job: String,
    detached: bool,
    bundles: Vec<BundleReport>,
    reason: String,
}

impl GroupReport {
    pub fn new(view: GroupView) -> Self {
        let GroupView { group, name, namespace, strategy, state, job, detached, bundles, reason } = view;
        let bundles = bundles.into_iter().map(|bundle| BundleReport {
            resources: bundle.total,
            available: bundle.available,
            node: bundle.node,
            hostname: bundle.hostname,
            running: bundle.running,
        });
        let bundles = bundles.collect();
        Self { id: group, name, namespace, strategy, state, job, detached, bundles, reason }
    }

    pub fn table(reports: &[Self]) -> String {
        let columns = [
            Column::Left("GROUP", 25),
            Column::Left("NAME", 16),
            Column::Left("STRATEGY", 13),
            Column::Left("STATE", 12),
            Column::Right("RUNNING"),
            Column::Left("BUNDLES", 40),
        ];
        let bundle = |bundle: &BundleReport| {
            let amounts: Vec<_> =
                bundle.resources.iter().map(|(name, amount)| format!("{amount} {name}")).collect();
            let host = if bundle.hostname.is_empty() { "nowhere" } else { &bundle.hostname };
            format!("{} on {host}", amounts.join(" "))
        };
        let rows: Vec<_> = reports
            .iter()
            .map(|group| {
                vec![
                    short_id(&group.id),
                    group.name.clone(),
                    group.strategy.clone(),
                    group.state.clone(),
                    group.bundles.iter().map(|bundle| bundle.running).sum::<u32>().to_string(),
                    group.bundles.iter().map(bundle).collect::<Vec<_>>().join("; "),
                ]
            })
            .collect();
        let mut text = render(&columns, &rows, "No placement groups.");
        for group in reports.iter().filter(|group| !group.reason.is_empty()) {
            text += &format!("{}: {}\n", short_id(&group.id), group.reason);
        }
        text
    }
}

#[derive(Serialize)]
pub struct WhyReport {
    task: TaskReport,
    reason: String,
    nodes: Vec<String>,
}

impl WhyReport {
    pub fn new(view: WhyView) -> Self {
        Self { task: TaskReport::new(view.task), reason: view.reason, nodes: view.nodes }
    }

    pub fn text(&self) -> String {
        let TaskReport { id, name, stage, attempt, .. } = &self.task;
        let tries = if *attempt > 1 { format!(", try {attempt}") } else { String::new() };
        let age = milliseconds(self.task.age_ms as f64);
        let mut text = format!("{name} ({id})\nis {stage}{tries}, submitted {age} ago.\n{}\n", self.reason);
        for node in &self.nodes {
            text += &format!("  {node}\n");
        }
        text
    }
}

/// The first half of a node's id: enough for people.
fn short(node: &str) -> String {
    node.chars().take(8).collect()
}

/// The last eight digits of the client and all of the rest: an end of the id, so that `cluster why` takes it.
fn short_id(id: &str) -> String {
    match id.split_once('.') {
        Some((client, rest)) if client.is_ascii() && client.len() > 8 => {
            format!("{}.{rest}", &client[client.len() - 8..])
        }
        _ => id.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_types::Heads;

    const MIB: u64 = 1 << 20;

    fn store() -> StoreUsage {
        StoreUsage { capacity: 2048 * MIB, reserved: 128 * MIB, live: 40 * MIB, spilled: 0 }
    }

    fn map(pairs: &[(&str, f64)]) -> BTreeMap<String, f64> {
        pairs.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect()
    }

    /// For people: no wider than 80 columns.
    fn checked(text: String) -> String {
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{} columns: {line}", line.chars().count());
        }
        text
    }

    fn task(state: &str) -> TaskView {
        TaskView {
            task: "5b1fd2c09f3c21aa.1234567".into(),
            name: "training.cross_validate_forest".into(),
            job: "0000004f".into(),
            state: state.into(),
            attempt: 2,
            node: "00ff00ff00ff00ff".into(),
            age_ms: 93_000,
            ran_ms: 1234.0,
            error: String::new(),
        }
    }

    #[test]
    fn status() {
        let view = StatusView {
            term: 3,
            nodes: 2,
            drivers: 1,
            tasks: [("running".to_owned(), 3), ("queued".to_owned(), 12_000), ("failed".to_owned(), 0)]
                .into(),
            total: map(&[("CPU", 4.0), ("memory", 8e9), ("tpu", 2.0)]),
            available: map(&[("CPU", 2.5), ("memory", 8e9), ("tpu", 1.0)]),
            objects: 12,
            store: store(),
            heads: Heads::default(),
        };
        let shared = StatusView {
            heads: Heads { leader: "b:1".into(), all: vec!["a:1".into(), "b:1".into(), "c:1".into()] },
            ..view.clone()
        };
        let text = StatusReport::new("127.0.0.1:8264".into(), shared).text();
        assert!(text.starts_with("Cluster at b:1\n  standbys  a:1, c:1\n"), "{text}");
        let report = StatusReport::new("127.0.0.1:8264".into(), view);
        insta::assert_snapshot!(checked(report.text()), @r"
        Cluster at 127.0.0.1:8264
          nodes     2
          drivers   1
          tasks     12,000 queued, 3 running
          CPU       1.5 of 4 in use
          memory    0 B of 7.5 GiB in use
          tpu       1 of 2 in use
          objects   12
          store     40.0 MiB of objects in 128 MiB, of 2.0 GiB; 0 B on disk
        ");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["resources"]["total"]["CPU"], 4.0);
        assert_eq!(json["tasks"]["queued"], 12_000);
    }

    #[test]
    fn nodes() {
        let node = |alive, hostname: &str| NodeView {
            node: "00ff00ff00ff00ff".into(),
            hostname: hostname.into(),
            address: "10.0.0.1:8266".into(),
            alive,
            total: map(&[("CPU", 128.0), ("GPU", 8.0)]),
            available: map(&[("CPU", 0.5), ("GPU", 4.0)]),
            labels: [("zone".to_owned(), "west".to_owned())].into(),
            running: 127,
            prefetched: 20,
            executors: 130,
            store: store(),
            draining: None,
        };
        let reports = [node(true, "a"), node(false, "a-machine-with-a-very-long-name")].map(NodeReport::new);
        insta::assert_snapshot!(checked(NodeReport::table(&reports)), @r"
        NODE      HOST        STATE           CPU     GPU  RUNNING                STORE
        00ff00ff  a           alive  127.5 of 128  4 of 8      127  40.0 MiB of 2.0 GiB
                  zone=west
        00ff00ff  a-machine…  lost   127.5 of 128  4 of 8      127  40.0 MiB of 2.0 GiB
                  zone=west
        ");
        assert_eq!(serde_json::to_value(&reports[1]).unwrap()["state"], "lost");
        assert_eq!(NodeReport::table(&[]), "No nodes.\n");
    }

    #[test]
    fn tasks() {
        let reports = ["prefetched", "failed", "running"].map(|state| TaskReport::new(task(state)));
        insta::assert_snapshot!(checked(TaskReport::table(&reports)), @r"
        TASK              NAME              STATE       TRY  NODE        AGE    RAN
        9f3c21aa.1234567  training.cross_…  prefetched    2  00ff00ff  1 min  1.2 s
        9f3c21aa.1234567  training.cross_…  failed        2  00ff00ff  1 min  1.2 s
        9f3c21aa.1234567  training.cross_…  running       2  00ff00ff  1 min  1.2 s
        ");
        let states = reports.map(|report| report.state);
        assert_eq!(states, ["pending", "failed", "running"]);
    }

    #[test]
    fn objects() {
        let object = |object: &str, size| ObjectView {
            object: object.into(),
            size,
            state: "stored".into(),
            nodes: vec!["a".into(), "b".into()],
            clients: 1,
            tasks: 3,
            containers: 0,
        };
        let reports = [object("5b1fd2c09f3c21aa.17.put", 4 << 30), object("5b1fd2c09f3c21aa.1234567.3", 12)];
        insta::assert_snapshot!(checked(ObjectReport::table(&reports.map(ObjectReport::new))), @r"
        OBJECT                 SIZE  STATE   COPIES  CLIENTS  TASKS  OBJECTS
        9f3c21aa.17.put     4.0 GiB  stored       2        1      3        0
        9f3c21aa.1234567.3     12 B  stored       2        1      3        0
        (the last three columns: who holds it)
        ");
    }

    #[test]
    fn why() {
        let view = WhyView {
            task: task("queued"),
            reason: "No node has what it asks for: 1 unicorn.".into(),
            nodes: vec!["a (00ff00ff): has no unicorn".into()],
        };
        insta::assert_snapshot!(checked(WhyReport::new(view).text()), @r"
        training.cross_validate_forest (5b1fd2c09f3c21aa.1234567)
        is queued, try 2, submitted 1 min ago.
        No node has what it asks for: 1 unicorn.
          a (00ff00ff): has no unicorn
        ");
    }
}
