//! Readiness for event loops: one descriptor for any number of objects, drained in batches (rule E5).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::shared::{eventfd, signal, unsignal};

/// Objects that became ready, as the tokens they were registered under. One per event loop: poll its descriptor,
/// then drain it.
#[derive(Clone, Debug)]
pub struct CompletionQueue {
    pub(crate) queue: Arc<Queue>,
}

#[derive(Debug)]
pub(crate) struct Queue {
    fd: OwnedFd,
    tokens: Mutex<Vec<u64>>,
}

impl Queue {
    pub(crate) fn push(&self, token: u64) {
        let mut tokens = self.tokens.lock();
        tokens.push(token);
        if tokens.len() == 1 {
            signal(&self.fd);
        }
    }
}

impl CompletionQueue {
    pub(crate) fn new() -> std::io::Result<CompletionQueue> {
        Ok(CompletionQueue { queue: Arc::new(Queue { fd: eventfd()?, tokens: Mutex::default() }) })
    }

    /// The tokens of all registered objects that became ready since the last call. Never waits.
    pub fn drain(&self) -> Vec<u64> {
        let mut tokens = self.queue.tokens.lock();
        if !tokens.is_empty() {
            unsignal(&self.queue.fd);
        }
        std::mem::take(&mut tokens)
    }

    /// Whether `drain` would give nothing.
    pub fn is_empty(&self) -> bool {
        self.queue.tokens.lock().is_empty()
    }
}

impl AsFd for CompletionQueue {
    /// Readable while there is something to drain.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.fd.as_fd()
    }
}
