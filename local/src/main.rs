//! The `rouse-local` process.

#![forbid(unsafe_code)]

fn main() {}
