//! The allocator itself: slots from slabs, and extents.

use std::collections::{BTreeMap, BTreeSet};

use super::classes::{self, Class};
use super::extents::{Extents, PAGE, Pages};
use cluster_types::{Location, SegmentId};

/// A misuse of the allocator. It is left as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// The segment is leased to this writer already.
    #[error("segment {0:?} was added before")]
    SegmentKnown(SegmentId),
    /// The length is not a positive multiple of 4096 bytes below 16 TiB.
    #[error("a segment cannot be {0} bytes long")]
    SegmentLen(u64),
    /// Not a range that was allocated, with just this length, and not freed since.
    #[error("{0:?} is not allocated")]
    NotAllocated(Location),
}

/// What the allocator holds, in bytes where not said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// All segments leased to this writer.
    pub reserved: u64,
    /// Of these, segments with nothing in them.
    pub idle: u64,
    /// What was asked for and not freed, before any rounding.
    pub live: u64,
    /// How many ranges are allocated.
    pub live_ranges: u64,
}

impl Stats {
    /// What the live ranges cost: the segments that cannot be handed back.
    pub fn footprint(&self) -> u64 {
        self.reserved - self.idle
    }
}

/// A range just allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// The range, aligned to 64 bytes, as long as asked for.
    pub range: Location,
    /// Pages never used before that had to be taken: worth populating in one call if there are many, because each
    /// would cost a fault on its first write. It may reach beyond `range`, when a slab was begun.
    pub fresh: Option<Location>,
}

/// Allocates ranges from the segments leased to one writer. All operations are logarithmic in what is allocated.
///
/// ```
/// use cluster_store::{SegmentId, alloc::Allocator};
///
/// let mut allocator = Allocator::new();
/// assert_eq!(allocator.alloc(100), None); // ask the daemon for a segment of segment_len(100) or more
/// allocator.add_segment(SegmentId(1), 64 << 20)?;
/// let range = allocator.alloc(100).unwrap();
/// allocator.free(range)?;
/// assert_eq!(allocator.take_free_segments(0), [SegmentId(1)]);
/// # Ok::<(), cluster_store::alloc::AllocError>(())
/// ```
#[derive(Debug)]
pub struct Allocator {
    classes: Vec<Class>,
    extents: Extents,
    /// What each used extent is, by its first page.
    uses: BTreeMap<(SegmentId, u32), Use>,
    /// For each class its slabs with a free slot; the lowest is filled first, so that the others drain.
    open: Vec<BTreeSet<(SegmentId, u32)>>,
    stats: Stats,
}

#[derive(Debug)]
enum Use {
    Extent { len: u64 },
    Slab(Slab),
}

#[derive(Debug)]
struct Slab {
    class: usize,
    /// One more than the length of what is in each slot used so far; 0 is a free slot.
    lens: Vec<u32>,
    /// Free slots among those, the most recently freed last.
    free: Vec<u32>,
    live: u32,
}

impl Default for Allocator {
    fn default() -> Allocator {
        Allocator::new()
    }
}

impl Allocator {
    /// An allocator with no segments yet.
    pub fn new() -> Allocator {
        let classes = classes::classes();
        let open = vec![BTreeSet::new(); classes.len()];
        Allocator {
            classes,
            open,
            extents: Extents::default(),
            uses: BTreeMap::new(),
            stats: Stats::default(),
        }
    }

    /// The shortest segment, in bytes, in which `len` bytes can surely be allocated while it is empty.
    pub fn segment_len(len: u64) -> u64 {
        // A slab of the largest class is below 512 KiB.
        if len > classes::SLOT_MAX { len.saturating_add(PAGE - 1) / PAGE * PAGE } else { 512 << 10 }
    }

