//! Trees of files that travel by content: a working directory, modules.
//!
//! Files are cut into chunks named by the SHA-256 of their bytes, and so is the list of a tree's files: its name is the
//! tree's. What a gateway has is not sent again, what a node has is not fetched again.
//!
//! | module | what it is |
//! | --- | --- |
//! | `pack` | a directory's list of files, without what `.gitignore` excludes |
//! | `known` | hashes of files that have not changed since they were read last |
//! | `chunks` | a directory of chunks: a gateway's, a node's |
//! | `travel` | sending to a gateway, fetching from one |

mod chunks;
mod known;
mod pack;
mod travel;

use serde::{Deserialize, Serialize};

pub use chunks::{ChunkName, Chunks};
pub use pack::{Packed, pack};
pub use travel::{Progress, fetch, find_gateway, keep, send};

/// The largest tree that is packed, unless somebody says otherwise.
pub const DEFAULT_LIMIT: u64 = 10 << 30;

/// Why a tree cannot travel.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// A file cannot be read or written.
    #[error("{0}: {1}")]
    File(String, #[source] std::io::Error),
    /// It is not what it should be.
    #[error("{0}")]
    Wrong(String),
    /// Nobody answers, or not as expected.
    #[error("{0}")]
    Away(String),
}

impl PackageError {
    pub(crate) fn file(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> PackageError {
        let path = path.display().to_string();
        move |error| PackageError::File(path, error)
    }
}

/// One entry of a tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Below the tree's root, with `/`.
    pub path: String,
    /// What it is.
    #[serde(flatten)]
    pub kind: EntryKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EntryKind {
    File {
        /// Whether it may be executed.
        program: bool,
        size: u64,
        chunks: Vec<ChunkName>,
    },
    /// Where it points.
    Link(String),
    Directory {},
}
