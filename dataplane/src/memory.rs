//! Asks the kernel for huge pages where the process keeps much.
//!
//! With thousands of routes each request reads memory that was not read for long, spread over thousands of pages of 4 KiB: more
//! than the processor has translations for, and in a virtual machine each one missing is a walk through two page tables.
#![expect(unsafe_code, reason = "a raw system call")]

use std::{fs, io};

/// Smaller mappings are stacks and buffers.
const LEAST: usize = 16 << 20;

/// Asks for huge pages in each large anonymous mapping of this process, for what is written there from now on; what is there
/// already follows as the kernel finds time. Returns how many bytes these mappings span, most of which may be in no use.
pub fn ask_for_huge_pages() -> io::Result<usize> {
    let mut asked = 0;
    for (start, length) in fs::read_to_string("/proc/self/maps")?.lines().filter_map(large) {
        let address = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: the advice changes neither contents nor protection of any page, whoever owns it; a mapping that has gone
        // since is an error.
        if unsafe { libc::madvise(address, length, libc::MADV_HUGEPAGE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        asked += length;
    }
    Ok(asked)
}

/// Where a large anonymous mapping that can be written begins, and how many bytes it has.
fn large(line: &str) -> Option<(usize, usize)> {
    let mut parts = line.split_ascii_whitespace();
    let (range, rights) = (parts.next()?, parts.next()?);
    let (_offset, _device, inode, name) = (parts.next()?, parts.next()?, parts.next()?, parts.next());
    let (start, end) = range.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let length = usize::from_str_radix(end, 16).ok()?.checked_sub(start)?;
    let is_ours = rights == "rw-p" && inode == "0" && name.is_none_or(|name| name.starts_with("[anon"));
    (is_ours && length >= LEAST).then_some((start, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_mappings_of_the_heap_are_found_and_no_others() {
        let found = |line| large(line).map(|(start, length)| (start, length >> 20));
        assert_eq!(found("39e80000000-39ec0000000 rw-p 00000000 00:00 0"), Some((0x39e_8000_0000, 1024)));
        assert_eq!(
            found("39e80000000-39ec0000000 rw-p 00000000 00:00 0 [anon:heap]").map(|(_, size)| size),
            Some(1024)
        );
        for line in [
            "7f33fadff000-7f33fafff000 rw-p 00000000 00:00 0",
            "7f33ec021000-7f33f0000000 ---p 00000000 00:00 0",
            "39e80000000-39ec0000000 rw-s 00000000 00:00 0",
            "39e80000000-39ec0000000 rw-p 00000000 fe:00 12337153 /interceptor",
            "39e80000000-39ec0000000 rw-p 00000000 00:00 0 [stack]",
            "nonsense",
        ] {
            assert_eq!(found(line), None, "{line}");
        }
    }

    #[test]
    fn what_is_written_afterwards_lies_in_huge_pages_where_the_kernel_has_them() {
        let mode = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
        let much = vec![0_u8; 4 * LEAST];
        let asked = match ask_for_huge_pages() {
            Ok(asked) => asked,
            Err(error) => return assert_eq!(mode, "", "the kernel has huge pages, and {error}"),
        };
        assert!(asked >= much.len(), "the mapping of what was just allocated is among them: {asked}");
        // What the kernel makes of the advice is its own; whether it heard it, its list of mappings says.
        if mode.contains("[madvise]") || mode.contains("[always]") {
            let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
            assert!(smaps.lines().any(|line| line.starts_with("VmFlags:") && line.contains(" hg")), "{mode}");
        }
        drop(much);
    }
}
