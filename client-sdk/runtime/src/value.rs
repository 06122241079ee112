//! Values: being written, written, and read.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;
use cluster_store::copy::copy_into;
use cluster_store::layout::{Kind, Layout, LayoutError};
use cluster_store::segment::{ReadBuf, WriteBuf};
use cluster_types::client_node::PutValue;
use cluster_types::{Failure, INLINE_MAX, ObjectId};

use crate::shared::Shared;

/// Memory for one value that is about to be written: small values on the heap, others in this process's own lease of
/// the store. Dropped, it leaves nothing.
#[derive(Debug)]
pub struct Draft {
    pub(crate) layout: Layout,
    pub(crate) memory: Memory,
}

#[derive(Debug)]
pub(crate) enum Memory {
    Heap(Vec<u8>),
    Store(WriteBuf),
}

impl Draft {
    /// Copies the parts in, large ones with two threads: release the GIL around it. The lengths must be those reserved.
    ///
    /// # Errors
    /// If they are not.
    pub fn write(mut self, in_band: &[u8], buffers: &[&[u8]]) -> Result<Parcel, LayoutError> {
        let lengths = self.layout.buffers().iter().map(|range| range.len());
        if !lengths.eq(buffers.iter().map(|buffer| buffer.len())) {
            return Err(LayoutError::PlanMismatch);
        }
        let dst: &mut [u8] = match &mut self.memory {
            Memory::Heap(bytes) => bytes,
            Memory::Store(buf) => buf,
        };
        self.layout.write_prefix(dst, in_band)?;
        for (range, buffer) in self.layout.buffers().iter().zip(buffers) {
            copy_into(&mut dst[range.clone()], buffer);
        }
        let content = match self.memory {
            Memory::Heap(bytes) => ParcelContent::Inline(bytes.into()),
            Memory::Store(buf) => ParcelContent::Stored(buf),
        };
        Ok(Parcel { content })
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
    content: ParcelContent,
}

#[derive(Debug)]
enum ParcelContent {
    Inline(Bytes),
    Stored(WriteBuf),
}

impl Parcel {
    /// A small value without buffers: `in_band` may have up to [`INLINE_MAX`] - 8 bytes, else use
    /// [`crate::Client::reserve`]. `None` if it is longer.
    pub fn small(kind: Kind, in_band: &[u8]) -> Option<Parcel> {
        if in_band.len() > INLINE_MAX {
            return None;
        }
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

    pub(crate) fn into_put_value(self) -> PutValue {
        match self.content {
            ParcelContent::Inline(bytes) => PutValue::Inline(bytes),
            ParcelContent::Stored(buf) => PutValue::Stored(buf.seal()),
        }
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
    inner: ValueInner,
}

#[derive(Clone, Debug)]
enum ValueInner {
    Inline(Bytes),
    /// The pin is only held, and dropped with the last clone.
    View(ReadBuf, #[expect(dead_code, reason = "held for its end")] Arc<Pin>),
}

impl ValueBytes {
    pub(crate) fn inline(bytes: Bytes) -> ValueBytes {
        ValueBytes { inner: ValueInner::Inline(bytes) }
    }

    pub(crate) fn view(buf: ReadBuf, pin: Pin) -> ValueBytes {
        ValueBytes { inner: ValueInner::View(buf, Arc::new(pin)) }
    }

    /// Whether the bytes lie in shared memory (views of them cost nothing and pin the object) rather than on the heap.
    pub fn is_shared(&self) -> bool {
        matches!(self.inner, ValueInner::View(..))
    }
}

impl From<Bytes> for ValueBytes {
    /// An inline payload, say.
    fn from(bytes: Bytes) -> ValueBytes {
        ValueBytes::inline(bytes)
    }
}

impl Deref for ValueBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.inner {
            ValueInner::Inline(bytes) => bytes,
            ValueInner::View(buf, _) => buf,
        }
    }
}

impl AsRef<[u8]> for ValueBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// Counts as a view of the object until it is dropped. Never dropped under the client's lock, which it takes.
pub(crate) struct Pin {
    pub(crate) shared: Arc<Shared>,
    pub(crate) object: ObjectId,
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pin").field(&self.object).finish()
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if self.shared.is_forked() {
            return;
        }
        let mut inner = self.shared.lock();
        inner.core.drop_view(self.object);
        self.shared.after_change(inner);
    }
}
