//! Where tasks may run, and what placement groups set aside.

use std::sync::Arc;

use cluster_types::task::{
    Backoff, GroupStrategy, GroupTraits, InGroup, LabelMatch, LabelRule, LabelSelector, Strategy,
};
use cluster_types::{NodeId, Resources};

use super::common::limited;
use crate::error::Required;
use crate::limits::MAX_ENTRIES;
use crate::{WireError, v1};

pub(super) fn strategy_to_wire(strategy: &Strategy) -> v1::Strategy {
    use v1::strategy::Kind;
    let kind = match strategy {
        Strategy::Default => Kind::Default(v1::Nothing {}),
        Strategy::Spread => Kind::Spread(v1::Nothing {}),
        Strategy::Node { id, soft } => Kind::Node(v1::OnNode { node: id.0, soft: *soft }),
        Strategy::Labels(selector) => Kind::Labels(v1::LabelSelector {
            hard: selector.hard.iter().map(rule_to_wire).collect(),
            soft: selector.soft.iter().map(rule_to_wire).collect(),
        }),
        Strategy::Group(place) => Kind::Group(v1::InGroup {
            group: Some(place.group.into()),
            bundle: place.bundle,
            capture: place.capture,
        }),
    };
    v1::Strategy { kind: Some(kind) }
}

pub(super) fn strategy(wire: Option<v1::Strategy>) -> Result<Strategy, WireError> {
    use v1::strategy::Kind;
    let kind = wire.required("TaskTemplate.strategy")?.kind.required("Strategy.kind")?;
    Ok(match kind {
        Kind::Default(_) => Strategy::Default,
        Kind::Spread(_) => Strategy::Spread,
        Kind::Node(on) => Strategy::Node { id: NodeId(on.node), soft: on.soft },
        Kind::Labels(selector) => Strategy::Labels(Arc::new(LabelSelector {
            hard: rules("LabelSelector.hard", selector.hard)?,
            soft: rules("LabelSelector.soft", selector.soft)?,
        })),
        Kind::Group(place) => Strategy::Group(InGroup {
            group: place.group.required("InGroup.group")?.into(),
            bundle: place.bundle,
            capture: place.capture,
        }),
    })
}

fn rule_to_wire(rule: &LabelRule) -> v1::LabelRule {
    let (kind, values) = match &rule.rule {
        LabelMatch::In(values) => (v1::LabelMatch::In, values.clone()),
        LabelMatch::NotIn(values) => (v1::LabelMatch::NotIn, values.clone()),
        LabelMatch::Exists => (v1::LabelMatch::Exists, Vec::new()),
        LabelMatch::DoesNotExist => (v1::LabelMatch::DoesNotExist, Vec::new()),
    };
    v1::LabelRule { key: rule.key.clone(), r#match: kind.into(), values }
}

fn rules(field: &'static str, wire: Vec<v1::LabelRule>) -> Result<Vec<LabelRule>, WireError> {
    limited(field, wire.len(), MAX_ENTRIES)?;
    wire.into_iter()
        .map(|wire| {
            limited("LabelRule.values", wire.values.len(), MAX_ENTRIES)?;
            let rule = match wire.r#match() {
                v1::LabelMatch::In => LabelMatch::In(wire.values),
                v1::LabelMatch::NotIn => LabelMatch::NotIn(wire.values),
                v1::LabelMatch::Exists => LabelMatch::Exists,
                v1::LabelMatch::DoesNotExist => LabelMatch::DoesNotExist,
                v1::LabelMatch::Unspecified => {
                    return Err(WireError::invalid("LabelRule.match", "names no condition".to_owned()));
                }
            };
            Ok(LabelRule { key: wire.key, rule })
        })
        .collect()
}

pub(super) fn group_to_wire(traits: &GroupTraits) -> v1::GroupTraits {
    let strategy = match traits.strategy {
        GroupStrategy::Pack => v1::GroupStrategy::Pack,
        GroupStrategy::Spread => v1::GroupStrategy::Spread,
        GroupStrategy::StrictPack => v1::GroupStrategy::StrictPack,
        GroupStrategy::StrictSpread => v1::GroupStrategy::StrictSpread,
    };
    v1::GroupTraits {
        name: traits.name.clone(),
        namespace: traits.namespace.clone(),
        detached: traits.detached,
        strategy: strategy.into(),
        bundles: traits.bundles.iter().map(v1::Resources::from).collect(),
    }
}

pub(super) fn group(wire: v1::GroupTraits) -> Result<GroupTraits, WireError> {
    let strategy = match v1::GroupStrategy::try_from(wire.strategy) {
        Ok(v1::GroupStrategy::Pack) => GroupStrategy::Pack,
        Ok(v1::GroupStrategy::Spread) => GroupStrategy::Spread,
        Ok(v1::GroupStrategy::StrictPack) => GroupStrategy::StrictPack,
        Ok(v1::GroupStrategy::StrictSpread) => GroupStrategy::StrictSpread,
        Err(_) => {
            let problem = format!("is {}, which names none", wire.strategy);
            return Err(WireError::invalid("GroupTraits.strategy", problem));
        }
    };
    Ok(GroupTraits {
        name: wire.name,
        namespace: wire.namespace,
        detached: wire.detached,
        strategy,
        bundles: several("GroupTraits.bundles", wire.bundles)?,
    })
}

/// Requests, each of which could be one task's.
pub(super) fn several(field: &'static str, wire: Vec<v1::Resources>) -> Result<Vec<Resources>, WireError> {
    limited(field, wire.len(), MAX_ENTRIES)?;
    wire.into_iter()
        .map(|wire| {
            let resources: Resources = wire.try_into()?;
            resources.check_request().map_err(|error| WireError::invalid(field, error.to_string()))?;
            Ok(resources)
        })
        .collect()
}

pub(super) fn backoff_to_wire(backoff: Backoff) -> Option<v1::Backoff> {
    let Backoff { first_ms, growth, most_ms } = backoff;
    (backoff != Backoff::default()).then_some(v1::Backoff { first_ms, growth, most_ms })
}

pub(super) fn backoff(wire: Option<v1::Backoff>) -> Backoff {
    wire.map_or_else(Backoff::default, |wire| Backoff {
        first_ms: wire.first_ms,
        growth: wire.growth,
        most_ms: wire.most_ms,
    })
}
