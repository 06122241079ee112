//! Durable storage: a directory that outlives the node, or a bucket of an S3-compatible service.
//!
//! One thread of its own, started with the first object, drives all transfers, so that neither a slow disk nor a slow
//! network is felt by the event loop.

use std::collections::BTreeSet;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cluster_store::segment::WriteBuf;
use cluster_types::{NodeId, ObjectId};
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, RetryConfig, WriteMultipart};
use tokio::sync::Semaphore;
use tokio_stream::StreamExt;

use super::explain;

/// Objects up to this size are written in one request, larger ones in parts of it.
const PART: usize = 8 << 20;
/// Parts of one object on their way at once.
const PARTS_AT_ONCE: usize = 4;
/// Objects on their way at once.
const OBJECTS_AT_ONCE: usize = 8;
/// A service that does not answer is tried again for so long.
const PATIENCE: Duration = Duration::from_secs(20);
/// What an ending cluster has written is deleted within this time, or stays.
const CLEANING: Duration = Duration::from_secs(3);

/// Where durable copies lie.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Directory(PathBuf),
    /// As written: `s3://bucket/prefix`.
    Bucket(String),
}

impl Place {
    /// # Errors
    /// What is wrong with the URL.
    fn parse(url: &str) -> Result<Place, String> {
        if let Some(path) = url.strip_prefix("file://") {
            return match path.starts_with('/') {
                true => Ok(Place::Directory(path.into())),
                false => Err(format!("{url}: a file URL has a whole path, like file:///mnt/shared/durable")),
            };
        }
        if let Some(bucket) = url.strip_prefix("s3://") {
            return match bucket.split('/').next().is_some_and(|bucket| !bucket.is_empty()) {
                true => Ok(Place::Bucket(url.to_owned())),
                false => Err(format!("{url} names no bucket, as s3://bucket/prefix does")),
            };
        }
        match url.starts_with('/') {
            true => Ok(Place::Directory(url.into())),
            false => Err(format!(
                "{url} is no place for durable copies: it must be file:///a/directory or s3://bucket/prefix"
            )),
        }
    }
}

/// Whether durable copies could be kept there, as far as its name tells.
///
/// # Errors
/// Why not.
pub fn check_durable_url(url: &str) -> Result<(), String> {
    Place::parse(url).map(drop)
}

/// The storage at this URL, and where in it.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn open_storage(url: &str) -> Result<(Arc<dyn ObjectStore>, Path), String> {
    Ok(match Place::parse(url)? {
        Place::Directory(dir) => {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .map_err(|error| format!("cannot make directory {}: {error}", dir.display()))?;
            let store = LocalFileSystem::new_with_prefix(&dir).map_err(|error| explain(&error))?;
            (Arc::new(store.with_fsync(true)), Path::default())
        }
        Place::Bucket(url) => {
            let prefix = url.trim_start_matches("s3://").split_once('/').map_or("", |(_, path)| path);
            let retry = RetryConfig { max_retries: 5, retry_timeout: PATIENCE, ..RetryConfig::default() };
            let mut builder = AmazonS3Builder::from_env().with_url(&url).with_retry(retry);
            let endpoint = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];
            if let Some(endpoint) = endpoint.iter().find_map(|name| std::env::var(name).ok()) {
                builder = builder.with_allow_http(endpoint.starts_with("http://")).with_endpoint(endpoint);
            }
            let store = builder.build().map_err(|error| explain(&error))?;
            (Arc::new(store), Path::parse(prefix).map_err(|error| explain(&error))?)
        }
    })
}

/// An open storage.
struct Open {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    runtime: tokio::runtime::Handle,
    at_once: Semaphore,
}

pub(super) struct Durable {
    url: String,
    open: Mutex<Option<Arc<Open>>>,
    /// What this daemon wrote and did not delete.
    written: Mutex<BTreeSet<ObjectId>>,
}

impl Durable {
    pub(super) fn new(url: String) -> Durable {
        Durable { url, open: Mutex::default(), written: Mutex::default() }
    }

    /// Where to, for people.
    pub(super) fn place(&self) -> &str {
        &self.url
    }

