//! How much the node remembers: the length of each table. Under a steady load none of them grows.

use crate::node::Node;

impl Node {
    /// Each table with its length, the entries of nested tables together. Bytes where the name says so.
    pub fn sizes(&self) -> Vec<(&'static str, usize)> {
        let clients = || self.clients.values();
        let mut sizes = vec![
            ("clients", self.clients.len()),
            ("segments of clients", clients().map(|client| client.segments.len()).sum()),
            ("views", clients().map(|client| client.views.len()).sum()),
            ("waits", clients().map(|client| client.waits.len()).sum()),
            ("private objects", clients().map(|client| client.private.len()).sum()),
            ("held objects", clients().map(|client| client.held.len()).sum()),
            ("jobs", self.jobs.len()),
            ("executors", self.executors.len()),
            ("actors", self.actors.len()),
            ("pools", self.pools.len()),
            ("queues of what was sent ahead", self.ahead.len()),
            ("attempts", self.attempts.len()),
            ("objects", self.objects.len()),
            (
                "bytes of small values",
                self.objects
                    .values()
                    .filter_map(|known| known.inline.as_ref())
                    .map(|bytes| bytes.len())
                    .sum(),
            ),
            ("states", self.states.len()),
            ("segments", self.memory.segments.len()),
            ("wants", self.memory.wants.len()),
            ("admissions", self.memory.admissions.len()),
            ("arriving objects", self.memory.arriving.len()),
            ("turns to go to disk", self.memory.idle.len()),
            ("held back messages", self.held_back.len()),
            ("fresh results", self.fresh.len()),
        ];
        sizes.extend(self.catalogue.sizes());
        sizes.extend(self.far.sizes());
        sizes.extend(self.durable.sizes());
        sizes.extend(self.remembered.sizes());
        sizes
    }
}
