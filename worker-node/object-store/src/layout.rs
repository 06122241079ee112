//! How a value lies in bytes: in a segment, in a spill file, on the wire and inline in a message, always the same.
//!
//! ```text
//! short form (no buffers, in-band below 4 GiB)      long form
//! 0  magic and version                              0   magic and version
//! 1  kind                                           1   kind
//! 2  form = 0                                       2   form = 1
//! 3  0                                              3   0
//! 4  in-band length, u32                            4   buffer count, u32
//! 8  in-band bytes                                  8   in-band length, u64
//!                                                   16  (offset u64, length u64) for each buffer
//!                                                   ..  in-band bytes
//!                                                   ..  buffers, each at a multiple of 64
//! ```
//!
//! Integers are little-endian, offsets count from the value's first byte. Because ranges in segments and spill files
//! are aligned to 64 too, a buffer is aligned in memory wherever the value is mapped. Most values are small and have
//! no buffers, so they pay eight bytes.

use std::ops::Range;

/// The alignment of every buffer, relative to the start of its value, in bytes: a cache line, and what SIMD code
/// over NumPy and Arrow buffers likes.
pub const ALIGN: usize = 64;

/// First byte of each value; its low half is the version of the layout.
const MAGIC: u8 = 0xC1;
const SHORT: u8 = 0;
const LONG: u8 = 1;
const SHORT_HEADER: usize = 8;
const LONG_HEADER: usize = 16;
const TABLE_ENTRY: usize = 16;

/// How the in-band bytes are encoded. Unknown kinds are carried, not rejected: only the reader that decodes a value
/// needs to know its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kind(pub u8);

impl Kind {
    /// Bytes as the user gave them.
    pub const RAW: Kind = Kind(0);
    /// A Python value: pickle protocol 5, its out-of-band buffers behind it.
    pub const PICKLE5: Kind = Kind(1);
    /// A Rust value in bincode.
    pub const BINCODE: Kind = Kind(2);
    /// The failure of the task that should have made this value.
    pub const ERROR: Kind = Kind(3);
    /// A value that every language reads: MessagePack, whose extension 1 is an array (its numbers in a buffer behind
    /// it) and whose extension 2 is a reference to an object.
    pub const PLAIN: Kind = Kind(4);
}

/// Why bytes are not a value, or cannot become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The bytes end before the part that is named.
    #[error("the value is cut off: its {part} needs {needed} bytes, there are {have}")]
    Truncated {
        /// The part that does not fit.
        part: &'static str,
        /// Bytes needed, from the value's start.
        needed: u64,
        /// Bytes there are.
        have: u64,
    },
    /// The first byte is of another version, or the bytes were never a value.
    #[error("not a value, or one of another version (first byte {0:#04x})")]
    Magic(u8),
    /// The header's form byte or its reserved byte has no meaning.
    #[error("the value's header is malformed")]
    Header,
    /// A buffer lies off its alignment or over what precedes it.
    #[error("buffer {index} of the value is misplaced")]
    Misplaced {
        /// Which buffer, from 0.
        index: u32,
    },
    /// The parts together are longer than can be addressed, or more than `u32::MAX` buffers.
    #[error("the value is too large to lay out")]
    TooLarge,
    /// The memory to write to is not as long as the plan says.
    #[error("the value needs {needed} bytes, its destination has {have}")]
    Destination {
        /// The plan's total length in bytes.
        needed: usize,
        /// The destination's length in bytes.
        have: usize,
    },
    /// The parts given to write are not as long as those planned.
    #[error("the parts written differ from those planned")]
    PlanMismatch,
}

/// A plan of where each part of a value goes, made before any memory is asked for.
///
/// ```
/// use cluster_store::layout::{Kind, Layout, View};
///
/// let array = vec![7u8; 1000];
/// let layout = Layout::plan(Kind::PICKLE5, 5, &[array.len()])?;
/// let mut memory = vec![0; layout.total_len()];
/// layout.write_prefix(&mut memory, b"hello")?;
/// memory[layout.buffer(0).unwrap()].copy_from_slice(&array);
///
/// let view = View::parse(&memory)?;
/// assert_eq!((view.kind(), view.in_band()), (Kind::PICKLE5, &b"hello"[..]));
/// assert_eq!(view.buffer(0), Some(&array[..]));
/// # Ok::<(), cluster_store::layout::LayoutError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    kind: Kind,
    in_band: Range<usize>,
    buffers: Vec<Range<usize>>,
    total_len: usize,
}