    /// Blocks for as long as a directory takes to make.
    fn open(&self) -> Result<Arc<Open>, String> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = &*open {
            return Ok(open.clone());
        }
        let (store, prefix) = open_storage(&self.url)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| format!("cannot start a thread for it: {error}"))?;
        let handle = runtime.handle().clone();
        std::thread::Builder::new()
            .name("durable".to_owned())
            .spawn(move || runtime.block_on(std::future::pending::<()>()))
            .map_err(|error| format!("cannot start a thread for it: {error}"))?;
        let at_once = Semaphore::new(OBJECTS_AT_ONCE);
        Ok(open.insert(Arc::new(Open { store, prefix, runtime: handle, at_once })).clone())
    }

    /// Does this with the storage, on its own thread, when its turn comes.
    ///
    /// # Errors
    /// There is no storage.
    pub(super) fn run<Work, Done>(self: &Arc<Self>, work: Work) -> Result<(), String>
    where
        Work: FnOnce(Turn) -> Done + Send + 'static,
        Done: Future<Output = ()> + Send,
    {
        let open = self.open()?;
        let durable = self.clone();
        open.runtime.clone().spawn(async move {
            let _turn = open.at_once.acquire().await;
            work(Turn { durable, open: open.clone() }).await;
        });
        Ok(())
    }

    /// The cluster ends with this daemon, and nobody will ask for anything any more.
    pub(super) fn delete_all(&self, writer: NodeId) {
        let written = std::mem::take(&mut *self.written.lock().unwrap_or_else(PoisonError::into_inner));
        let Ok(open) = self.open() else { return };
        let cleaning = async {
            for object in written {
                let _ = open.store.delete(&open.path(object, writer)).await;
            }
        };
        let clean = || {
            let _ = open.runtime.block_on(async { tokio::time::timeout(CLEANING, cleaning).await });
        };
        // Not on a thread of the daemon's own runtime, which must not block.
        std::thread::scope(|scope| drop(scope.spawn(clean).join()));
    }

    /// Whether there is anything to delete.
    pub(super) fn is_empty(&self) -> bool {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

/// One of the few that use the storage at a time.
pub(super) struct Turn {
    durable: Arc<Durable>,
    open: Arc<Open>,
}

impl Turn {
    /// Writes these bytes whole or not at all.
    pub(super) async fn write(&self, object: ObjectId, writer: NodeId, bytes: &[u8]) -> Result<(), String> {
        let path = self.open.path(object, writer);
        self.write_to(&path, bytes).await.map_err(|error| explain(&error))?;
        self.durable.written.lock().unwrap_or_else(PoisonError::into_inner).insert(object);
        Ok(())
    }

    async fn write_to(&self, path: &Path, bytes: &[u8]) -> object_store::Result<()> {
        let store = &self.open.store;
        if bytes.len() <= PART {
            return store.put(path, bytes::Bytes::copy_from_slice(bytes).into()).await.map(drop);
        }
        let mut parts = WriteMultipart::new_with_chunk_size(store.put_multipart(path).await?, PART);
        for part in bytes.chunks(PART) {
            parts.wait_for_capacity(PARTS_AT_ONCE).await?;
            parts.write(part);
        }
        parts.finish().await.map(drop)
    }

    /// Reads the whole of it into this memory.
    pub(super) async fn read(
        &self,
        object: ObjectId,
        writer: NodeId,
        into: &mut WriteBuf,
    ) -> Result<(), String> {
        let path = self.open.path(object, writer);
        let found = self.open.store.get(&path).await.map_err(|error| explain(&error))?;
        if found.meta.size != into.len() as u64 {
            return Err(format!("{path} has {} bytes, not {}", found.meta.size, into.len()));
        }
        let mut stream = found.into_stream();
        let mut at = 0;
        while let Some(part) = stream.next().await {
            let part = part.map_err(|error| explain(&error))?;
            let Some(place) = into.get_mut(at..at + part.len()) else {
                return Err(format!("{path} is longer than it says"));
            };
            place.copy_from_slice(&part);
            at += part.len();
        }
        match at == into.len() {
            true => Ok(()),
            false => Err(format!("{path} ends after {at} of {} bytes", into.len())),
        }
    }

    pub(super) async fn delete(&self, object: ObjectId, writer: NodeId) -> Result<(), String> {
        self.durable.written.lock().unwrap_or_else(PoisonError::into_inner).remove(&object);
        match self.open.store.delete(&self.open.path(object, writer)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(explain(&error)),
        }
    }
}

impl Open {
    fn path(&self, object: ObjectId, writer: NodeId) -> Path {
        self.prefix.clone().join(format!("{object}.{writer}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        assert_eq!(Place::parse("file:///a/b"), Ok(Place::Directory("/a/b".into())));
        assert_eq!(Place::parse("/a/b"), Ok(Place::Directory("/a/b".into())));
        assert_eq!(Place::parse("s3://bucket/a/b"), Ok(Place::Bucket("s3://bucket/a/b".to_owned())));
        for wrong in ["file://a/b", "s3://", "s3:///a", "gs://bucket", "a/b", ""] {
            assert!(Place::parse(wrong).is_err(), "{wrong}");
        }
    }
}
