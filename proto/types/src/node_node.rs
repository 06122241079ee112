//! What two worker daemons say to each other about calls to actors: past the head (see docs/decisions/016).
//!
//! One conversation per pair of nodes and direction: the callers' node opens it, the callee's answers. It survives its
//! connection: what was not acknowledged is sent again on the next. It ends when one of the two has not been heard of for
//! too long, or the head says that it is lost; whoever then has calls unanswered must take it that they may have run.

use crate::client_node::FinishedOutcome;
use crate::{Attempt, ClientId, NodeId, ObjectId, TaskId, TaskSpec};

/// Opens a connection of a conversation, or the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelHello {
    /// [`crate::PROTOCOL_VERSION`].
    pub protocol: u32,
    /// Who connects.
    pub from: NodeId,
    /// To whom: another process may have the port by now.
    pub to: NodeId,
    /// Random, chosen by the callers' node for each conversation.
    pub conversation: u64,
    /// The last frame that it received.
    pub received: u64,
    /// Nothing was said in it yet, and it may be unknown to the other.
    pub first: bool,
}

/// What the callee's daemon answers to a [`TunnelHello`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TunnelWelcome {
    /// The conversation is here.
    Here {
        /// The last frame that was received.
        received: u64,
    },
    /// It is not, or not any more: one sentence.
    Refused(String),
}

impl NodeToNode {
    /// Whether the callers' node says it; else the callee's does.
    pub fn is_of_caller(&self) -> bool {
        match self {
            NodeToNode::Open { .. }
            | NodeToNode::Call(_)
            | NodeToNode::Cancel { .. }
            | NodeToNode::Close { .. } => true,
            NodeToNode::Opened { .. } | NodeToNode::Answer { .. } | NodeToNode::Ended { .. } => false,
        }
    }
}

/// What a daemon says to another.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeToNode {
    /// A client of mine wants to call this actor. Answered by `Opened`, or by `Ended`.
    Open {
        /// The client.
        caller: ClientId,
        /// The actor.
        actor: ObjectId,
        /// As the head told it: one made later is another (rule A5).
        attempt: Attempt,
    },
    /// It may.
    Opened {
        /// The client.
        caller: ClientId,
        /// The actor.
        actor: ObjectId,
    },
    /// A call of one that may.
    Call(TaskSpec),
    /// Its answer.
    Answer {
        /// The call.
        task: TaskId,
        /// As the caller is told.
        outcome: FinishedOutcome,
        /// The head knows the value, with the caller as its holder.
        known: bool,
    },
    /// The caller wants its call stopped.
    Cancel {
        /// The actor.
        actor: ObjectId,
        /// The call.
        task: TaskId,
        /// For the error.
        reason: String,
        /// What it submitted, too.
        recursive: bool,
    },
    /// The client will call the actor no more. `forget`: what has not begun is not to begin. Answered by `Ended`.
    Close {
        /// The client.
        caller: ClientId,
        /// The actor.
        actor: ObjectId,
        /// What has not begun is not to begin; else it is run, though nobody waits for it.
        forget: bool,
    },
    /// No more answers will come; all that were given were told before, and the head knows what became of the actor.
    Ended {
        /// The client.
        caller: ClientId,
        /// The actor.
        actor: ObjectId,
        /// For errors.
        why: String,
        /// Answers may be lost: of those that were not answered, all may have run.
        lost: bool,
    },
}