impl Layout {
    /// Plans a value with `in_band_len` bytes in-band and one out-of-band buffer for each length in `buffer_lens`.
    ///
    /// # Errors
    /// [`LayoutError::TooLarge`] if the total overflows or there are more than `u32::MAX` buffers.
    pub fn plan(kind: Kind, in_band_len: usize, buffer_lens: &[usize]) -> Result<Layout, LayoutError> {
        let short = buffer_lens.is_empty() && u32::try_from(in_band_len).is_ok();
        if u32::try_from(buffer_lens.len()).is_err() {
            return Err(LayoutError::TooLarge);
        }
        let start = if short { SHORT_HEADER } else { LONG_HEADER + TABLE_ENTRY * buffer_lens.len() };
        let mut end = start.checked_add(in_band_len).ok_or(LayoutError::TooLarge)?;
        let in_band = start..end;
        let mut buffers = Vec::with_capacity(buffer_lens.len());
        for &len in buffer_lens {
            let at = end.checked_next_multiple_of(ALIGN).ok_or(LayoutError::TooLarge)?;
            end = at.checked_add(len).ok_or(LayoutError::TooLarge)?;
            buffers.push(at..end);
        }
        Ok(Layout { kind, in_band, buffers, total_len: end })
    }

    /// All bytes of the value, header and padding included.
    pub fn total_len(&self) -> usize {
        self.total_len
    }

    /// The encoding of the in-band part.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where buffer `index` goes, relative to the value's start.
    pub fn buffer(&self, index: usize) -> Option<Range<usize>> {
        self.buffers.get(index).cloned()
    }

    /// Where the buffers go, in order.
    pub fn buffers(&self) -> &[Range<usize>] {
        &self.buffers
    }

    /// Where the in-band bytes go.
    pub fn in_band(&self) -> Range<usize> {
        self.in_band.clone()
    }

    /// What comes before the in-band bytes, for who writes the parts one by one. What is between the parts is zero.
    pub fn head(&self) -> Vec<u8> {
        let mut head = vec![0; self.in_band.start];
        self.write_head(&mut head);
        head
    }

    /// Writes header, table and in-band bytes, and zeroes the padding, so that recycled memory shows nothing of what
    /// it held before. The buffers are the caller's to copy, into [`Layout::buffer`].
    ///
    /// # Errors
    /// [`LayoutError::Destination`] or [`LayoutError::PlanMismatch`] if a length differs from the plan; nothing was
    /// written then. `dst` may be longer than the value.
    pub fn write_prefix(&self, dst: &mut [u8], in_band: &[u8]) -> Result<(), LayoutError> {
        if dst.len() < self.total_len {
            return Err(LayoutError::Destination { needed: self.total_len, have: dst.len() });
        }
        if in_band.len() != self.in_band.len() {
            return Err(LayoutError::PlanMismatch);
        }
        self.write_head(dst);
        dst[self.in_band.clone()].copy_from_slice(in_band);
        let mut end = self.in_band.end;
        for range in &self.buffers {
            dst[end..range.start].fill(0);
            end = range.end;
        }
        Ok(())
    }

    /// `dst` has room for it.
    fn write_head(&self, dst: &mut [u8]) {
        let in_band = self.in_band.len();
        if self.in_band.start == SHORT_HEADER {
            dst[..4].copy_from_slice(&[MAGIC, self.kind.0, SHORT, 0]);
            dst[4..8].copy_from_slice(&(in_band as u32).to_le_bytes());
        } else {
            dst[..4].copy_from_slice(&[MAGIC, self.kind.0, LONG, 0]);
            dst[4..8].copy_from_slice(&(self.buffers.len() as u32).to_le_bytes());
            dst[8..16].copy_from_slice(&(in_band as u64).to_le_bytes());
            for (entry, range) in dst[LONG_HEADER..].chunks_exact_mut(TABLE_ENTRY).zip(&self.buffers) {
                entry[..8].copy_from_slice(&(range.start as u64).to_le_bytes());
                entry[8..].copy_from_slice(&(range.len() as u64).to_le_bytes());
            }
        }
    }

