//! How a head that does not lead says so: every call is answered with the status UNAVAILABLE, whose metadata name the
//! leader and the other heads. Who asked goes there, whatever the sentence says.

use cluster_types::Heads;
use prost::Message;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::v1;

/// The metadata entry that carries an encoded `cluster.v1.Heads`.
pub const HEADS_METADATA: &str = "cluster-heads-bin";

/// More heads than this are of no use to anybody.
const MAX_HEADS: usize = 64;

/// What a head that does not lead answers.
pub fn not_leading(heads: &Heads) -> Status {
    let sentence = match heads.leader.as_str() {
        "" => "this head does not lead its cluster, and none does at this moment".to_owned(),
        leader => format!("this head stands by; the cluster is led from {leader}"),
    };
    let mut status = Status::new(Code::Unavailable, sentence);
    let value = MetadataValue::from_bytes(&v1::Heads::from(heads).encode_to_vec());
    status.metadata_mut().insert_bin(HEADS_METADATA, value);
    status
}

/// Where to go instead, if that is what the status says.
pub fn heads_of(status: &Status) -> Option<Heads> {
    let bytes = status.metadata().get_bin(HEADS_METADATA)?.to_bytes().ok()?;
    v1::Heads::decode(bytes).ok().map(Heads::from)
}

impl From<&Heads> for v1::Heads {
    fn from(heads: &Heads) -> Self {
        Self { leader: heads.leader.clone(), all: heads.all.clone() }
    }
}

impl From<v1::Heads> for Heads {
    fn from(mut wire: v1::Heads) -> Self {
        wire.all.truncate(MAX_HEADS);
        Self { leader: wire.leader, all: wire.all }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_where_to_go() {
        let heads = Heads { leader: "a:1".into(), all: vec!["a:1".into(), "b:1".into()] };
        let status = not_leading(&heads);
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("led from a:1"), "{status}");
        assert_eq!(heads_of(&status), Some(heads));
        assert!(not_leading(&Heads::default()).message().contains("none does at this moment"));
    }

    #[test]
    fn any_other_status_says_nothing() {
        assert_eq!(heads_of(&Status::unavailable("the head is stopping")), None);
        let mut spoiled = Status::unavailable("x");
        spoiled.metadata_mut().insert_bin(HEADS_METADATA, MetadataValue::from_bytes(&[0xff, 0xff, 0xff]));
        assert_eq!(heads_of(&spoiled), None);
    }
}
