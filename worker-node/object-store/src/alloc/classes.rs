//! Size classes: eight to a doubling, so a slot wastes at most an eighth (above 512 bytes; a cache line below).

use super::extents::PAGE;

const UNIT: u64 = 64;

/// The largest object that gets a slot, in bytes; larger ones get whole pages, which waste no more than a class
/// would and coalesce with whatever is freed beside them.
pub const SLOT_MAX: u64 = 32 << 10;

/// A slab aims at this many slots, and at least at [`SLAB_MIN`] bytes: fewer would waste the tail, more would keep
/// memory bound to a class.
const SLOTS_AIM: u64 = 8;
const SLAB_MIN: u64 = 64 << 10;

/// One class: its slots, and the slabs they are cut from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Class {
    pub slot: u64,
    pub slab_pages: u32,
    pub slots: u32,
}

/// The index of the smallest class whose slots hold `len` bytes; `None` above [`SLOT_MAX`].
pub(super) fn class_of(len: u64) -> Option<usize> {
    if len > SLOT_MAX {
        return None;
    }
    let units = len.max(1).div_ceil(UNIT);
    if units <= 8 {
        return Some(units as usize - 1);
    }
    // units lies in (2^octave, 2^(octave + 1)], divided into eight steps.
    let octave = (units - 1).ilog2();
    let step = 1u64 << (octave - 3);
    let index = (units - (1 << octave)).div_ceil(step);
    Some(8 + (octave as usize - 3) * 8 + index as usize - 1)
}

/// Every class, by index.
pub(super) fn classes() -> Vec<Class> {
    let last = class_of(SLOT_MAX).unwrap_or(0);
    (0..=last).map(|index| class_with_slot(slot_size(index))).collect()
}

fn slot_size(index: usize) -> u64 {
    if index < 8 {
        return (index as u64 + 1) * UNIT;
    }
    let (octave, step) = (3 + (index - 8) / 8, (index - 8) % 8 + 1);
    ((1 << octave) + ((step as u64) << (octave - 3))) * UNIT
}

/// Of the slab sizes near the aim, takes the one that wastes the smallest part of itself.
fn class_with_slot(slot: u64) -> Class {
    let first = (slot * SLOTS_AIM).max(SLAB_MIN).div_ceil(PAGE);
    let best = (first..first + first / 2)
        .min_by_key(|pages| {
            let bytes = pages * PAGE;
            (bytes % slot) * 10_000 / bytes
        })
        .unwrap_or(first);
    Class { slot, slab_pages: best as u32, slots: (best * PAGE / slot) as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_length_gets_the_smallest_class_that_holds_it() {
        let all = classes();
        assert!(all.windows(2).all(|w| w[0].slot < w[1].slot));
        assert_eq!(all.last().map(|c| c.slot), Some(SLOT_MAX));
        for len in 1..=SLOT_MAX {
            let index = class_of(len).unwrap();
            assert!(all[index].slot >= len);
            assert!(index == 0 || all[index - 1].slot < len, "length {len}");
        }
        assert_eq!(class_of(SLOT_MAX + 1), None);
    }

    #[test]
    fn waste_is_small() {
        for class in classes() {
            assert_eq!(class.slot % UNIT, 0);
            let bytes = u64::from(class.slab_pages) * PAGE;
            let tail = bytes - class.slot * u64::from(class.slots);
            assert!(tail * 50 <= bytes, "slabs of {} waste {tail} of {bytes} bytes", class.slot);
        }
        for len in 513..=SLOT_MAX {
            let slot = slot_size(class_of(len).unwrap());
            assert!((slot - len) * 8 <= len, "length {len} in {slot}");
        }
    }
}
