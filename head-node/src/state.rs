//! What the head keeps in its store (rule H1): the term, raised at every start; the roster of nodes; actors and placement
//! groups that nobody else would know of.

use bytes::{Bytes, BytesMut};
use cluster_proto::Codec;
use cluster_types::{Incarnation, NodeId, TaskId, Term};
use head_core::{HeadConfig, Member, Record};
use serde::{Deserialize, Serialize};

use crate::store::{StateStore, StoreError, Table, Write};

const HEAD: Table = Table("head");
const TERM: &[u8] = b"term";
const NODES: Table = Table("nodes");
const ACTORS: Table = Table("actors");
const GROUPS: Table = Table("groups");
const DURABLES: Table = Table("durables");
const JOBS: Table = Table("jobs");

/// A node as the roster has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RosterNode {
    /// Its number.
    pub incarnation: u32,
    /// What it was when what runs there began.
    #[serde(default)]
    pub since: u32,
    /// Its data address.
    pub address: String,
}

/// Raises the term, and gives back what the core is told of it and of the terms before.
///
/// # Errors
/// If the store failed or holds something else.
pub fn begin_term(store: &mut dyn StateStore) -> Result<HeadConfig, StoreError> {
    let last = match store.get(HEAD, TERM)? {
        None => 0,
        Some(bytes) => {
            let number = bytes.try_into().map_err(|_| unreadable("term", "it does not have four bytes"));
            u32::from_le_bytes(number?)
        }
    };
    let term = last.checked_add(1).ok_or_else(|| unreadable("term", "it is the last one there can be"))?;
    store.put(HEAD, TERM, &term.to_le_bytes())?;
    let mut codec = Codec::default();
    let roster = store.list(NODES)?.into_iter().map(|(key, value)| member(&key, &value));
    let actors = store.list(ACTORS)?.into_iter().map(|(_, value)| {
        codec.decode_kept_actor(Bytes::from(value)).map_err(|error| unreadable("actor", &error.to_string()))
    });
    let actors = actors.collect::<Result<_, _>>()?;
    let groups = store.list(GROUPS)?.into_iter().map(|(_, value)| {
        let group = codec.decode_kept_group(Bytes::from(value));
        group.map_err(|error| unreadable("placement group", &error.to_string()))
    });
    let groups = groups.collect::<Result<_, _>>()?;
    let roster = roster.collect::<Result<_, _>>()?;
    let durables = store.list(DURABLES)?.into_iter().map(|(_, value)| {
        let durable = Codec::decode_kept_durable(Bytes::from(value));
        durable.map_err(|error| unreadable("durable object", &error.to_string()))
    });
    let durables = durables.collect::<Result<_, _>>()?;
    let jobs = store.list(JOBS)?.into_iter().map(|(_, value)| {
        serde_json::from_slice(&value).map_err(|error| unreadable("job", &error.to_string()))
    });
    let jobs = jobs.collect::<Result<_, _>>()?;
    Ok(HeadConfig { term: Term(term), roster, actors, groups, durables, jobs, ..HeadConfig::default() })
}

fn unreadable(what: &'static str, reason: &str) -> StoreError {
    StoreError::Content { what, reason: reason.to_owned() }
}

fn member(key: &[u8], value: &[u8]) -> Result<Member, StoreError> {
    let id = key.try_into().map_err(|_| unreadable("node", "its key does not have eight bytes"))?;
    let known: RosterNode =
        serde_json::from_slice(value).map_err(|error| unreadable("node", &error.to_string()))?;
    Ok(Member {
        node: NodeId(u64::from_be_bytes(id)),
        incarnation: Incarnation(known.incarnation),
        since: Incarnation(known.since),
    })
}

