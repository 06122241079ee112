//! Values: being written, written, and read.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;
use cluster_store::copy::copy_into;
use cluster_store::layout::{Kind, Layout, LayoutError};
use cluster_store::segment::{ReadBuf, WriteBuf};
use cluster_types::client_node::PutValue;
use cluster_types::{Failure, INLINE_MAX, ObjectId, Refs};

use crate::far::FarRange;
use crate::shared::{Inner, Shared};
use crate::{ClientError, Interrupt};

/// Memory for one value that is about to be written: small values on the heap, others in this process's own lease of
/// the store, which is on another machine where the process shares no memory with its daemon. Dropped, it leaves nothing.
#[derive(Debug)]
pub struct Draft {
    pub(crate) layout: Layout,
    pub(crate) memory: Memory,
}

#[derive(Debug)]
pub(crate) enum Memory {
    Heap(Vec<u8>),
    Store(WriteBuf),
    Far(FarRange),
}

impl Draft {
    /// Copies the parts in, large ones with two threads: release the GIL around it. The lengths must be those reserved.
    /// Waits only where they travel to another machine.
    ///
    /// # Errors
    /// If the lengths are not those; on the way to another machine, if the connection is of no use any more or the wait
    /// was interrupted.
    pub fn write(
        self,
        in_band: &[u8],
        buffers: &[&[u8]],
        interrupt: Interrupt<'_>,
    ) -> Result<Parcel, ClientError> {
        let lengths = self.layout.buffers().iter().map(|range| range.len());
        if !lengths.eq(buffers.iter().map(|buffer| buffer.len())) {
            return Err(LayoutError::PlanMismatch.into());
        }
        let layout = &self.layout;
        let fill = |dst: &mut [u8]| -> Result<(), LayoutError> {
            layout.write_prefix(dst, in_band)?;
            for (range, buffer) in layout.buffers().iter().zip(buffers) {
                copy_into(&mut dst[range.clone()], buffer);
            }
            Ok(())
        };
        let content = match self.memory {
            Memory::Heap(mut bytes) => {
                fill(&mut bytes)?;
                ParcelContent::Inline(bytes.into())
            }
            Memory::Store(mut buf) => {
                fill(&mut buf)?;
                ParcelContent::Stored(buf)
            }
            Memory::Far(range) => {
                if in_band.len() != layout.in_band().len() {
                    return Err(LayoutError::PlanMismatch.into());
                }
                range.write(0, &layout.head(), interrupt)?;
                range.write(layout.in_band().start, in_band, interrupt)?;
                for (place, buffer) in layout.buffers().iter().zip(buffers) {
                    range.write(place.start, buffer, interrupt)?;
                }
                ParcelContent::Far(range)
            }
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
    Far(FarRange),
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
            ParcelContent::Far(range) => range.len(),
        }
    }

    /// Never true: a value has a header.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of a small value.
    ///
    /// # Errors
    /// The parcel, if it is not small.
    pub(crate) fn into_small(self) -> Result<Bytes, Parcel> {
        match self.content {
            ParcelContent::Inline(bytes) if bytes.len() <= INLINE_MAX => Ok(bytes),
            content => Err(Parcel { content }),
        }
    }

    /// Makes an object of it.
    pub(crate) fn put(self, inner: &mut Inner, contains: Refs) -> ObjectId {
        match self.content {
            ParcelContent::Inline(bytes) => {
                let small = bytes.len() <= INLINE_MAX;
                inner.core.put(PutValue::Inline(bytes), contains, small)
            }
            ParcelContent::Stored(buf) => inner.core.put(PutValue::Stored(buf.seal()), contains, false),
            ParcelContent::Far(range) => inner.core.put_far(range.seal(), contains),
        }
    }

    /// What an executor says of a value that it returns. Executors share memory with their daemon.
    pub(crate) fn into_put_value(self) -> PutValue {
        match self.content {
            ParcelContent::Inline(bytes) => PutValue::Inline(bytes),
            ParcelContent::Stored(buf) => PutValue::Stored(buf.seal()),
            ParcelContent::Far(range) => PutValue::Stored(range.seal()),
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
