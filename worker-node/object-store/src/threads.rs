//! Threads that take no signals, so that each signal reaches the thread it is meant for (rule E4).
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

/// Runs `spawn` with all signals blocked. A thread inherits the mask of the one that makes it, so threads made inside
/// have them blocked from their first instruction on.
pub fn with_signals_blocked<T>(spawn: impl FnOnce() -> T) -> T {
    let _mask = Mask::block_all();
    spawn()
}

/// Puts the thread's signal mask back when dropped, also when unwinding.
struct Mask(libc::sigset_t);

impl Mask {
    fn block_all() -> Mask {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        let mut old = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: sigfillset initialises the set it is given; pthread_sigmask reads it and writes the old mask. It
        // fails only for an unknown first argument, and then the zeroed old mask is still a valid set.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), old.as_mut_ptr());
            Mask(old.assume_init())
        }
    }
}

impl Drop for Mask {
    fn drop(&mut self) {
        // SAFETY: the set came from pthread_sigmask, and a null pointer asks for no old mask.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocked() -> String {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        status.lines().find(|line| line.starts_with("SigBlk")).unwrap().to_owned()
    }

    #[test]
    fn the_new_thread_has_signals_blocked_and_the_old_one_its_own_mask() {
        let before = blocked();
        let inside = with_signals_blocked(|| std::thread::spawn(blocked)).join().unwrap();
        // Bit n - 1 for signal n: SIGINT, SIGTERM and SIGCHLD are blocked inside.
        let mask = u64::from_str_radix(inside.trim_start_matches("SigBlk:").trim(), 16).unwrap();
        assert!([2, 15, 17].iter().all(|signal| mask >> (signal - 1) & 1 == 1), "{inside}");
        assert_eq!(blocked(), before);
    }
}
