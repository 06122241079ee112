//! What the head keeps in its store (rule H1): the term, raised at every start, and the roster of nodes.

use cluster_types::Term;
use head_core::Record;
use serde::{Deserialize, Serialize};

use crate::store::{StateStore, StoreError, Table, Write};

const HEAD: Table = Table("head");
const TERM: &[u8] = b"term";
const NODES: Table = Table("nodes");

/// A node as the roster has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RosterNode {
    /// Its number.
    pub incarnation: u32,
    /// Its data address.
    pub address: String,
}

/// Raises the term and returns it. Nobody waits for the nodes of the term before yet, so its roster is forgotten in
/// the same transaction; nodes that live announce themselves.
///
/// # Errors
/// If the store failed or holds something else.
pub fn begin_term(store: &mut dyn StateStore) -> Result<Term, StoreError> {
    let content = |reason: &str| StoreError::Content { what: "term", reason: reason.to_owned() };
    let last = match store.get(HEAD, TERM)? {
        None => 0,
        Some(bytes) => {
            u32::from_le_bytes(bytes.try_into().map_err(|_| content("it does not have four bytes"))?)
        }
    };
    let term = last.checked_add(1).ok_or_else(|| content("it is the last one there can be"))?;
    let mut transaction =
        vec![Write::Put { table: HEAD, key: TERM.to_vec(), value: term.to_le_bytes().to_vec() }];
    let forgotten = store.list(NODES)?;
    transaction.extend(forgotten.into_iter().map(|(key, _)| Write::Delete { table: NODES, key }));
    store.commit(&transaction)?;
    Ok(Term(term))
}

/// The change of a record, for a transaction.
pub fn write_of(record: &Record) -> Write {
    match record {
        Record::NodeJoined { node, incarnation, address } => {
            let entry = RosterNode { incarnation: incarnation.0, address: address.to_string() };
            let value = serde_json::to_vec(&entry).expect("a number and a string are JSON");
            Write::Put { table: NODES, key: node.0.to_be_bytes().to_vec(), value }
        }
        Record::NodeLeft { node } => Write::Delete { table: NODES, key: node.0.to_be_bytes().to_vec() },
    }
}

#[cfg(test)]
mod tests {
    use cluster_types::{Incarnation, NodeId};

    use super::*;
    use crate::store::MemoryStore;

    #[test]
    fn every_start_has_a_higher_term() {
        let mut store = MemoryStore::default();
        for term in 1..4 {
            assert_eq!(begin_term(&mut store).unwrap(), Term(term));
        }
    }

    #[test]
    fn a_spoiled_term_is_an_error_not_a_fresh_start() {
        let mut store = MemoryStore::default();
        store.put(HEAD, TERM, b"nonsense").unwrap();
        let error = begin_term(&mut store).unwrap_err();
        assert!(error.to_string().contains("term cannot be understood"), "{error}");
    }

    #[test]
    fn the_roster_follows_the_records() {
        let mut store = MemoryStore::default();
        let joined =
            |id| Record::NodeJoined { node: NodeId(id), incarnation: Incarnation(3), address: "h:1".into() };
        let records = [joined(1), joined(2), Record::NodeLeft { node: NodeId(1) }];
        store.commit(&records.iter().map(write_of).collect::<Vec<_>>()).unwrap();
        let roster = store.list(NODES).unwrap();
        assert_eq!(roster.len(), 1);
        let node: RosterNode = serde_json::from_slice(&roster[0].1).unwrap();
        assert_eq!(node, RosterNode { incarnation: 3, address: "h:1".into() });
    }
}
