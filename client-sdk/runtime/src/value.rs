//! Values: being written, written, and read.

use std::ops::Deref;

use bytes::Bytes;
use cluster_store::layout::{Kind, Layout, LayoutError};
use cluster_store::segment::{ReadBuf, WriteBuf};
use cluster_types::{Failure, INLINE_MAX};

/// Memory for one value that is about to be written: small values on the heap, others in this process's own lease of
/// the store. Dropped, it leaves nothing.
#[derive(Debug)]
pub struct Draft {
    layout: Layout,
    memory: Memory,
}

#[derive(Debug)]
enum Memory {
    Heap(Vec<u8>),
    Store(WriteBuf),
}

impl Draft {
    /// Copies the parts in, large ones with two threads: release the GIL around it. The lengths must be those reserved.
    ///
    /// # Errors
    /// If they are not.
    pub fn write(mut self, in_band: &[u8], buffers: &[&[u8]]) -> Result<Parcel, LayoutError> {
        let _ = (&mut self, in_band, buffers);
        Err(LayoutError::PlanMismatch)
    }

    /// The value's length in bytes, header included.
    pub fn len(&self) -> usize {
        self.layout.total_len()
    }

    /// Never true: a value has a header.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Whether the value is small enough that writing it needs no thought about the GIL.
    pub fn is_small(&self) -> bool {
        self.len() <= INLINE_MAX
    }
}

/// A whole value that is no object yet: put it, pass it as a task's arguments, or return it from a task. Dropped, it
/// leaves nothing.
#[derive(Debug)]
pub struct Parcel {
    pub(crate) content: ParcelContent,
}

#[derive(Debug)]
pub(crate) enum ParcelContent {
    Inline(Bytes),
    Stored(WriteBuf),
}

impl Parcel {
    /// A small value without buffers: `in_band` may have up to [`INLINE_MAX`] - 8 bytes, else use
    /// [`crate::Client::reserve`]. `None` if it is longer.
    pub fn small(kind: Kind, in_band: &[u8]) -> Option<Parcel> {
        let bytes = Layout::encode(kind, in_band, &[]).ok().filter(|bytes| bytes.len() <= INLINE_MAX)?;
        Some(Parcel { content: ParcelContent::Inline(bytes.into()) })
    }

    /// In bytes, header included.
    pub fn len(&self) -> usize {
        match &self.content {
            ParcelContent::Inline(bytes) => bytes.len(),
            ParcelContent::Stored(buf) => buf.len(),
        }
    }

    /// Never true: a value has a header.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What became of an object.
#[derive(Clone, Debug)]
pub enum Got {
    /// Its value: parse it with [`cluster_store::layout::View::parse`].
    Value(ValueBytes),
    /// There will be no value.
    Failed(Failure),
}

/// The bytes of a value, read in place. While any clone lives, the memory stays as it is (rule P1).
#[derive(Clone, Debug)]
pub struct ValueBytes {
    pub(crate) inner: ValueInner,
}

#[derive(Clone, Debug)]
pub(crate) enum ValueInner {
    Inline(Bytes),
    #[expect(dead_code, reason = "made by the next change")]
    View(ReadBuf),
}

impl ValueBytes {
    /// Whether the bytes lie in shared memory (views of them cost nothing and pin the object) rather than on the heap.
    pub fn is_shared(&self) -> bool {
        matches!(self.inner, ValueInner::View(_))
    }
}

impl Deref for ValueBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.inner {
            ValueInner::Inline(bytes) => bytes,
            ValueInner::View(buf) => buf,
        }
    }
}
