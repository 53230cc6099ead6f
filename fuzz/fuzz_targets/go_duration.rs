//! Durations as Go writes them: what can be read is read again from what it is written as.
#![no_main]

use interceptor_core::go_duration;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(duration) = go_duration::parse(text) {
        assert_eq!(go_duration::parse(&go_duration::format(duration)), Ok(duration));
    }
});