    /// Takes a segment into use.
    ///
    /// # Errors
    /// [`AllocError::SegmentLen`] and [`AllocError::SegmentKnown`].
    pub fn add_segment(&mut self, id: SegmentId, len: u64) -> Result<(), AllocError> {
        let pages =
            u32::try_from(len / PAGE).ok().filter(|&p| p > 0 && p < u32::MAX && len.is_multiple_of(PAGE));
        let pages = pages.ok_or(AllocError::SegmentLen(len))?;
        if !self.extents.add(id, pages) {
            return Err(AllocError::SegmentKnown(id));
        }
        self.stats.reserved += len;
        Ok(())
    }

    /// Allocates `len` bytes; `None` if no segment has room for it.
    pub fn alloc(&mut self, len: u64) -> Option<Location> {
        self.alloc_traced(len).map(|allocated| allocated.range)
    }

    /// As [`Allocator::alloc`], and says which pages are used for the first time.
    pub fn alloc_traced(&mut self, len: u64) -> Option<Allocated> {
        let allocated = match classes::class_of(len) {
            Some(class) => self.alloc_slot(class, len)?,
            None => self.alloc_extent(len)?,
        };
        self.stats.live += len;
        self.stats.live_ranges += 1;
        Some(allocated)
    }

    fn alloc_extent(&mut self, len: u64) -> Option<Allocated> {
        let need = u32::try_from(len.div_ceil(PAGE)).ok()?;
        let pages = self.extents.alloc(need)?;
        self.uses.insert((pages.segment, pages.page), Use::Extent { len });
        let range = Location { segment: pages.segment, offset: u64::from(pages.page) * PAGE, len };
        Some(Allocated { range, fresh: fresh(pages, need) })
    }

    fn alloc_slot(&mut self, class: usize, len: u64) -> Option<Allocated> {
        let shape = self.classes[class];
        let (key, fresh) = match self.open[class].first() {
            Some(&key) => (key, None),
            None => {
                let pages = self.extents.alloc(shape.slab_pages)?;
                let key = (pages.segment, pages.page);
                self.uses.insert(key, Use::Slab(Slab { class, lens: Vec::new(), free: Vec::new(), live: 0 }));
                self.open[class].insert(key);
                (key, fresh(pages, shape.slab_pages))
            }
        };
        let Some(Use::Slab(slab)) = self.uses.get_mut(&key) else {
            unreachable!("an open slab is in use");
        };
        let index = slab.free.pop().unwrap_or_else(|| {
            slab.lens.push(0);
            slab.lens.len() as u32 - 1
        });
        slab.lens[index as usize] = len as u32 + 1;
        slab.live += 1;
        if slab.live == shape.slots {
            self.open[class].remove(&key);
        }
        let offset = u64::from(key.1) * PAGE + u64::from(index) * shape.slot;
        Some(Allocated { range: Location { segment: key.0, offset, len }, fresh })
    }

    /// Frees a range that [`Allocator::alloc`] returned.
    ///
    /// # Errors
    /// [`AllocError::NotAllocated`] if it is not such a range, or was freed before.
    pub fn free(&mut self, range: Location) -> Result<(), AllocError> {
        self.release(range).ok_or(AllocError::NotAllocated(range))?;
        self.stats.live -= range.len;
        self.stats.live_ranges -= 1;
        Ok(())
    }

    fn release(&mut self, range: Location) -> Option<()> {
        let page = u32::try_from(range.offset / PAGE).ok()?;
        let (&key, used) = self.uses.range_mut(..=(range.segment, page)).next_back()?;
        if key.0 != range.segment {
            return None;
        }
        let start = u64::from(key.1) * PAGE;
        let pages = match used {
            Use::Extent { len } => {
                if range.offset != start || range.len != *len {
                    return None;
                }
                len.div_ceil(PAGE) as u32
            }
            Use::Slab(slab) => {
                let shape = self.classes[slab.class];
                if !(range.offset - start).is_multiple_of(shape.slot) {
                    return None;
                }
                let index = usize::try_from((range.offset - start) / shape.slot).ok()?;
                let len = slab.lens.get_mut(index)?;
                if u64::from(*len) != range.len.saturating_add(1) {
                    return None;
                }
                *len = 0;
                slab.free.push(index as u32);
                slab.live -= 1;
                let open = &mut self.open[slab.class];
                if slab.live > 0 {
                    if slab.live + 1 == shape.slots {
                        open.insert(key);
                    }
                    return Some(());
                }
                open.remove(&key);
                shape.slab_pages
            }
        };
        self.uses.remove(&key);
        self.extents.free(key.0, key.1, pages);
        Some(())
    }

