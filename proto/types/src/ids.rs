//! Names of things. Ids are made where the thing is made, without asking anybody, and never repeat.

use std::fmt;
use std::str::FromStr;

/// An id that could not be read from text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no {what}")]
pub struct ParseIdError {
    what: &'static str,
    text: String,
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $what:literal, $format:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                <$inner>::from_str_radix(text, 16)
                    .map(Self)
                    .map_err(|_| ParseIdError { what: $what, text: text.to_owned() })
            }
        }
    };
}

hex_id!(
    /// One connected submitter of work: a driver, or an executor. Random, renewed after `fork` (rule T4).
    ClientId, u64, "client id", "{:016x}"
);
hex_id!(
    /// Everything one driver submitted. Random.
    JobId, u32, "job id", "{:08x}"
);
hex_id!(
    /// A machine's daemon. Random, chosen when the daemon starts.
    NodeId, u64, "node id", "{:016x}"
);

/// How many times the head has been started on this state; every message of a leader carries it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term(pub u32);

/// How many times a node was admitted under its id. A message that carries an older one changes nothing (FENCE-1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u32);

/// One try of a task. The pair never repeats, not even after a head's restart (rule T4).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt {
    /// The leader's term in which the attempt was made.
    pub term: u32,
    /// Counts from 1 for each task, over all terms.
    pub n: u32,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.n)
    }
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}@{}", self.n, self.term)
    }
}

/// A shared-memory segment (or a file with a segment's layout) of one node. Never reused within a daemon's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId(pub u32);

/// One call of a remote function: who submitted it, and the how-manieth thing that client made.
///
/// ```
/// use cluster_types::{ClientId, TaskId};
/// let task = TaskId { client: ClientId(0x4f), seq: 17 };
/// assert_eq!(task.to_string(), "000000000000004f.17");
/// assert_eq!(task.to_string().parse(), Ok(task));
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId {
    /// The submitter.
    pub client: ClientId,
    /// The submitter's counter, shared by its tasks and puts; less than 2^40.
    pub seq: u64,
}

impl TaskId {
    /// The `index`-th value this task returns, the same whatever the attempt (rule T4).
    pub fn result(self, index: u32) -> ObjectId {
        ObjectId { client: self.client, local: self.seq << INDEX_BITS | u64::from(index + 1) }
    }

    /// The `index`-th item that this task yields, the same whatever the attempt (rule T4); less than [`MAX_ITEMS`]. A
    /// task that yields has one result, so that the items come after it.
    pub fn item(self, index: u32) -> ObjectId {
        self.result(index + 1)
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.client, self.seq)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TaskId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let error = || ParseIdError { what: "task id", text: text.to_owned() };
        let (client, seq) = text.split_once('.').ok_or_else(error)?;
        let seq = seq.parse::<u64>().ok().filter(|seq| *seq <= MAX_SEQ).ok_or_else(error)?;
        Ok(TaskId { client: client.parse().map_err(|_| error())?, seq })
    }
}

const INDEX_BITS: u32 = 24;

/// The largest counter a [`TaskId`] or a put may have.
pub const MAX_SEQ: u64 = (1 << (64 - INDEX_BITS)) - 1;

/// The most values one task may return.
pub const MAX_RETURNS: u32 = (1 << INDEX_BITS) - 2;

/// The most items one task may yield.
pub const MAX_ITEMS: u32 = MAX_RETURNS - 1;

/// An immutable value: a task's result, or something put.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// Who made the id: the task's submitter (wherever it runs), or the process that put the value.
    pub client: ClientId,
    /// The maker's counter and, in the low 24 bits, 0 for a put or 1 + the result's index.
    pub local: u64,
}

impl ObjectId {
    /// The `seq`-th thing that `client` made, as a put.
    pub fn put(client: ClientId, seq: u64) -> Self {
        Self { client, local: seq << INDEX_BITS }
    }

    /// The task whose result this is and which of its results; `None` for a put.
    pub fn task(self) -> Option<(TaskId, u32)> {
        let index = (self.local & ((1 << INDEX_BITS) - 1)) as u32;
        (index > 0).then(|| (TaskId { client: self.client, seq: self.local >> INDEX_BITS }, index - 1))
    }

    /// Whether this was put rather than returned by a task.
    pub fn is_put(self) -> bool {
        self.task().is_none()
    }

    /// Sixteen bytes, big-endian, client first.
    pub fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.client.0) << 64 | u128::from(self.local)).to_be_bytes()
    }

    /// The inverse of [`ObjectId::to_bytes`].
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let both = u128::from_be_bytes(bytes);
        Self { client: ClientId((both >> 64) as u64), local: both as u64 }
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.task() {
            Some((task, index)) => write!(f, "{task}.{index}"),
            None => write!(f, "{}.{}.put", self.client, self.local >> INDEX_BITS),
        }
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ObjectId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let error = || ParseIdError { what: "object id", text: text.to_owned() };
        let (task, index) = text.rsplit_once('.').ok_or_else(error)?;
        let task: TaskId = task.parse().map_err(|_| error())?;
        if index == "put" {
            return Ok(ObjectId::put(task.client, task.seq));
        }
        let index = index.parse::<u32>().ok().filter(|index| *index < MAX_RETURNS).ok_or_else(error)?;
        Ok(task.result(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn object_ids_survive_text_and_bytes(client: u64, seq in 0..=MAX_SEQ, index in 0..MAX_RETURNS, put: bool) {
            let task = TaskId { client: ClientId(client), seq };
            let id = if put { ObjectId::put(task.client, seq) } else { task.result(index) };
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            prop_assert_eq!(ObjectId::from_bytes(id.to_bytes()), id);
            prop_assert_eq!(id.task(), (!put).then_some((task, index)));
        }

        #[test]
        fn parsing_never_panics(text in ".*") {
            let _ = text.parse::<ObjectId>();
            let _ = text.parse::<TaskId>();
            let _ = text.parse::<NodeId>();
        }
    }
}
