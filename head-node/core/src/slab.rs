//! Numbered slots: what the tables are made of, so that a million entries cost little beside themselves.

use std::marker::PhantomData;

/// An index into one kind of slab.
pub(crate) trait Index: Copy + Eq {
    fn new(at: u32) -> Self;
    fn at(self) -> usize;
}

macro_rules! index {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) struct $name(pub(crate) u32);
        impl crate::slab::Index for $name {
            fn new(at: u32) -> Self {
                Self(at)
            }
            fn at(self) -> usize {
                self.0 as usize
            }
        }
    };
}

index!(
    /// A node's incarnation. Never used twice, so a kept index of a lost node finds nothing.
    NodeIx
);
index!(
    /// A task in the table. Used again after the task ended: kept indices go with a stamp.
    TaskIx
);
index!(
    /// An object in the table. Used again after the object was freed.
    ObjectIx
);
index!(
    /// A shape in the table.
    ShapeIx
);

/// Values in numbered slots; freed slots are used again.
#[derive(Debug)]
pub(crate) struct Slab<I, T> {
    slots: Vec<Option<T>>,
    free: Vec<u32>,
    index: PhantomData<I>,
}

impl<I, T> Default for Slab<I, T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), index: PhantomData }
    }
}

impl<I: Index, T> Slab<I, T> {
    pub fn insert(&mut self, value: T) -> I {
        if let Some(at) = self.free.pop() {
            self.slots[at as usize] = Some(value);
            return I::new(at);
        }
        self.slots.push(Some(value));
        I::new((self.slots.len() - 1) as u32)
    }

    /// Like `insert`, in a slot that was never used.
    pub fn insert_new(&mut self, value: T) -> I {
        self.slots.push(Some(value));
        I::new((self.slots.len() - 1) as u32)
    }

    pub fn remove(&mut self, ix: I) -> Option<T> {
        let value = self.slots.get_mut(ix.at())?.take()?;
        self.free.push(ix.at() as u32);
        Some(value)
    }

    /// Like `remove`, and the slot is not used again.
    pub fn retire(&mut self, ix: I) -> Option<T> {
        self.slots.get_mut(ix.at())?.take()
    }

    /// Slots, used or free.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    pub fn get(&self, ix: I) -> Option<&T> {
        self.slots.get(ix.at())?.as_ref()
    }

    pub fn get_mut(&mut self, ix: I) -> Option<&mut T> {
        self.slots.get_mut(ix.at())?.as_mut()
    }

    pub fn iter(&self) -> impl Iterator<Item = (I, &T)> {
        self.slots.iter().enumerate().filter_map(|(at, slot)| Some((I::new(at as u32), slot.as_ref()?)))
    }
}
