//! The head of a response.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    interceptor_user::foreign::response_head(bytes);
});
