//! Which endpoint a request goes to: power of two choices over the requests in flight.
//!
//! Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (1996): the lesser of two random loads keeps
//! the largest load within O(log log n) of the mean, without looking at all of them.

/// Picks one of `len` endpoints with the random word `random`. `load` is an endpoint's requests in flight, or `None`
/// while it may not be used. `None` when no endpoint may be used.
pub fn two_choices(len: usize, random: u64, load: impl Fn(usize) -> Option<u32>) -> Option<usize> {
    if len <= 1 {
        return (len == 1).then_some(0).filter(|&only| load(only).is_some());
    }
    let (low, high) = (random & 0xffff_ffff, random >> 32);
    let first = scale(low, len);
    let second = (first + 1 + scale(high, len - 1)) % len;
    match (load(first), load(second)) {
        (Some(a), Some(b)) => Some(if b < a { second } else { first }),
        (Some(_), None) => Some(first),
        (None, Some(_)) => Some(second),
        (None, None) => (0..len).map(|step| (first + step) % len).find(|&index| load(index).is_some()),
    }
}

/// A 32-bit random number scaled to `0..len`, without the bias and cost of a division.
fn scale(random: u64, len: usize) -> usize {
    usize::try_from((u128::from(random) * len as u128) >> 32).expect("a number below `len` fits into usize")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_less_loaded_of_two_endpoints_is_picked() {
        for random in [0, 1 << 31, u64::MAX, 0x8000_0000_0000_0000] {
            assert_eq!(two_choices(2, random, |index| Some(if index == 0 { 5 } else { 1 })), Some(1));
        }
    }

    #[test]
    fn nothing_is_picked_when_no_endpoint_may_be_used() {
        assert_eq!(two_choices(0, 7, |_| Some(0)), None);
        assert_eq!(two_choices(1, 7, |_| None), None);
        assert_eq!(two_choices(9, 7, |_| None), None);
    }

    proptest! {
        #[test]
        fn a_usable_endpoint_is_found_whenever_there_is_one(random: u64, usable in prop::collection::vec(any::<bool>(), 0..20)) {
            let picked = two_choices(usable.len(), random, |index| usable[index].then_some(0));
            prop_assert_eq!(picked.is_some(), usable.contains(&true));
            if let Some(index) = picked {
                prop_assert!(usable[index]);
            }
        }
    }
}
