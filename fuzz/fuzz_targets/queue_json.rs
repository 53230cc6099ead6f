//! What an interceptor answers to `GET /queue`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let _ = scaler::collect::read_queue(body);
});
