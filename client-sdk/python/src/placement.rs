//! Where a task may run, and what is set aside for some: from what Python says.

use std::collections::BTreeMap;
use std::sync::Arc;

use client_runtime::{Call, Interrupted};
use cluster_types::task::{
    GroupStrategy, GroupTraits, InGroup, LabelMatch, LabelRule, LabelSelector, Strategy,
};
use cluster_types::{Refs, Resources, TaskKind, TaskTemplate};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::connection::Client;
use crate::errors::client_error;
use crate::executor::within;
use crate::function::{amount, random_job};
use crate::object_ref::ObjectRef;
use crate::value::to_parcel;

/// A rule on a label: its key, `in`, `not in`, `exists` or `absent`, and values.
type Rule = (String, String, Vec<String>);

/// Where a task may run.
#[derive(FromPyObject)]
pub(crate) enum Given<'py> {
    /// `"DEFAULT"` or `"SPREAD"`.
    Named(String),
    /// In a group: its ref, the bundle, whether it captures what the task submits.
    Group(Bound<'py, ObjectRef>, Option<u32>, bool),
    /// A node's id, and whether another will do.
    Node(String, bool),
    /// Rules that must hold, and rules that should.
    Labels(Vec<Rule>, Vec<Rule>),
}

pub(crate) fn strategy(given: Given<'_>) -> PyResult<Strategy> {
    Ok(match given {
        Given::Named(name) if name == "SPREAD" => Strategy::Spread,
        Given::Named(_) => Strategy::Default,
        Given::Group(group, bundle, capture) => {
            Strategy::Group(InGroup { group: group.get().id, bundle, capture })
        }
        Given::Node(id, soft) => {
            let id = id.parse().map_err(|error| PyValueError::new_err(format!("node_id: {error}")))?;
            Strategy::Node { id, soft }
        }
        Given::Labels(hard, soft) => {
            Strategy::Labels(Arc::new(LabelSelector { hard: rules(hard), soft: rules(soft) }))
        }
    })
}

fn rules(given: Vec<Rule>) -> Vec<LabelRule> {
    let rule = |(key, kind, values): Rule| LabelRule {
        key,
        rule: match kind.as_str() {
            "in" => LabelMatch::In(values),
            "not in" => LabelMatch::NotIn(values),
            "exists" => LabelMatch::Exists,
            _ => LabelMatch::DoesNotExist,
        },
    };
    given.into_iter().map(rule).collect()
}

/// A request, from amounts by name: `CPU`, `GPU`, `memory`, and custom ones.
pub(crate) fn request(amounts: BTreeMap<String, f64>) -> PyResult<Resources> {
    let mut request = Resources::default();
    for (name, number) in amounts {
        let amount = amount(&name, number)?;
        match name.as_str() {
            "CPU" => request.cpu = amount,
            "GPU" => request.gpu = amount,
            "memory" => request.memory = amount,
            _ => request.set_custom(&name, amount),
        }
    }
    request.check_request().map_err(|error| PyValueError::new_err(format!("GPU {error}")))?;
    Ok(request)
}

/// Placement groups of one kind, to be made.
#[pyclass(frozen, module = "concurrent_ml._native")]
pub(crate) struct GroupMaker {
    client: client_runtime::Client,
    template: Arc<TaskTemplate>,
}

#[pymethods]
impl GroupMaker {
    #[new]
    fn new(
        client: &Client,
        bundles: Vec<BTreeMap<String, f64>>,
        strategy: &str,
        name: String,
        namespace: String,
        detached: bool,
    ) -> PyResult<Self> {
        let strategy = match strategy {
            "SPREAD" => GroupStrategy::Spread,
            "STRICT_PACK" => GroupStrategy::StrictPack,
            "STRICT_SPREAD" => GroupStrategy::StrictSpread,
            _ => GroupStrategy::Pack,
        };
        let bundles = bundles.into_iter().map(request).collect::<PyResult<Vec<Resources>>>()?;
        let shown =
            if name.is_empty() { "placement group".to_owned() } else { format!("placement group {name}") };
        let template = TaskTemplate {
            name: shown.into(),
            num_returns: 1,
            kind: TaskKind::Group(Arc::new(GroupTraits { name, namespace, detached, strategy, bundles })),
            ..TaskTemplate::default()
        };
        Ok(Self { client: client.inner.clone(), template: Arc::new(template) })
    }

    /// Submits one; `value` is what its ref leads to once it is made.
    fn make(&self, py: Python<'_>, value: &Bound<'_, PyAny>) -> PyResult<ObjectRef> {
        let (payload, _) = to_parcel(py, &self.client, value, "the placement group")?;
        let job = match &self.template.kind {
            // It outlives the job that makes it, so it is one of its own (rule A6).
            TaskKind::Group(traits) if traits.detached => Some(random_job()?),
            _ => None,
        };
        let (deps, borrowed) = (Refs::new(), Refs::new());
        let call = Call { template: self.template.clone(), payload, deps, borrowed, within: within(py), job };
        let results = self
            .client
            .submit(call, &mut || py.check_signals().map_err(|_| Interrupted))
            .map_err(|error| client_error(py, error, None))?;
        match results.as_slice() {
            [one] => Ok(ObjectRef::new(&self.client, *one)),
            _ => Err(PyValueError::new_err("a placement group has one ref")),
        }
    }
}
