//! The bytes of a value, which another machine may have sent: every part that is named lies inside.
#![no_main]

use cluster_store::layout::View;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(view) = View::parse(data) else { return };
    assert!(view.total_len() <= data.len());
    assert!(view.in_band().len() <= data.len());
    for index in 0..view.buffer_count() {
        let range = view.buffer_range(index).expect("it is counted");
        assert!(range.start <= range.end && range.end <= data.len());
        assert_eq!(view.buffer(index).map(<[u8]>::len), Some(range.len()));
    }
    assert_eq!(view.buffers().count(), view.buffer_count());
});