    /// Plans and writes a whole value into memory of its own: for small values, and for tests.
    ///
    /// # Errors
    /// As [`Layout::plan`].
    pub fn encode(kind: Kind, in_band: &[u8], buffers: &[&[u8]]) -> Result<Vec<u8>, LayoutError> {
        let lens: Vec<usize> = buffers.iter().map(|b| b.len()).collect();
        let layout = Layout::plan(kind, in_band.len(), &lens)?;
        let mut dst = vec![0; layout.total_len];
        layout.write_prefix(&mut dst, in_band)?;
        for (range, buffer) in layout.buffers.iter().zip(buffers) {
            dst[range.clone()].copy_from_slice(buffer);
        }
        Ok(dst)
    }
}

/// A value read in place. Everything was checked by [`View::parse`], so the accessors cannot fail on odd bytes.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    bytes: &'a [u8],
    kind: Kind,
    in_band_start: usize,
    in_band_len: usize,
    /// Zero in the short form.
    buffers: u32,
    total_len: usize,
}

impl<'a> View<'a> {
    /// Checks the header and every offset of the value at the start of `bytes`, which may be longer than the value
    /// (a range is rounded up).
    ///
    /// # Errors
    /// What is wrong with the bytes. Never panics, whatever they are.
    pub fn parse(bytes: &'a [u8]) -> Result<View<'a>, LayoutError> {
        let have = bytes.len() as u64;
        let truncated = |part, needed| LayoutError::Truncated { part, needed, have };
        let head: [u8; 8] = read(bytes, 0).ok_or(truncated("header", SHORT_HEADER as u64))?;
        if head[0] != MAGIC {
            return Err(LayoutError::Magic(head[0]));
        }
        let word = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        let (buffers, in_band_start, in_band_len) = match (head[2], head[3]) {
            (SHORT, 0) => (0, SHORT_HEADER as u64, u64::from(word)),
            (LONG, 0) => {
                let len = read_u64(bytes, 8).ok_or(truncated("header", LONG_HEADER as u64))?;
                // Cannot overflow: a u32 times 16.
                (word, LONG_HEADER as u64 + TABLE_ENTRY as u64 * u64::from(word), len)
            }
            _ => return Err(LayoutError::Header),
        };
        if in_band_start > have {
            return Err(truncated("buffer table", in_band_start));
        }
        let in_band_end = in_band_start.saturating_add(in_band_len);
        if in_band_end > have {
            return Err(truncated("in-band part", in_band_end));
        }
        let mut end = in_band_end;
        for index in 0..buffers {
            let (offset, len) = table_entry(bytes, index).ok_or(truncated("buffer table", in_band_start))?;
            if offset < end || !offset.is_multiple_of(ALIGN as u64) {
                return Err(LayoutError::Misplaced { index });
            }
            end = offset.saturating_add(len);
            if end > have {
                return Err(truncated("buffer", end));
            }
        }
        // All are at most `have`, which came from a usize.
        Ok(View {
            bytes,
            kind: Kind(head[1]),
            in_band_start: in_band_start as usize,
            in_band_len: in_band_len as usize,
            buffers,
            total_len: end as usize,
        })
    }

    /// How the in-band bytes are encoded.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// All bytes of the value, without what follows it in its range.
    pub fn total_len(&self) -> usize {
        self.total_len
    }

    /// The in-band bytes.
    pub fn in_band(&self) -> &'a [u8] {
        &self.bytes[self.in_band_start..self.in_band_start + self.in_band_len]
    }

    /// How many out-of-band buffers there are.
    pub fn buffer_count(&self) -> usize {
        self.buffers as usize
    }

    /// Where buffer `index` lies, relative to the value's start: what a view into a mapping needs.
    pub fn buffer_range(&self, index: usize) -> Option<Range<usize>> {
        let index = u32::try_from(index).ok().filter(|&i| i < self.buffers)?;
        let (offset, len) = table_entry(self.bytes, index)?;
        Some(offset as usize..(offset + len) as usize)
    }

    /// The bytes of buffer `index`.
    pub fn buffer(&self, index: usize) -> Option<&'a [u8]> {
        self.bytes.get(self.buffer_range(index)?)
    }

    /// The buffers in order.
    pub fn buffers(&self) -> impl Iterator<Item = &'a [u8]> {
        let view = *self;
        (0..view.buffer_count()).filter_map(move |i| view.buffer(i))
    }
}

fn read<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    read(bytes, at).map(u64::from_le_bytes)
}

