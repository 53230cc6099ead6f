//! The head of a request.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    interceptor_user::foreign::request_head(bytes);
});
