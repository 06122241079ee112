//! Free pages of all segments: best fit, coalescing, warm before fresh.
//!
//! Each segment is used pages, free *warm* extents (used before) and one *fresh* tail from its high-water mark to its
//! end. Warm extents coalesce with each other only; a tail is used together with the warm extent that ends at it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashMap;

use cluster_types::SegmentId;

/// The unit of extents in bytes.
pub(super) const PAGE: u64 = 4096;

/// From this many pages on (16 MiB), an extent takes warm memory wherever it is; smaller ones keep to segments in
/// use, so that they do not break up what a large object has just left warm.
const LARGE_PAGES: u32 = 4096;

/// Pages just allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pages {
    pub segment: SegmentId,
    pub page: u32,
    /// How many of them, at the end, were never used before.
    pub fresh: u32,
}

/// Warm free extents ordered for best fit: by size, then the most recently freed.
type WarmKey = (u32, Reverse<u64>, SegmentId, u32);
/// Tails ordered for best fit.
type TailKey = (u32, SegmentId);

#[derive(Debug, Default)]
struct Ordered {
    warm: BTreeSet<WarmKey>,
    tails: BTreeSet<TailKey>,
}

#[derive(Clone, Copy, Debug)]
struct Free {
    pages: u32,
    /// When it was freed, by the allocator's own count.
    freed: u64,
}

#[derive(Debug)]
struct Segment {
    pages: u32,
    /// Pages from here on are fresh.
    high: u32,
    used: u32,
    warm: BTreeMap<u32, Free>,
    last_freed: u64,
}

impl Segment {
    /// Where an extent that runs into the fresh tail would start.
    fn tail_start(&self) -> u32 {
        match self.warm.last_key_value() {
            Some((&page, free)) if page + free.pages == self.high => page,
            _ => self.high,
        }
    }

    fn tail_key(&self, id: SegmentId) -> TailKey {
        (self.pages - self.tail_start(), id)
    }
}

#[derive(Debug, Default)]
pub(super) struct Extents {
    segments: FxHashMap<SegmentId, Segment>,
    /// Free memory of segments with used pages.
    partial: Ordered,
    /// Free memory of wholly free segments: each has at most one warm extent.
    whole: Ordered,
    /// Wholly free segments, the coldest first.
    idle: BTreeSet<(u64, SegmentId)>,
    clock: u64,
    idle_pages: u64,
}

impl Extents {
    /// False if the segment is known already.
    pub fn add(&mut self, id: SegmentId, pages: u32) -> bool {
        if self.segments.contains_key(&id) {
            return false;
        }
        let segment = Segment { pages, high: 0, used: 0, warm: BTreeMap::new(), last_freed: 0 };
        self.whole.tails.insert(segment.tail_key(id));
        self.idle.insert((0, id));
        self.idle_pages += u64::from(pages);
        self.segments.insert(id, segment);
        true
    }

    pub fn alloc(&mut self, need: u32) -> Option<Pages> {
        let large = need >= LARGE_PAGES;
        if large {
            let best = match (best_warm(&self.partial, need), best_warm(&self.whole, need)) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            if let Some((_, _, id, page)) = best {
                return self.take_warm(id, page, need);
            }
        }
        for whole in [false, true] {
            let set = if whole { &self.whole } else { &self.partial };
            if let Some((_, _, id, page)) = best_warm(set, need) {
                return self.take_warm(id, page, need);
            }
            if let Some(&(_, id)) = set.tails.range((need, SegmentId(0))..).next() {
                return self.take_tail(id, need);
            }
        }
        None
    }

    fn take_warm(&mut self, id: SegmentId, page: u32, need: u32) -> Option<Pages> {
        self.drop_tail(id);
        let free = self.remove_warm(id, page)?;
        self.add_used(id, need);
        if free.pages > need {
            self.insert_warm(id, page + need, Free { pages: free.pages - need, ..free });
        }
        self.put_tail(id);
        Some(Pages { segment: id, page, fresh: 0 })
    }

    fn take_tail(&mut self, id: SegmentId, need: u32) -> Option<Pages> {
        self.drop_tail(id);
        let segment = self.segments.get(&id)?;
        let start = segment.tail_start();
        let touched = segment.high - start;
        // Warm extents are tried first, so the one that ends at the tail is too short by itself.
        debug_assert!(touched < need);
        if touched > 0 {
            self.remove_warm(id, start);
        }
        self.add_used(id, need);
        self.segments.get_mut(&id)?.high = start + need;
        self.put_tail(id);
        Some(Pages { segment: id, page: start, fresh: need - touched })
    }

