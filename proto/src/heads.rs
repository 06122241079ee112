//! How a head that does not lead says so: every call is answered with the status UNAVAILABLE, whose metadata name the
//! leader and the other heads. Who asked goes there, whatever the sentence says.

use std::time::{Duration, Instant};

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

/// After a head was not to be reached, it is not asked again for so long while there are others, whoever says it leads.
const AVOID: Duration = Duration::from_secs(2);

/// The heads that somebody knows of, and which of them to ask next.
#[derive(Clone, Debug)]
pub struct KnownHeads {
    known: Vec<Known>,
    /// The last that was asked.
    at: usize,
    /// Said to lead.
    leader: Option<String>,
}

#[derive(Clone, Debug)]
struct Known {
    address: String,
    /// Given by a person, so never forgotten.
    given: bool,
    avoid_until: Option<Instant>,
}

impl KnownHeads {
    /// From `host:port`, or several with commas between.
    pub fn new(addresses: &str) -> Self {
        let mut heads = Self { known: Vec::new(), at: 0, leader: None };
        for address in addresses.split(',').map(str::trim).filter(|address| !address.is_empty()) {
            heads.add(address, true);
        }
        // The first that was given is the first to be asked.
        heads.at = heads.known.len().saturating_sub(1);
        heads
    }

    fn add(&mut self, address: &str, given: bool) {
        if let Some(known) = self.known.iter_mut().find(|known| known.address == address) {
            known.given |= given;
        } else if given || self.known.len() < MAX_HEADS {
            self.known.push(Known { address: address.to_owned(), given, avoid_until: None });
        }
    }

    /// Takes in what a head said.
    pub fn learn(&mut self, heads: &Heads) {
        let asked = self.known.get(self.at).map(|known| known.address.clone());
        self.known.retain(|known| known.given || heads.all.contains(&known.address));
        for address in heads.all.iter().chain([&heads.leader]).filter(|address| !address.is_empty()) {
            self.add(address, false);
        }
        self.at = self.known.iter().position(|known| Some(&known.address) == asked.as_ref()).unwrap_or(0);
        self.leader = Some(heads.leader.clone()).filter(|leader| !leader.is_empty());
    }

    /// Nobody answers there.
    pub fn unreachable(&mut self, address: &str, now: Instant) {
        for known in &mut self.known {
            if known.address == address {
                known.avoid_until = Some(now + AVOID);
            }
        }
    }

    /// Whom to ask now: who is said to lead, else one after the other.
    pub fn next(&mut self, now: Instant) -> String {
        let good = |known: &Known| known.avoid_until.is_none_or(|until| until <= now);
        let count = self.known.len();
        let leads = |known: &Known| Some(&known.address) == self.leader.as_ref() && good(known);
        let leader = self.known.iter().position(leads);
        // Not a second time before a head has said so again.
        self.leader = None;
        let after = (1..=count).map(|step| (self.at + step) % count);
        let next = leader.or_else(|| after.clone().find(|at| good(&self.known[*at])));
        self.at = next.or_else(|| after.into_iter().next()).unwrap_or(0);
        self.known.get(self.at).map(|known| known.address.clone()).unwrap_or_default()
    }

    /// More than one.
    pub fn are_several(&self) -> bool {
        self.known.len() > 1
    }

    /// All, with commas between.
    pub fn list(&self) -> String {
        self.known.iter().map(|known| known.address.as_str()).collect::<Vec<_>>().join(",")
    }
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

    fn heads(leader: &str, all: &[&str]) -> Heads {
        Heads { leader: leader.into(), all: all.iter().map(|head| (*head).to_owned()).collect() }
    }

    #[test]
    fn who_is_said_to_lead_is_asked_unless_it_did_not_answer() {
        let now = Instant::now();
        let mut known = KnownHeads::new("b:1");
        assert_eq!((known.next(now), known.next(now)), ("b:1".to_owned(), "b:1".to_owned()));
        known.learn(&heads("a:1", &["a:1", "b:1", "c:1"]));
        assert_eq!(known.next(now), "a:1");
        known.unreachable("a:1", now);
        // The others believe in it for a while yet.
        for expected in ["c:1", "b:1", "c:1"] {
            known.learn(&heads("a:1", &["a:1", "b:1", "c:1"]));
            assert_eq!(known.next(now), expected, "{known:?}");
        }
        known.learn(&heads("c:1", &["a:1", "b:1", "c:1"]));
        assert_eq!(known.next(now), "c:1");
        known.unreachable("c:1", now);
        known.unreachable("b:1", now);
        assert_eq!(known.next(now), "b:1", "all are bad");
        assert_eq!(known.next(now + AVOID), "a:1", "all were bad, and that is long ago");
        assert_eq!(known.list(), "b:1,a:1,c:1");
    }

    #[test]
    fn a_head_that_is_gone_is_forgotten_unless_a_person_named_it() {
        let mut known = KnownHeads::new("a:1, b:1");
        assert_eq!(known.clone().next(Instant::now()), "a:1");
        known.learn(&heads("c:1", &["c:1", "d:1"]));
        known.learn(&heads("d:1", &["d:1"]));
        assert_eq!(known.list(), "a:1,b:1,d:1");
        assert!(known.are_several());
        assert_eq!(KnownHeads::new("").next(Instant::now()), "");
    }

    #[test]
    fn any_other_status_says_nothing() {
        assert_eq!(heads_of(&Status::unavailable("the head is stopping")), None);
        let mut spoiled = Status::unavailable("x");
        spoiled.metadata_mut().insert_bin(HEADS_METADATA, MetadataValue::from_bytes(&[0xff, 0xff, 0xff]));
        assert_eq!(heads_of(&spoiled), None);
    }
}