/// The change of a record, for a transaction.
pub fn write_of(record: &Record, codec: &mut Codec) -> Write {
    let mut value = BytesMut::new();
    match record {
        Record::NodeJoined { node, incarnation, since, address } => {
            let (incarnation, since) = (incarnation.0, since.0);
            let entry = RosterNode { incarnation, since, address: address.to_string() };
            let value = serde_json::to_vec(&entry).expect("numbers and a string are JSON");
            Write::Put { table: NODES, key: node.0.to_be_bytes().to_vec(), value }
        }
        Record::NodeLeft { node } => Write::Delete { table: NODES, key: node.0.to_be_bytes().to_vec() },
        Record::ActorKept(kept) => {
            codec.encode_kept_actor(kept, &mut value);
            Write::Put { table: ACTORS, key: key_of(kept.spec.id), value: value.to_vec() }
        }
        Record::ActorGone(task) => Write::Delete { table: ACTORS, key: key_of(*task) },
        Record::GroupKept(kept) => {
            codec.encode_kept_group(kept, &mut value);
            Write::Put { table: GROUPS, key: key_of(kept.spec.id), value: value.to_vec() }
        }
        Record::GroupGone(task) => Write::Delete { table: GROUPS, key: key_of(*task) },
        Record::DurableKept(kept) => {
            Codec::encode_kept_durable(kept, &mut value);
            Write::Put { table: DURABLES, key: kept.object.to_bytes().to_vec(), value: value.to_vec() }
        }
        Record::JobKept(view) => {
            let value = serde_json::to_vec(view).expect("text and numbers are JSON");
            Write::Put { table: JOBS, key: view.job.clone().into_bytes(), value }
        }
        Record::JobGone(job) => Write::Delete { table: JOBS, key: job.clone().into_bytes() },
        Record::DurableGone(object) => Write::Delete { table: DURABLES, key: object.to_bytes().to_vec() },
    }
}

fn key_of(task: TaskId) -> Vec<u8> {
    [task.client.0.to_be_bytes(), task.seq.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cluster_types::kept::{KeptActor, KeptGroup};
    use cluster_types::{Attempt, ClientId, JobId, JobInfo, Lease, ObjectId, Payload, TaskSpec};

    use super::*;
    use crate::store::MemoryStore;

    fn write(store: &mut MemoryStore, records: &[Record]) {
        let mut codec = Codec::default();
        store.commit(&records.iter().map(|record| write_of(record, &mut codec)).collect::<Vec<_>>()).unwrap();
    }

    fn spec(seq: u64) -> Arc<TaskSpec> {
        Arc::new(TaskSpec {
            id: TaskId { client: ClientId(7), seq },
            job: JobId(1),
            template: Arc::default(),
            payload: Payload::Inline(Bytes::from_static(b"args")),
            parent: None,
            deps: Default::default(),
            borrowed: Default::default(),
        })
    }

    #[test]
    fn every_start_has_a_higher_term() {
        let mut store = MemoryStore::default();
        for term in 1..4 {
            assert_eq!(begin_term(&mut store).unwrap().term, Term(term));
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
    fn a_spoiled_entry_says_which_it_is() {
        for (table, key, what) in [(NODES, &b"12345678"[..], "node"), (ACTORS, b"x", "actor")] {
            let mut store = MemoryStore::default();
            store.put(table, key, b"nonsense").unwrap();
            let error = begin_term(&mut store).unwrap_err();
            assert!(error.to_string().contains(&format!("stored {what} cannot be understood")), "{error}");
        }
    }

    #[test]
    fn the_next_head_is_told_what_was_written_and_not_deleted() {
        let mut store = MemoryStore::default();
        let joined = |id| Record::NodeJoined {
            node: NodeId(id),
            incarnation: Incarnation(3),
            since: Incarnation(2),
            address: "h:1".into(),
        };
        let actor = KeptActor {
            spec: spec(1),
            info: Some(Arc::new(JobInfo::default())),
            value: None,
            restarts: 2,
            ended: Some(Attempt { term: 1, n: 4 }),
            states: vec![ObjectId::put(ClientId(9), 3)],
        };
        let group =
            KeptGroup { spec: spec(2), info: None, places: vec![None, Some((NodeId(5), Lease::default()))] };
        let records = [
            joined(1),
            joined(2),
            Record::NodeLeft { node: NodeId(1) },
            Record::ActorKept(actor.clone()),
            Record::ActorKept(KeptActor { spec: spec(3), ..actor.clone() }),
            Record::ActorGone(spec(3).id),
            Record::GroupKept(group.clone()),
            Record::GroupKept(KeptGroup { spec: spec(4), ..group.clone() }),
            Record::GroupGone(spec(4).id),
        ];
        write(&mut store, &records);
        let told = begin_term(&mut store).unwrap();
        let member = Member { node: NodeId(2), incarnation: Incarnation(3), since: Incarnation(2) };
        assert_eq!((told.roster, told.actors, told.groups), (vec![member], vec![actor], vec![group]));
    }
}
