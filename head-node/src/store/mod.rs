//! What survives the head: small tables of bytes, changed in transactions: in a file, or in an etcd.

pub mod etcd;
mod memory;
mod redb;

pub use memory::MemoryStore;
pub use redb::RedbStore;

use std::path::PathBuf;

/// A table's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Table(pub &'static str);

/// A key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// One change of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Put {
        /// Where.
        table: Table,
        /// Which.
        key: Vec<u8>,
        /// To what.
        value: Vec<u8>,
    },
    /// Removes a key; nothing happens where there is none.
    Delete {
        /// Where.
        table: Table,
        /// Which.
        key: Vec<u8>,
    },
}

/// A store that failed: the head cannot go on, what it promised would not be kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another head has the file open.
    #[error("the state file {path} is in use by another head: stop that one first (`cluster down`)")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It could not be read or written.
    #[error("the state file {path} cannot be {what}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// `opened`, `read`, `written`.
        what: &'static str,
        /// The system's or the database's words.
        reason: String,
    },
    /// Etcd does not answer, or refuses.
    #[error("{0}")]
    Etcd(String),
    /// Another head leads, or may: this one must change nothing any more (rule H4).
    #[error("this head leads no more: {0}")]
    Deposed(String),
    /// What is stored is not what this version stores.
    #[error("the stored {what} cannot be understood: {reason}; was it written by another version?")]
    Content {
        /// Which entry.
        what: &'static str,
        /// Why not.
        reason: String,
    },
}

/// A few small tables that outlive the process. Every implementation passes the same suite (`conformance`).
pub trait StateStore: Send {
    /// The value under a key.
    ///
    /// # Errors
    /// If the store failed; so for all methods.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// All entries of a table, by key.
    ///
    /// # Errors
    /// See [`StateStore::get`].
    fn list(&self, table: Table) -> Result<Vec<Entry>, StoreError>;

    /// Makes all these changes, in order, or none. When it returns they are durable.
    ///
    /// # Errors
    /// See [`StateStore::get`].
    fn commit(&mut self, transaction: &[Write]) -> Result<(), StoreError>;

    /// Sets one key.
    ///
    /// # Errors
    /// See [`StateStore::get`].
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.commit(&[Write::Put { table, key: key.to_vec(), value: value.to_vec() }])
    }

    /// Removes one key.
    ///
    /// # Errors
    /// See [`StateStore::get`].
    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), StoreError> {
        self.commit(&[Write::Delete { table, key: key.to_vec() }])
    }
}

/// What every store must do, whichever it is.
#[cfg(test)]
pub(crate) mod conformance {
    use super::*;

    const A: Table = Table("a");
    const B: Table = Table("b");

    pub(crate) fn suite<S: StateStore>(new: impl Fn() -> S) {
        a_new_store_is_empty(&new());
        what_was_put_is_found_until_deleted(&mut new());
        tables_are_apart(&mut new());
        a_list_is_sorted_by_key(&mut new());
        a_transaction_is_applied_in_order(&mut new());
        any_bytes_are_keys_and_values(&mut new());
    }

    fn a_new_store_is_empty(store: &impl StateStore) {
        assert_eq!(store.get(A, b"k").unwrap(), None);
        assert_eq!(store.list(A).unwrap(), []);
    }

    fn what_was_put_is_found_until_deleted(store: &mut impl StateStore) {
        store.put(A, b"k", b"1").unwrap();
        store.put(A, b"k", b"2").unwrap();
        assert_eq!(store.get(A, b"k").unwrap().unwrap(), b"2");
        store.delete(A, b"k").unwrap();
        store.delete(A, b"k").unwrap();
        assert_eq!(store.get(A, b"k").unwrap(), None);
    }

    fn tables_are_apart(store: &mut impl StateStore) {
        store.put(A, b"k", b"a").unwrap();
        store.put(B, b"k", b"b").unwrap();
        store.delete(A, b"k").unwrap();
        assert_eq!(store.get(B, b"k").unwrap().unwrap(), b"b");
    }

    fn a_list_is_sorted_by_key(store: &mut impl StateStore) {
        for key in [&b"b"[..], b"a", b"ab", b""] {
            store.put(A, key, key).unwrap();
        }
        let keys: Vec<_> = store.list(A).unwrap().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, [&b""[..], b"a", b"ab", b"b"]);
    }

    fn a_transaction_is_applied_in_order(store: &mut impl StateStore) {
        let put = |key: &[u8]| Write::Put { table: A, key: key.to_vec(), value: b"v".to_vec() };
        let delete = |key: &[u8]| Write::Delete { table: A, key: key.to_vec() };
        store.commit(&[put(b"x"), put(b"y"), delete(b"x"), delete(b"z"), put(b"z")]).unwrap();
        store.commit(&[]).unwrap();
        let keys: Vec<_> = store.list(A).unwrap().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, [b"y", b"z"]);
    }

    fn any_bytes_are_keys_and_values(store: &mut impl StateStore) {
        let all: Vec<u8> = (0..=255).collect();
        store.put(A, &all, &[]).unwrap();
        store.put(A, &[], &all).unwrap();
        assert!(store.get(A, &all).unwrap().unwrap().is_empty());
        assert_eq!(store.get(A, &[]).unwrap().unwrap(), all);
    }
}
