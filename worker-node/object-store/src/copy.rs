//! Copying large buffers (rule P7).

use crate::threads::with_signals_blocked;

/// From this length on, in bytes, a second thread pays: starting it costs some 50 µs, a copy of 64 MiB some 6 ms.
pub const TWO_THREADS_MIN: usize = 64 << 20;

/// Copies `src` to `dst`, above [`TWO_THREADS_MIN`] with two threads. A Python caller releases the GIL around it.
///
/// # Panics
/// If the lengths differ, as `copy_from_slice` does.
///
/// ```
/// let mut dst = [0; 5];
/// cluster_store::copy::copy_into(&mut dst, b"hello");
/// assert_eq!(&dst, b"hello");
/// ```
pub fn copy_into(dst: &mut [u8], src: &[u8]) {
    copy_split(dst, src, TWO_THREADS_MIN);
}

fn copy_split(dst: &mut [u8], src: &[u8], two_threads_min: usize) {
    assert_eq!(dst.len(), src.len(), "source and destination of a copy differ in length");
    if src.len() < two_threads_min {
        dst.copy_from_slice(src);
        return;
    }
    // On a page border, so that the two do not fault on one page.
    let half = (src.len() / 2).next_multiple_of(4096).min(src.len());
    let (dst_a, dst_b) = dst.split_at_mut(half);
    let (src_a, src_b) = src.split_at(half);
    // Whoever copies the second half takes it from here: this thread does, if no other can be had.
    let rest = std::sync::Mutex::new(Some(dst_b));
    let copy_rest = || {
        let taken = rest.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(dst) = taken {
            dst.copy_from_slice(src_b);
        }
    };
    std::thread::scope(|scope| {
        let name = "store-copy".to_owned();
        let spawned =
            with_signals_blocked(|| std::thread::Builder::new().name(name).spawn_scoped(scope, copy_rest));
        dst_a.copy_from_slice(src_a);
        if spawned.is_err() {
            copy_rest();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_arrives_whatever_the_length() {
        for len in [0usize, 1, 4095, 4096, 4097, 8192, 100_001] {
            let src: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
            for limit in [0, 4096, usize::MAX] {
                let mut dst = vec![0xFF; len];
                copy_split(&mut dst, &src, limit);
                assert_eq!(dst, src);
            }
        }
    }

    #[test]
    #[should_panic(expected = "differ in length")]
    fn lengths_must_match() {
        copy_into(&mut [0; 3], &[0; 4]);
    }
}
