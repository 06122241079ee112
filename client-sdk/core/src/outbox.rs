//! What is to be sent, in the order in which it arose (rule T3).

use cluster_types::client_node::PutValue;
use cluster_types::{ClientToNode, ObjectId, Payload, TaskSpec};

/// Messages not sent yet. Lists of ids that follow each other are joined.
#[derive(Debug, Default)]
pub struct Outbox {
    messages: Vec<ClientToNode>,
    bytes: usize,
    said: u64,
}

/// What a message takes besides its variable parts, about.
const MESSAGE: usize = 48;
const ID: usize = 16;

impl Outbox {
    /// Appends a message.
    pub fn push(&mut self, message: ClientToNode) {
        self.said += 1;
        self.bytes += size(&message);
        self.messages.push(message);
    }

    /// Appends a message that nothing else depends on.
    pub fn push_aside(&mut self, message: ClientToNode) {
        self.bytes += size(&message);
        self.messages.push(message);
    }

    /// Grows with everything appended that something else may depend on: anything but reports and releases.
    pub fn said(&self) -> u64 {
        self.said
    }

    /// Messages waiting.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// What they take, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn take(&mut self) -> Vec<ClientToNode> {
        self.bytes = 0;
        std::mem::take(&mut self.messages)
    }

    pub(crate) fn hold(&mut self, object: ObjectId) {
        self.bytes += ID;
        self.said += 1;
        match self.messages.last_mut() {
            Some(ClientToNode::Hold(list)) => list.push(object),
            _ => self.messages.push(ClientToNode::Hold(vec![object])),
        }
    }

    pub(crate) fn drop(&mut self, object: ObjectId) {
        self.bytes += ID;
        self.said += 1;
        match self.messages.last_mut() {
            Some(ClientToNode::Drop(list)) => list.push(object),
            _ => self.messages.push(ClientToNode::Drop(vec![object])),
        }
    }

    pub(crate) fn escape(&mut self, object: ObjectId) {
        self.bytes += ID;
        self.said += 1;
        match self.messages.last_mut() {
            Some(ClientToNode::Escape(list)) => list.push(object),
            _ => self.messages.push(ClientToNode::Escape(vec![object])),
        }
    }

    pub(crate) fn get(&mut self, object: ObjectId) {
        self.bytes += ID;
        self.said += 1;
        match self.messages.last_mut() {
            Some(ClientToNode::Get(list)) => list.push(object),
            _ => self.messages.push(ClientToNode::Get(vec![object])),
        }
    }

    pub(crate) fn release(&mut self, object: ObjectId, times: u32) {
        for _ in 0..times {
            self.bytes += ID;
            match self.messages.last_mut() {
                Some(ClientToNode::Release(list)) => list.push(object),
                _ => self.messages.push(ClientToNode::Release(vec![object])),
            }
        }
    }

    /// Takes back the announcement of a put if it is the last message; false if it is not.
    pub(crate) fn retract_put(&mut self, object: ObjectId) -> bool {
        match self.messages.last() {
            Some(ClientToNode::Put { object: last, .. }) if *last == object => {
                if let Some(message) = self.messages.pop() {
                    self.bytes = self.bytes.saturating_sub(size(&message));
                }
                true
            }
            _ => false,
        }
    }
}

fn size(message: &ClientToNode) -> usize {
    let put = |value: &PutValue| match value {
        PutValue::Inline(bytes) => bytes.len(),
        PutValue::Stored(_) => 24,
    };
    MESSAGE
        + match message {
            ClientToNode::Submit(spec) | ClientToNode::CallFar(spec) => spec_size(spec),
            ClientToNode::Put { value, contains, .. } => put(value) + ID * contains.len(),
            ClientToNode::Escape(ids)
            | ClientToNode::Hold(ids)
            | ClientToNode::Drop(ids)
            | ClientToNode::Get(ids)
            | ClientToNode::Release(ids) => ID * ids.len(),
            ClientToNode::Blocked { on, .. } => ID * on.len(),
            ClientToNode::Completed(completion) => match &completion.result {
                Ok(results) => {
                    results.iter().map(|result| 8 + put(&result.value) + ID * result.contains.len()).sum()
                }
                Err(failed) => failed.failure.message.len() + failed.failure.payload.len(),
            },
            ClientToNode::Yielded(yielded) => put(&yielded.item.value) + ID * yielded.item.contains.len(),
            ClientToNode::Log(line) => line.text.len(),
            ClientToNode::Write { bytes, .. } => bytes.len(),
            _ => 0,
        }
}

fn spec_size(spec: &TaskSpec) -> usize {
    let payload = match &spec.payload {
        Payload::Inline(bytes) => bytes.len(),
        Payload::Stored(_) => ID,
    };
    // The template travels with each task.
    128 + payload + ID * (spec.deps.len() + spec.borrowed.len())
}
