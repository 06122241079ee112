//! A store in an etcd, for several heads of which one leads at a time.
//!
//! - `url`: what `--state` says. `members`: calls to whichever member answers.
//! - `session`: what one head has to do with etcd: to stand by, to lead, to write.
//! - `announce`: which heads there are. `history`: etcd forgets what nobody needs.

mod announce;
mod history;
mod members;
mod session;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod url;

pub(crate) use session::Position;
pub use session::Session;
pub use url::{BadUrl, EtcdUrl};

use super::{Entry, StateStore, StoreError, Table, Write};
use session::{Order, SessionHandle};

/// The store as one head has it, which wants to lead or does. Its first transaction is what takes leadership: it fails
/// if anything was written since the head decided to try, so all that was read before is still true.
pub struct EtcdStore {
    session: SessionHandle,
    /// What the leader's key was when this head decided to try.
    chance: i64,
}

impl StateStore for EtcdStore {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.session.ask(|answer| Order::Get { table, key: key.to_vec(), answer })
    }

    fn list(&self, table: Table) -> Result<Vec<Entry>, StoreError> {
        self.session.ask(|answer| Order::List { table, answer })
    }

    fn commit(&mut self, transaction: &[Write]) -> Result<(), StoreError> {
        let (writes, chance) = (transaction.to_vec(), self.chance);
        self.session.ask(|answer| Order::Commit { writes, chance, answer })
    }
}