fn table_entry(bytes: &[u8], index: u32) -> Option<(u64, u64)> {
    let at = LONG_HEADER + TABLE_ENTRY * index as usize;
    Some((read_u64(bytes, at)?, read_u64(bytes, at + 8)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_small_value_pays_eight_bytes() {
        let bytes = Layout::encode(Kind::PICKLE5, b"x", &[]).unwrap();
        assert_eq!(bytes.len(), 9);
        assert_eq!(View::parse(&bytes).unwrap().in_band(), b"x");
    }

    #[test]
    fn a_range_may_be_longer_than_its_value() {
        let mut bytes = Layout::encode(Kind::RAW, b"abc", &[]).unwrap();
        bytes.extend([0xFF; 50]);
        let view = View::parse(&bytes).unwrap();
        assert_eq!((view.in_band(), view.total_len()), (&b"abc"[..], 11));
    }

    #[test]
    fn padding_of_recycled_memory_is_zeroed() {
        let layout = Layout::plan(Kind::RAW, 3, &[1, 1]).unwrap();
        let mut dst = vec![0xEE; layout.total_len()];
        layout.write_prefix(&mut dst, b"abc").unwrap();
        dst[layout.buffer(0).unwrap()].fill(1);
        dst[layout.buffer(1).unwrap()].fill(1);
        assert!(!dst.contains(&0xEE));
    }

    #[test]
    fn a_plan_too_large_is_an_error() {
        assert_eq!(Layout::plan(Kind::RAW, usize::MAX, &[]), Err(LayoutError::TooLarge));
        assert_eq!(Layout::plan(Kind::RAW, 8, &[usize::MAX - 100, 200]), Err(LayoutError::TooLarge));
    }

    #[test]
    fn bad_headers_are_named() {
        assert!(matches!(View::parse(b""), Err(LayoutError::Truncated { part: "header", .. })));
        assert_eq!(View::parse(&[0; 8]).unwrap_err(), LayoutError::Magic(0));
        assert_eq!(View::parse(&[MAGIC, 0, 2, 0, 0, 0, 0, 0]).unwrap_err(), LayoutError::Header);
        let mut overlap = Layout::encode(Kind::RAW, b"abc", &[b"buffer"]).unwrap();
        overlap[16] = 0;
        assert_eq!(View::parse(&overlap).unwrap_err(), LayoutError::Misplaced { index: 0 });
    }

    fn touch(view: &View<'_>) -> usize {
        view.in_band().len() + view.buffers().map(<[u8]>::len).sum::<usize>()
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            kind: u8,
            in_band in proptest::collection::vec(any::<u8>(), 0..200),
            buffers in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..6),
        ) {
            let parts: Vec<&[u8]> = buffers.iter().map(Vec::as_slice).collect();
            let bytes = Layout::encode(Kind(kind), &in_band, &parts).unwrap();
            let view = View::parse(&bytes).unwrap();
            prop_assert_eq!(view.kind(), Kind(kind));
            prop_assert_eq!(view.in_band(), &in_band[..]);
            prop_assert_eq!(view.buffers().collect::<Vec<_>>(), parts);
            prop_assert_eq!(view.total_len(), bytes.len());
            for i in 0..view.buffer_count() {
                prop_assert_eq!(view.buffer_range(i).unwrap().start % ALIGN, 0);
            }
            for cut in 0..bytes.len() {
                prop_assert!(View::parse(&bytes[..cut]).is_err());
            }
        }

        #[test]
        fn garbage_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), form in 0u8..2) {
            if let Ok(view) = View::parse(&bytes) { touch(&view); }
            if bytes.len() > 3 {
                bytes[0] = MAGIC;
                bytes[2] = form;
                bytes[3] = 0;
            }
            if bytes.len() > 7 {
                bytes[5..8].fill(0);
            }
            if let Ok(view) = View::parse(&bytes) { prop_assert!(touch(&view) <= bytes.len()); }
        }

        #[test]
        fn a_flipped_byte_never_panics(at in 0usize..400, to: u8) {
            let mut bytes = Layout::encode(Kind::RAW, &[1; 70], &[&[2; 100], &[3; 64]]).unwrap();
            let at = at % bytes.len();
            bytes[at] = to;
            if let Ok(view) = View::parse(&bytes) { prop_assert!(touch(&view) <= bytes.len()); }
        }
    }
}