    /// Frees pages that [`Extents::alloc`] gave out.
    pub fn free(&mut self, id: SegmentId, page: u32, pages: u32) {
        self.drop_tail(id);
        let Some(segment) = self.segments.get(&id) else { return };
        let before = segment.warm.range(..page).next_back().map(|(&at, free)| (at, free.pages));
        let (mut start, mut end) = (page, page + pages);
        if let Some((at, len)) = before
            && at + len == page
        {
            start = at;
            self.remove_warm(id, at);
        }
        if let Some(free) = self.remove_warm(id, end) {
            end += free.pages;
        }
        self.clock += 1;
        self.sub_used(id, pages);
        self.insert_warm(id, start, Free { pages: end - start, freed: self.clock });
        self.put_tail(id);
    }

    /// Removes wholly free segments, the coldest first, as long as `keep` bytes of wholly free segments stay.
    pub fn take_idle(&mut self, keep: u64) -> Vec<(SegmentId, u64)> {
        let mut taken = Vec::new();
        while let Some(&(_, id)) = self.idle.first() {
            let pages = self.segments.get(&id).map_or(0, |s| s.pages);
            if self.idle_bytes() < keep.saturating_add(u64::from(pages) * PAGE) {
                break;
            }
            self.idle.pop_first();
            self.drop_tail(id);
            self.remove_warm(id, 0);
            self.segments.remove(&id);
            self.idle_pages -= u64::from(pages);
            taken.push((id, u64::from(pages) * PAGE));
        }
        taken
    }

    /// Bytes of wholly free segments.
    pub fn idle_bytes(&self) -> u64 {
        self.idle_pages * PAGE
    }

    fn ordered(&mut self, whole: bool) -> &mut Ordered {
        if whole { &mut self.whole } else { &mut self.partial }
    }

    fn insert_warm(&mut self, id: SegmentId, page: u32, free: Free) {
        let Some(segment) = self.segments.get_mut(&id) else { return };
        segment.warm.insert(page, free);
        let whole = segment.used == 0;
        self.ordered(whole).warm.insert((free.pages, Reverse(free.freed), id, page));
    }

    fn remove_warm(&mut self, id: SegmentId, page: u32) -> Option<Free> {
        let segment = self.segments.get_mut(&id)?;
        let free = segment.warm.remove(&page)?;
        let whole = segment.used == 0;
        self.ordered(whole).warm.remove(&(free.pages, Reverse(free.freed), id, page));
        Some(free)
    }

    /// A tail's key depends on the extent before it and on whether the segment is wholly free: it is dropped before
    /// a change and put back after it.
    fn drop_tail(&mut self, id: SegmentId) {
        let Some(segment) = self.segments.get(&id) else { return };
        let (key, whole) = (segment.tail_key(id), segment.used == 0);
        self.ordered(whole).tails.remove(&key);
    }

    fn put_tail(&mut self, id: SegmentId) {
        let Some(segment) = self.segments.get(&id) else { return };
        // A segment used up to its end has no tail, only warm extents.
        if segment.high < segment.pages {
            let (key, whole) = (segment.tail_key(id), segment.used == 0);
            self.ordered(whole).tails.insert(key);
        }
    }

    /// The caller has taken out the extent it allocates, and a wholly free segment has no other: nothing warm has to
    /// move between the ordered sets here.
    fn add_used(&mut self, id: SegmentId, pages: u32) {
        let Some(segment) = self.segments.get_mut(&id) else { return };
        if segment.used == 0 {
            self.idle.remove(&(segment.last_freed, id));
            self.idle_pages -= u64::from(segment.pages);
        }
        segment.used += pages;
    }

    /// The caller has taken out the free neighbours; when nothing is used any more there are no others.
    fn sub_used(&mut self, id: SegmentId, pages: u32) {
        let Some(segment) = self.segments.get_mut(&id) else { return };
        segment.used -= pages;
        if segment.used == 0 {
            segment.last_freed = self.clock;
            self.idle.insert((segment.last_freed, id));
            self.idle_pages += u64::from(segment.pages);
        }
    }
}

fn best_warm(set: &Ordered, need: u32) -> Option<WarmKey> {
    // Reverse(MAX) sorts first among extents of one size.
    set.warm.range((need, Reverse(u64::MAX), SegmentId(0), 0)..).next().copied()
}
