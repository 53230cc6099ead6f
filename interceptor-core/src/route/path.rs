//! Paths of rules and of requests, taken apart into segments. Read by the table.

use std::borrow::Cow;

/// The longest path prefix a rule may have, in bytes; it bounds the depth of the tree.
pub const MAX_PREFIX: usize = 1024;

/// The path with its percent-escapes decoded. What is no escape stays; dot segments and doubled slashes stay too.
pub(crate) fn decoded(bytes: &[u8]) -> Cow<'_, [u8]> {
    if !bytes.contains(&b'%') {
        return Cow::Borrowed(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'%'
            && let Some(decoded) = escape(tail)
        {
            out.push(decoded);
            rest = &tail[2..];
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    Cow::Owned(out)
}

/// The segments between the slashes, without the leading and trailing ones; none of `/`.
pub(crate) fn segments(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let trimmed = trim(path);
    trimmed.split(|byte| *byte == b'/').take(if trimmed.is_empty() { 0 } else { usize::MAX })
}

fn trim(mut path: &[u8]) -> &[u8] {
    while let [b'/', rest @ ..] | [rest @ .., b'/'] = path {
        path = rest;
    }
    path
}

fn escape(tail: &[u8]) -> Option<u8> {
    let [high, low, ..] = tail else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(path: &str) -> Vec<String> {
        segments(&decoded(path.as_bytes())).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
    }

    #[test]
    fn outer_slashes_do_not_matter_and_inner_ones_do() {
        assert!(parts("").is_empty());
        assert!(parts("/").is_empty());
        assert!(parts("///").is_empty());
        assert_eq!(parts("/api/v1"), ["api", "v1"]);
        assert_eq!(parts("//abc/def//"), ["abc", "def"]);
        assert_eq!(parts("/abc//def"), ["abc", "", "def"]);
        assert_eq!(parts("/api/../secret"), ["api", "..", "secret"]);
    }

    #[test]
    fn escapes_are_decoded_before_the_path_is_split() {
        assert_eq!(parts("/a%2Fb"), ["a", "b"]);
        assert_eq!(parts("/%61pi/%e2%82%ac"), ["api", "€"]);
        assert_eq!(parts("/100%/x%2"), ["100%", "x%2"]);
        assert_eq!(parts("/%zz%41"), ["%zzA"]);
    }
}
