//! Worker daemons among themselves.

use cluster_types::node_node::{NodeToNode, TunnelHello, TunnelWelcome};
use cluster_types::{Attempt, ClientId, NodeId, ObjectId};

use super::Reading;
use super::common::task_id;
use super::task::{finished, finished_to_wire, spec, spec_to_wire};
use super::template::TemplateWriter;
use crate::error::{Required, check_protocol};
use crate::{WireError, v1};

pub(super) fn hello_to_wire(hello: &TunnelHello) -> v1::TunnelHello {
    v1::TunnelHello {
        protocol: hello.protocol,
        from: hello.from.0,
        to: hello.to.0,
        conversation: hello.conversation,
        received: hello.received,
        first: hello.first,
    }
}

pub(super) fn hello_from_wire(wire: &v1::TunnelHello) -> Result<TunnelHello, WireError> {
    check_protocol("worker daemon", "other worker daemon", wire.protocol)?;
    Ok(TunnelHello {
        protocol: wire.protocol,
        from: NodeId(wire.from),
        to: NodeId(wire.to),
        conversation: wire.conversation,
        received: wire.received,
        first: wire.first,
    })
}

pub(super) fn welcome_to_wire(welcome: &TunnelWelcome) -> v1::TunnelWelcome {
    use v1::tunnel_welcome::Kind;
    let kind = match welcome {
        TunnelWelcome::Here { received } => Kind::Here(*received),
        TunnelWelcome::Refused(reason) => Kind::Refused(reason.clone()),
    };
    v1::TunnelWelcome { kind: Some(kind) }
}

pub(super) fn welcome_from_wire(wire: v1::TunnelWelcome) -> Result<TunnelWelcome, WireError> {
    use v1::tunnel_welcome::Kind;
    Ok(match wire.kind.required("TunnelWelcome.kind")? {
        Kind::Here(received) => TunnelWelcome::Here { received },
        Kind::Refused(reason) => TunnelWelcome::Refused(reason),
    })
}

pub(super) fn to_peer(message: &NodeToNode, templates: &mut TemplateWriter) -> v1::NodeToNode {
    use v1::node_to_node::Kind;
    let kind = match message {
        NodeToNode::Open { caller, actor, attempt } => Kind::Open(v1::OpenActor {
            caller: caller.0,
            actor: Some((*actor).into()),
            term: attempt.term,
            n: attempt.n,
        }),
        NodeToNode::Opened { caller, actor } => {
            Kind::Opened(v1::CallerActor { caller: caller.0, actor: Some((*actor).into()) })
        }
        NodeToNode::Call(spec) => Kind::Call(spec_to_wire(spec, templates)),
        NodeToNode::Answer { task, outcome, known } => {
            let finished = v1::Finished {
                client: task.client.0,
                seq: task.seq,
                outcome: Some(finished_to_wire(outcome)),
            };
            Kind::Answer(v1::FarAnswer { finished: Some(finished), known: *known })
        }
        NodeToNode::Cancel { actor, task, reason, recursive } => Kind::Cancel(v1::CancelCall {
            actor: Some((*actor).into()),
            client: task.client.0,
            seq: task.seq,
            reason: reason.clone(),
            recursive: *recursive,
        }),
        NodeToNode::Close { caller, actor, forget } => {
            Kind::Close(v1::CloseActor { caller: caller.0, actor: Some((*actor).into()), forget: *forget })
        }
        NodeToNode::Ended { caller, actor, why, lost } => Kind::Ended(v1::CallerEnded {
            caller: caller.0,
            actor: Some((*actor).into()),
            why: why.clone(),
            lost: *lost,
        }),
    };
    v1::NodeToNode { kind: Some(kind) }
}

pub(super) fn from_peer(wire: v1::NodeToNode, reading: &mut Reading<'_>) -> Result<NodeToNode, WireError> {
    use v1::node_to_node::Kind;
    let actor = |wire: Option<v1::ObjectId>| wire.required("NodeToNode.actor").map(ObjectId::from);
    Ok(match wire.kind.required("NodeToNode.kind")? {
        Kind::Open(wire) => NodeToNode::Open {
            caller: ClientId(wire.caller),
            actor: actor(wire.actor)?,
            attempt: Attempt { term: wire.term, n: wire.n },
        },
        Kind::Opened(wire) => NodeToNode::Opened { caller: ClientId(wire.caller), actor: actor(wire.actor)? },
        Kind::Call(wire) => NodeToNode::Call(spec(reading, wire)?),
        Kind::Answer(v1::FarAnswer { finished: wire, known }) => {
            let wire = wire.required("FarAnswer.finished")?;
            NodeToNode::Answer {
                task: task_id("Finished.seq", wire.client, wire.seq)?,
                outcome: finished(reading, wire.outcome.required("Finished.outcome")?)?,
                known,
            }
        }
        Kind::Cancel(wire) => NodeToNode::Cancel {
            actor: actor(wire.actor)?,
            task: task_id("CancelCall.seq", wire.client, wire.seq)?,
            reason: wire.reason,
            recursive: wire.recursive,
        },
        Kind::Close(wire) => NodeToNode::Close {
            caller: ClientId(wire.caller),
            actor: actor(wire.actor)?,
            forget: wire.forget,
        },
        Kind::Ended(wire) => NodeToNode::Ended {
            caller: ClientId(wire.caller),
            actor: actor(wire.actor)?,
            why: wire.why,
            lost: wire.lost,
        },
    })
}
