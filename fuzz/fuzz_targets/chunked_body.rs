//! A body in chunks.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    interceptor_user::foreign::chunked_body(bytes);
});
