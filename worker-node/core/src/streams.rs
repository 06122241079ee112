//! Tasks that yield items while they run: an item is kept as a result is, and the head told of it at once.

use cluster_types::client_node::PutValue;
use cluster_types::client_node::YieldedItem;
use cluster_types::{
    Attempt, ClientId, INLINE_MAX, NodeToClient, NodeToHead, ResultValue, TaskId, TaskResult,
};

use crate::attempts::Stage;
use crate::event::Effect;
use crate::node::Node;

/// How many of its items count as taken, and whether nobody will take any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) items: u32,
    pub(crate) closed: bool,
}

impl Node {
    /// An executor's task yielded an item.
    pub(crate) fn yielded(&mut self, client: ClientId, yielded: YieldedItem, effects: &mut Vec<Effect>) {
        let Some(executor) = self.executor_of(client) else { return };
        let YieldedItem { tag, index, item } = yielded;
        if let Err(lie) = self.check_value(client, &item.value) {
            return self.part_with(client, &format!("it yielded a value, but {lie}"), effects);
        }
        self.proved_claimed(executor, tag, effects);
        let streams = |task: &TaskId| {
            self.attempts.get(task).is_some_and(|assigned| assigned.spec.template.stream.is_some())
        };
        let running = self.running(client, tag).filter(|(_, task, _)| streams(task));
        let Some((_, task, attempt)) = running else {
            return self.give_back_results(client, vec![item], effects);
        };
        let value = known_value(&item.value);
        self.keep_result(client, task.item(index), item.value, &item.contains, effects);
        if let Some(assigned) = self.attempts.get_mut(&task) {
            assigned.yielded = assigned.yielded.max(index.saturating_add(1));
        }
        let item = TaskResult { value, contains: item.contains };
        self.tell_head(NodeToHead::Yielded { task, attempt, index, item }, effects);
    }

    /// So many items of an attempt count as taken. Its executor is told, now or as soon as it is sent the task.
    pub(crate) fn taken(&mut self, task: TaskId, attempt: Attempt, taken: Taken, effects: &mut Vec<Effect>) {
        let Some(assigned) = self.attempts.get_mut(&task).filter(|assigned| assigned.attempt == attempt)
        else {
            return;
        };
        assigned.taken.items = assigned.taken.items.max(taken.items);
        assigned.taken.closed |= taken.closed;
        if let Stage::Sent { executor, tag } = assigned.stage
            && let Some(client) = self.executors.get(&executor).and_then(|known| known.client)
        {
            self.pass_taken(task, client, tag, effects);
        }
    }

    /// Behind the task itself, or when there is news.
    pub(crate) fn pass_taken(&self, task: TaskId, client: ClientId, tag: u64, effects: &mut Vec<Effect>) {
        let Some(assigned) = self.attempts.get(&task) else { return };
        let Taken { items, closed } = assigned.taken;
        if assigned.taken != Taken::default() {
            self.tell_client(client, NodeToClient::Taken { tag, items, closed }, effects);
        }
    }
}

/// A value as the head is told of it.
pub(crate) fn known_value(value: &PutValue) -> ResultValue {
    match value {
        PutValue::Inline(bytes) if bytes.len() <= INLINE_MAX => ResultValue::Inline(bytes.clone()),
        PutValue::Inline(bytes) => ResultValue::Stored { size: bytes.len() as u64 },
        PutValue::Stored(location) => ResultValue::Stored { size: location.len },
    }
}
