//! A store that ends with its process: for tests, and heads that need not survive.

use std::collections::BTreeMap;

use super::{Entry, StateStore, StoreError, Table, Write};

/// Tables in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    tables: BTreeMap<Table, BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl StateStore for MemoryStore {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.tables.get(&table).and_then(|entries| entries.get(key)).cloned())
    }

    fn list(&self, table: Table) -> Result<Vec<Entry>, StoreError> {
        let entries = self.tables.get(&table).into_iter().flatten();
        Ok(entries.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn commit(&mut self, transaction: &[Write]) -> Result<(), StoreError> {
        for write in transaction {
            match write {
                Write::Put { table, key, value } => {
                    self.tables.entry(*table).or_default().insert(key.clone(), value.clone());
                }
                Write::Delete { table, key } => {
                    self.tables.entry(*table).or_default().remove(key);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conforms() {
        super::super::conformance::suite(MemoryStore::default);
    }
}
