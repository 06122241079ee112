//! The program's connection, and the task that this thread runs.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};

use client_runtime::{Client, Interrupted};
use parking_lot::RwLock;

use crate::{Error, Result};

static CLIENT: RwLock<Option<Client>> = RwLock::new(None);
/// Counts connections: what belongs to an earlier one is made anew.
static GENERATION: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The devices that the task on this thread has leased.
    static GPUS: RefCell<Vec<u16>> = const { RefCell::new(Vec::new()) };
    /// The task whose code runs on this thread was cancelled.
    static CANCELLED: Cell<bool> = const { Cell::new(false) };
}

pub(crate) fn generation() -> u64 {
    GENERATION.load(Ordering::Relaxed)
}

/// The connection of this program.
pub(crate) fn client() -> Result<Client> {
    CLIENT.read().clone().ok_or_else(|| {
        Error::Misuse("this program is connected to no cluster: call concurrent_ml::init() first, and keep what it returns".to_owned())
    })
}

pub(crate) fn connect(client: Client) -> Result<()> {
    let mut current = CLIENT.write();
    if current.is_some() {
        return Err(Error::Misuse("this program is connected already: call init() once".to_owned()));
    }
    *current = Some(client);
    GENERATION.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

pub(crate) fn disconnect() {
    let client = CLIENT.write().take();
    if let Some(client) = client {
        client.disconnect();
    }
}

/// Asked while a thread waits: whether the task whose code it runs is to end. Another thread of an executor goes on.
pub(crate) fn interrupt() -> std::result::Result<(), Interrupted> {
    if crate::executor::is_cancelled() { Err(Interrupted) } else { Ok(()) }
}

/// Whether the task whose code this is was cancelled. Long computations ask now and then, and return.
pub fn is_cancelled() -> bool {
    crate::executor::is_cancelled()
}

pub(crate) fn lease_gpus(gpus: Vec<u16>) {
    GPUS.set(gpus);
}

/// The indices, on its node, of the GPUs that the running task has leased.
#[cfg(feature = "gpu")]
pub(crate) fn gpus() -> Vec<u16> {
    GPUS.with_borrow(Clone::clone)
}

pub(crate) fn cancelled_flag(set: Option<bool>) -> bool {
    if let Some(set) = set {
        CANCELLED.set(set);
    }
    CANCELLED.get()
}
