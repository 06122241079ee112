//! The embedded store: one file, written through redb.

use std::path::{Path, PathBuf};

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, TableError};

use super::{Entry, StateStore, StoreError, Table, Write};

/// A store in a file.
pub struct RedbStore {
    path: PathBuf,
    database: Database,
}

impl RedbStore {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// If another process has it open, or it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let path = path.to_path_buf();
        match Database::create(&path) {
            Ok(database) => Ok(Self { path, database }),
            Err(DatabaseError::DatabaseAlreadyOpen) => Err(StoreError::InUse { path }),
            Err(error) => Err(StoreError::File { path, what: "opened", reason: error.to_string() }),
        }
    }

    fn failed(&self, what: &'static str, error: impl Into<redb::Error>) -> StoreError {
        StoreError::File { path: self.path.clone(), what, reason: error.into().to_string() }
    }

    fn read<T>(
        &self,
        table: Table,
        read: impl FnOnce(&redb::ReadOnlyTable<&'static [u8], &'static [u8]>) -> Result<T, redb::StorageError>,
    ) -> Result<Option<T>, StoreError> {
        let transaction = self.database.begin_read().map_err(|error| self.failed("read", error))?;
        match transaction.open_table(definition(table)) {
            Ok(table) => read(&table).map(Some).map_err(|error| self.failed("read", error)),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(self.failed("read", error)),
        }
    }

    fn write(&self, transaction: &[Write]) -> Result<(), redb::Error> {
        let tx = self.database.begin_write()?;
        for write in transaction {
            match write {
                Write::Put { table, key, value } => {
                    tx.open_table(definition(*table))?.insert(key.as_slice(), value.as_slice())?;
                }
                Write::Delete { table, key } => {
                    tx.open_table(definition(*table))?.remove(key.as_slice())?;
                }
            }
        }
        tx.commit()?;
        Ok(())
    }
}

fn definition(table: Table) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(table.0)
}

impl StateStore for RedbStore {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self.read(table, |table| Ok(table.get(key)?.map(|value| value.value().to_vec())))?;
        Ok(value.flatten())
    }

    fn list(&self, table: Table) -> Result<Vec<Entry>, StoreError> {
        let entries = self.read(table, |table| {
            table
                .iter()?
                .map(|entry| entry.map(|(key, value)| (key.value().to_vec(), value.value().to_vec())))
                .collect()
        })?;
        Ok(entries.unwrap_or_default())
    }

    fn commit(&mut self, transaction: &[Write]) -> Result<(), StoreError> {
        if transaction.is_empty() {
            return Ok(());
        }
        self.write(transaction).map_err(|error| self.failed("written", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Table = Table("t");

    #[test]
    fn conforms() {
        let dir = tempfile::tempdir().unwrap();
        let count = std::cell::Cell::new(0);
        super::super::conformance::suite(|| {
            count.set(count.get() + 1);
            RedbStore::open(&dir.path().join(count.get().to_string())).unwrap()
        });
    }

    #[test]
    fn what_was_committed_survives_and_two_heads_cannot_share_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let mut store = RedbStore::open(&path).unwrap();
        store.put(T, b"k", b"v").unwrap();
        let error = RedbStore::open(&path).err().unwrap();
        assert!(matches!(error, StoreError::InUse { .. }), "{error}");
        drop(store);
        assert_eq!(RedbStore::open(&path).unwrap().get(T, b"k").unwrap().unwrap(), b"v");
    }

    #[test]
    fn a_file_that_is_no_store_is_an_error_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        std::fs::write(&path, b"this is not a database, it is a sentence").unwrap();
        let error = RedbStore::open(&path).err().unwrap();
        assert!(error.to_string().contains("state cannot be opened"), "{error}");
    }
}
