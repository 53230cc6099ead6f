//! Randomness by which a client's hello is known to whoever looks at its first segment.

use std::sync::LazyLock;

use rustls::crypto::{GetRandomFailed, SecureRandom, ring};

/// How long a hello's random is, and the name of a session, of which both begin with the mark.
const HELLO: usize = 32;

static RANDOM: LazyLock<&'static dyn SecureRandom> = LazyLock::new(|| ring::default_provider().secure_random);

/// Begins the random of a hello with a mark. What is left of it is 128 bits; keys are agreed upon by others, which ring has from the
/// system itself. For connections on which nothing is said that anybody may not hear.
#[derive(Debug)]
pub struct Marked(pub [u8; 16]);

// === impl Marked ===

impl SecureRandom for Marked {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
        RANDOM.fill(bytes)?;
        if bytes.len() == HELLO {
            bytes[..self.0.len()].copy_from_slice(&self.0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled<const N: usize>() -> [u8; N] {
        let mut bytes = [0; N];
        Marked(*b"0123456789abcdef").fill(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_hellos_random_begins_with_the_mark_and_goes_on_at_random_and_nothing_else_does() {
        let [one, other] = [filled::<32>(), filled::<32>()];
        assert_eq!([&one[..16], &other[..16]], [b"0123456789abcdef"; 2]);
        assert_ne!(one[16..], other[16..]);
        assert_ne!(filled::<16>(), *b"0123456789abcdef");
        assert_ne!(filled::<48>()[..16], *b"0123456789abcdef");
    }
}
