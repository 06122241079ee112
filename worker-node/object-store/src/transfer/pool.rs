//! Which pull is next, and which connections are kept: the puller's shared state.
//!
//! Pulls wait in a queue for each peer, and peers take turns. No peer has more than its share of the workers, so one
//! that stalls does not hold up the others.

use std::collections::VecDeque;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

/// Idle connections are closed after this time.
const IDLE_MAX: Duration = Duration::from_secs(60);

pub(super) struct Pool<J> {
    per_peer: usize,
    peers: FxHashMap<Arc<str>, Peer<J>>,
    /// Peers with a pull to start and workers to spare, each once.
    turns: VecDeque<Arc<str>>,
    /// Connections in use, to cut them at the end.
    in_use: FxHashMap<u64, Arc<TcpStream>>,
    next: u64,
    stopping: bool,
}

struct Peer<J> {
    /// As long as its callers let it: the daemon bounds the pulls it starts, and each entry is small.
    waiting: VecDeque<J>,
    running: usize,
    has_turn: bool,
    idle: Vec<(Instant, Arc<TcpStream>)>,
}

impl<J> Pool<J> {
    pub fn new(per_peer: usize) -> Pool<J> {
        Pool {
            per_peer: per_peer.max(1),
            peers: FxHashMap::default(),
            turns: VecDeque::new(),
            in_use: FxHashMap::default(),
            next: 0,
            stopping: false,
        }
    }

    pub fn stopping(&self) -> bool {
        self.stopping
    }

    pub fn add(&mut self, name: Arc<str>, job: J) {
        let peer = self.peers.entry(name.clone()).or_insert_with(|| Peer {
            waiting: VecDeque::new(),
            running: 0,
            has_turn: false,
            idle: Vec::new(),
        });
        peer.waiting.push_back(job);
        self.offer_turn(&name);
    }

    fn offer_turn(&mut self, name: &Arc<str>) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        if !peer.has_turn && !peer.waiting.is_empty() && peer.running < self.per_peer {
            peer.has_turn = true;
            self.turns.push_back(name.clone());
        }
    }

    /// The next pull to run; [`Pool::ended`] must follow.
    pub fn begin(&mut self) -> Option<(Arc<str>, J)> {
        while let Some(name) = self.turns.pop_front() {
            let Some(peer) = self.peers.get_mut(&name) else { continue };
            peer.has_turn = false;
            if let Some(job) = peer.waiting.pop_front() {
                peer.running += 1;
                self.offer_turn(&name);
                return Some((name, job));
            }
        }
        None
    }

    /// A pull ended; `keep` is its connection, if that is still good.
    pub fn ended(&mut self, name: &Arc<str>, keep: Option<Arc<TcpStream>>) {
        let now = Instant::now();
        if let Some(peer) = self.peers.get_mut(name) {
            peer.running -= 1;
            if let Some(stream) = keep
                && !self.stopping
            {
                peer.idle.push((now, stream));
            }
        }
        self.offer_turn(name);
        self.peers.retain(|_, peer| {
            peer.idle.retain(|(since, _)| now.saturating_duration_since(*since) < IDLE_MAX);
            peer.running > 0 || !peer.waiting.is_empty() || !peer.idle.is_empty()
        });
    }

    /// A kept connection to the peer, the most recently used.
    pub fn idle_connection(&mut self, name: &Arc<str>) -> Option<Arc<TcpStream>> {
        self.peers.get_mut(name)?.idle.pop().map(|(_, stream)| stream)
    }

    /// Notes a connection in use; `None` if the puller is stopping.
    pub fn register(&mut self, stream: &Arc<TcpStream>) -> Option<u64> {
        if self.stopping {
            return None;
        }
        self.next += 1;
        self.in_use.insert(self.next, stream.clone());
        Some(self.next)
    }

    pub fn unregister(&mut self, number: u64) {
        self.in_use.remove(&number);
    }

    /// Cuts all connections and returns the pulls that had not begun.
    pub fn stop(&mut self) -> Vec<(Arc<str>, J)> {
        self.stopping = true;
        for stream in self.in_use.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.turns.clear();
        let mut left = Vec::new();
        for (name, peer) in &mut self.peers {
            peer.idle.clear();
            peer.has_turn = false;
            left.extend(peer.waiting.drain(..).map(|job| (name.clone(), job)));
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_take_turns_and_none_takes_all_workers() {
        let mut pool = Pool::new(2);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        for job in 1..=4 {
            pool.add(a.clone(), job);
        }
        pool.add(b.clone(), 10);
        let begun: Vec<i32> = std::iter::from_fn(|| pool.begin().map(|(_, job)| job)).collect();
        assert_eq!(begun, [1, 10, 2]);
        pool.ended(&a, None);
        assert_eq!(pool.begin().map(|(_, job)| job), Some(3));
        assert!(pool.begin().is_none());
        pool.ended(&b, None);
        assert_eq!(pool.peers.len(), 1);
        assert_eq!(pool.stop().len(), 1);
        pool.ended(&a, None);
        pool.ended(&a, None);
        assert!(pool.peers.is_empty() && pool.begin().is_none());
    }
}
