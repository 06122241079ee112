//! How much the head remembers: the length of each table. Under a steady load none of them grows.

use crate::head::Head;

impl Head {
    /// Each table with its length, the entries of nested tables together. Bytes where the name says so.
    pub fn sizes(&self) -> Vec<(&'static str, usize)> {
        let mut sizes = vec![
            ("nodes", self.nodes.iter().count()),
            ("incarnations of nodes", self.nodes.incarnations.len()),
            ("functions on nodes", self.nodes.iter().map(|(_, node)| node.functions.len()).sum()),
            ("attempts on nodes", self.nodes.iter().map(|(_, node)| node.attempts.len()).sum()),
            ("clients", self.clients.len()),
            ("jobs", self.jobs.len()),
            ("actors", self.actors.iter().count()),
            ("groups", self.groups.iter().count()),
            ("shapes", self.shapes.len()),
            ("delayed tasks", self.delayed.len()),
            ("paused actors", self.paused_actors.len()),
            ("children of tasks", self.children.values().map(Vec::len).sum()),
            ("parents of tasks", self.children.len()),
            ("streams", self.streams.len()),
            ("failing tasks", self.failing.len()),
            ("objects to free", self.to_free.values().map(Vec::len).sum()),
            ("durable copies to delete", self.to_delete.values().map(Vec::len).sum()),
            ("notices", self.notices.len()),
            ("unwanted tasks", self.unwanted.len()),
            ("kept states of actors", self.kept_states.len()),
            ("nodes kept for a group", usize::from(self.kept_nodes.is_some())),
            ("questions about logs", self.log_questions.len()),
            ("marks that are not settled", self.nodes.iter().map(|(_, node)| node.heard.waiting()).sum()),
        ];
        sizes.extend(self.objects.sizes());
        sizes.extend(self.tasks.sizes());
        sizes.extend(self.lineage.sizes());
        sizes.extend(self.submitted.sizes());
        sizes
    }
}
