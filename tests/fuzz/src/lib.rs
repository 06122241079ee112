//! What the targets share.

use std::time::Duration;

/// A turn of a conversation with a state machine: who speaks, how long after the last, and a batch of messages.
#[derive(Debug, PartialEq)]
pub struct Turn<'a> {
    /// One of two.
    pub first: bool,
    /// Before the next.
    pub wait: Duration,
    /// As it comes over the wire.
    pub batch: &'a [u8],
}

/// Any bytes are turns: two bytes for who and when, two for the length, and the batch.
pub fn turns(mut data: &[u8]) -> impl Iterator<Item = Turn<'_>> {
    std::iter::from_fn(move || {
        let [who, wait, low, high, rest @ ..] = data else { return None };
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (batch, left) = rest.split_at(len);
        data = left;
        Some(Turn { first: who % 2 == 0, wait: Duration::from_millis(u64::from(*wait) * 8), batch })
    })
}

/// Appends a turn, as [`turns`] reads it.
pub fn write_turn(out: &mut Vec<u8>, first: bool, wait: u8, batch: &[u8]) {
    let len = u16::try_from(batch.len()).expect("seeds are small");
    out.extend([u8::from(!first), wait]);
    out.extend(len.to_le_bytes());
    out.extend(batch);
}