    /// Gives up wholly free segments, the coldest first, as long as at least `keep_bytes` of wholly free segments
    /// stay. The caller unmaps them and hands them back to the daemon.
    pub fn take_free_segments(&mut self, keep_bytes: u64) -> Vec<SegmentId> {
        let taken = self.extents.take_idle(keep_bytes);
        self.stats.reserved -= taken.iter().map(|(_, len)| len).sum::<u64>();
        taken.into_iter().map(|(id, _)| id).collect()
    }

    /// Reserved and live bytes.
    pub fn stats(&self) -> Stats {
        Stats { idle: self.extents.idle_bytes(), ..self.stats }
    }
}

fn fresh(pages: Pages, all: u32) -> Option<Location> {
    (pages.fresh > 0).then(|| Location {
        segment: pages.segment,
        offset: u64::from(pages.page + all - pages.fresh) * PAGE,
        len: u64::from(pages.fresh) * PAGE,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn with_segments(lens: &[u64]) -> Allocator {
        let mut allocator = Allocator::new();
        for (i, &len) in lens.iter().enumerate() {
            allocator.add_segment(SegmentId(i as u32), len).unwrap();
        }
        allocator
    }

    #[test]
    fn a_large_range_is_reused_warm() {
        let mut allocator = with_segments(&[2048 * MIB, 2048 * MIB]);
        let first = allocator.alloc_traced(800_000_000).unwrap();
        assert!(first.fresh.is_some());
        let other = allocator.alloc(100 * MIB).unwrap();
        allocator.free(first.range).unwrap();
        let again = allocator.alloc_traced(800_000_000).unwrap();
        assert_eq!((again.range, again.fresh), (first.range, None));
        allocator.free(other).unwrap();
    }

    #[test]
    fn small_objects_do_not_break_up_what_a_large_one_left_warm() {
        let mut allocator = with_segments(&[800 * MIB]);
        let large = allocator.alloc(800 * MIB).unwrap();
        allocator.add_segment(SegmentId(1), 64 * MIB).unwrap();
        let small = allocator.alloc(100).unwrap();
        allocator.free(large).unwrap();
        for _ in 0..1000 {
            assert_eq!(allocator.alloc(10_000).unwrap().segment, small.segment);
        }
        assert_eq!(allocator.alloc(800 * MIB), Some(large));
    }

    #[test]
    fn a_slot_just_freed_is_the_next_one_used() {
        let mut allocator = with_segments(&[MIB]);
        let ranges: Vec<_> = (0..10).map(|_| allocator.alloc(200).unwrap()).collect();
        allocator.free(ranges[3]).unwrap();
        allocator.free(ranges[7]).unwrap();
        assert_eq!(allocator.alloc(193), Some(Location { len: 193, ..ranges[7] }));
    }

    #[test]
    fn a_large_range_joins_warm_pages_with_the_fresh_tail() {
        let mut allocator = with_segments(&[100 * MIB]);
        let first = allocator.alloc(40 * MIB).unwrap();
        allocator.free(first).unwrap();
        let all = allocator.alloc_traced(100 * MIB).unwrap();
        assert_eq!(all.range.offset, 0);
        assert_eq!(all.fresh.map(|f| (f.offset, f.len)), Some((40 * MIB, 60 * MIB)));
    }

    #[test]
    fn misuse_is_an_error_and_changes_nothing() {
        let mut allocator = with_segments(&[MIB]);
        assert_eq!(allocator.add_segment(SegmentId(0), MIB), Err(AllocError::SegmentKnown(SegmentId(0))));
        assert_eq!(allocator.add_segment(SegmentId(9), 100), Err(AllocError::SegmentLen(100)));
        assert_eq!(allocator.add_segment(SegmentId(9), 0), Err(AllocError::SegmentLen(0)));
        for len in [100, 100_000] {
            let good = allocator.alloc(len).unwrap();
            let before = allocator.stats();
            let wrong = [
                Location { len: len + 1, ..good },
                Location { offset: good.offset + 1, ..good },
                Location { offset: u64::MAX, ..good },
                Location { len: u64::MAX, ..good },
                Location { segment: SegmentId(7), ..good },
            ];
            for range in wrong {
                assert_eq!(allocator.free(range), Err(AllocError::NotAllocated(range)));
            }
            assert_eq!(allocator.stats(), before);
            allocator.free(good).unwrap();
            assert_eq!(allocator.free(good), Err(AllocError::NotAllocated(good)));
        }
    }

    #[test]
    fn the_coldest_free_segments_are_handed_back() {
        let mut allocator = with_segments(&[MIB, MIB, MIB]);
        let ranges: Vec<_> = (0..3).map(|_| allocator.alloc(MIB).unwrap()).collect();
        assert_eq!(allocator.take_free_segments(0), []);
        allocator.free(ranges[1]).unwrap();
        allocator.free(ranges[0]).unwrap();
        assert_eq!(allocator.take_free_segments(2 * MIB), []);
        assert_eq!(allocator.take_free_segments(MIB), [ranges[1].segment]);
        assert_eq!(allocator.take_free_segments(0), [ranges[0].segment]);
        assert_eq!(allocator.stats().reserved, MIB);
        allocator.add_segment(ranges[0].segment, MIB).unwrap();
    }

    #[test]
    fn a_segment_of_the_stated_length_is_enough() {
        for len in (1..200_000).step_by(997) {
            let mut allocator = with_segments(&[Allocator::segment_len(len)]);
            assert!(allocator.alloc(len).is_some(), "{len}");
        }
    }

    proptest! {
        #[test]
        fn ranges_never_overlap_and_everything_can_be_freed(
            ops in proptest::collection::vec((any::<bool>(), 0u32..22, any::<u64>()), 1..400)
        ) {
            let mut allocator = with_segments(&[8 * MIB, 3 * MIB, MIB]);
            let mut live: BTreeMap<(SegmentId, u64), u64> = BTreeMap::new();
            for (free, scale, random) in ops {
                if free && !live.is_empty() {
                    let (&(segment, offset), &len) = live.iter().nth(random as usize % live.len()).unwrap();
                    live.remove(&(segment, offset));
                    allocator.free(Location { segment, offset, len }).unwrap();
                } else if let Some(got) = allocator.alloc_traced(random % (1 << scale)) {
                    let r = got.range;
                    let limit = [8 * MIB, 3 * MIB, MIB][r.segment.0 as usize];
                    prop_assert_eq!(r.offset % 64, 0);
                    prop_assert!(r.offset + r.len <= limit);
                    if let Some(fresh) = got.fresh { prop_assert!(fresh.offset + fresh.len <= limit); }
                    // Even an empty object has a place of its own.
                    let end = r.offset + r.len.max(1);
                    if let Some((&(s, o), &l)) = live.range(..(r.segment, end)).next_back() {
                        prop_assert!(s != r.segment || o + l.max(1) <= r.offset);
                    }
                    live.insert((r.segment, r.offset), r.len);
                }
                let stats = allocator.stats();
                prop_assert_eq!(stats.live, live.values().sum::<u64>());
                prop_assert_eq!(stats.live_ranges, live.len() as u64);
            }
            for ((segment, offset), len) in live {
                allocator.free(Location { segment, offset, len }).unwrap();
            }
            prop_assert_eq!(allocator.stats(), Stats { reserved: 12 * MIB, idle: 12 * MIB, ..Stats::default() });
            prop_assert_eq!(allocator.take_free_segments(0).len(), 3);
        }
    }
}
