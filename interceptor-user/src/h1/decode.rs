//! A body's bytes out of a connection's: by length, in chunks, or until the end. Foreign input: refuses, never panics.

use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderMap;

use super::{Malformed, framing::Framing, parse};

/// Most bytes of the line before a chunk.
const MAX_CHUNK_LINE: usize = 4 * 1024;

/// Most bytes of chunk extensions in one body. They are of use to nobody, and a way to keep a proxy busy.
const MAX_EXTENSIONS: usize = 16 * 1024;

/// Most bytes of a trailer section.
const MAX_TRAILERS: usize = 64 * 1024;

/// Takes one body apart.
#[derive(Debug)]
pub(crate) struct Decoder {
    state: State,
    extensions: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Length(u64),
    /// Before the line that gives a chunk's size.
    Size,
    Chunk(u64),
    /// Before the line end behind a chunk.
    ChunkEnd,
    Trailers,
    UntilClose,
    Done,
}

/// What was found next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    /// More bytes are needed.
    Need,
}

// === impl Decoder ===

impl Decoder {
    pub(crate) fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size,
            Framing::UntilClose => State::UntilClose,
        };
        Self { state, extensions: 0 }
    }

    /// Whether the body has ended.
    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// How many bytes are still to come, where that is known.
    pub(crate) fn left(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            State::Done => Some(0),
            State::Size | State::Chunk(_) | State::ChunkEnd | State::Trailers | State::UntilClose => None,
        }
    }

    /// Takes the next piece from the front of `input`.
    pub(crate) fn decode(&mut self, input: &mut BytesMut) -> Result<Step, Malformed> {
        loop {
            match self.state {
                State::Done => return Ok(Step::End),
                State::UntilClose if input.is_empty() => return Ok(Step::Need),
                State::UntilClose => return Ok(Step::Data(input.split().freeze())),
                State::Length(left) => {
                    let Some((data, left)) = take(input, left) else { return Ok(Step::Need) };
                    self.state = if left == 0 { State::Done } else { State::Length(left) };
                    return Ok(Step::Data(data));
                }
                State::Size => {
                    let Some(size) = self.size(input)? else { return Ok(Step::Need) };
                    self.state = if size == 0 { State::Trailers } else { State::Chunk(size) };
                }
                State::Chunk(left) => {
                    let Some((data, left)) = take(input, left) else { return Ok(Step::Need) };
                    self.state = if left == 0 { State::ChunkEnd } else { State::Chunk(left) };
                    return Ok(Step::Data(data));
                }
                State::ChunkEnd => match input.get(..2) {
                    Some(b"\r\n") => {
                        input.advance(2);
                        self.state = State::Size;
                    }
                    Some(_) => return Err(Malformed::Chunk),
                    None if input.first().is_some_and(|byte| *byte != b'\r') => return Err(Malformed::Chunk),
                    None => return Ok(Step::Need),
                },
                State::Trailers => return self.trailers(input),
            }
        }
    }

    /// The connection has ended: whether the body has, too.
    pub(crate) fn end(&mut self) -> bool {
        let ends = matches!(self.state, State::UntilClose | State::Done);
        if ends {
            self.state = State::Done;
        }
        ends
    }

    fn size(&mut self, input: &mut BytesMut) -> Result<Option<u64>, Malformed> {
        let window = &input[..input.len().min(MAX_CHUNK_LINE)];
        let Some(end) = window.iter().position(|byte| *byte == b'\n') else {
            return if input.len() >= MAX_CHUNK_LINE { Err(Malformed::Chunk) } else { Ok(None) };
        };
        let line = window[..end].strip_suffix(b"\r").ok_or(Malformed::Chunk)?;
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let blank = line[digits..].iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        let rest = &line[digits + blank..];
        if digits == 0
            || digits > 16
            || !(rest.is_empty() || rest.starts_with(b";"))
            || rest.iter().copied().any(is_control)
        {
            return Err(Malformed::Chunk);
        }
        self.extensions += line.len() - digits;
        if self.extensions > MAX_EXTENSIONS {
            return Err(Malformed::Chunk);
        }
        let size = line[..digits].iter().fold(0, |size, digit| {
            size << 4 | u64::from(char::from(*digit).to_digit(16).expect("these are hexadecimal digits"))
        });
        input.advance(end + 1);
        Ok(Some(size))
    }

    fn trailers(&mut self, input: &mut BytesMut) -> Result<Step, Malformed> {
        if input.starts_with(b"\r\n") {
            input.advance(2);
            self.state = State::Done;
            return Ok(Step::End);
        }
        let window = &input[..input.len().min(MAX_TRAILERS)];
        let Some(end) = window.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
            return if input.len() >= MAX_TRAILERS { Err(Malformed::Trailers) } else { Ok(Step::Need) };
        };
        let trailers = parse::trailers(&window[..end + 4])?;
        input.advance(end + 4);
        self.state = State::Done;
        Ok(if trailers.is_empty() { Step::End } else { Step::Trailers(trailers) })
    }
}

/// What may not stand in an extension, quoted or not.
fn is_control(byte: u8) -> bool {
    byte.is_ascii_control() && byte != b'\t'
}

/// At most `left` bytes, and how many are left then.
fn take(input: &mut BytesMut, left: u64) -> Option<(Bytes, u64)> {
    if input.is_empty() {
        return None;
    }
    let length = usize::try_from(left).map_or(input.len(), |left| left.min(input.len()));
    Some((input.split_to(length).freeze(), left - length as u64))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The data, the trailers, whether that was all, and what is left behind the body.
    type Decoded = (Vec<u8>, Option<HeaderMap>, bool, Vec<u8>);

    /// Decodes bytes that come in these pieces.
    fn decoded(framing: Framing, pieces: &[&[u8]]) -> Result<Decoded, Malformed> {
        let (mut decoder, mut input) = (Decoder::new(framing), BytesMut::new());
        let (mut data, mut trailers) = (Vec::new(), None);
        for piece in pieces {
            input.extend_from_slice(piece);
            loop {
                match decoder.decode(&mut input)? {
                    Step::Data(bytes) => data.extend_from_slice(&bytes),
                    Step::Trailers(map) => trailers = Some(map),
                    Step::End | Step::Need => break,
                }
            }
        }
        Ok((data, trailers, decoder.is_done(), input.to_vec()))
    }

    #[test]
    fn a_body_of_known_length_leaves_what_follows() {
        let (data, _, done, rest) = decoded(Framing::Length(3), &[b"ab", b"cd"]).unwrap();
        assert_eq!((&data[..], done, &rest[..]), (&b"abc"[..], true, &b"d"[..]));
    }

    #[test]
    fn chunks_end_with_their_trailers() {
        let bytes = b"3;name=value\r\nabc\r\n0A \r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\nnext";
        let (data, trailers, done, rest) = decoded(Framing::Chunked, &[bytes]).unwrap();
        assert_eq!((&data[..], done, &rest[..]), (&b"abc0123456789"[..], true, &b"next"[..]));
        assert_eq!(trailers.unwrap()["x-sum"], "1");
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        for bytes in [
            "zz\r\n",
            "\r\n",
            "-1\r\n",
            "3\nabc",
            "3\r\nabcd",
            "3\r\nabc\n",
            "11111111111111111\r\n",
            "3 x\r\n",
            "1;\r\r\n",
            "1;a=\0\r\n",
            "1;\n\r\n",
            "0x1\r\n",
            "+1\r\n",
            "1_0\r\n",
            " 1\r\n",
            "\t1\r\n",
            "1\r\r\n",
            "1\u{b}\r\n",
        ] {
            assert_eq!(decoded(Framing::Chunked, &[bytes.as_bytes()]).unwrap_err(), Malformed::Chunk, "{bytes:?}");
        }
        assert_eq!(decoded(Framing::Chunked, &[b"5;", &[b'x'; MAX_CHUNK_LINE]]).unwrap_err(), Malformed::Chunk);
        let extended = format!("1;{}\r\nx\r\n", "e".repeat(1024)).repeat(17);
        assert_eq!(decoded(Framing::Chunked, &[extended.as_bytes()]).unwrap_err(), Malformed::Chunk);
        assert_eq!(
            decoded(Framing::Chunked, &[b"0\r\nX: ", &vec![b'x'; MAX_TRAILERS]]).unwrap_err(),
            Malformed::Trailers
        );
    }

    #[test]
    fn only_a_body_without_length_ends_with_the_connection() {
        for (framing, ends) in [(Framing::UntilClose, true), (Framing::Chunked, false), (Framing::Length(1), false)] {
            assert_eq!(Decoder::new(framing).end(), ends, "{framing:?}");
        }
    }

    proptest! {
        #[test]
        fn a_body_is_the_same_however_its_bytes_are_split(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut bytes = Vec::new();
            for chunk in &chunks {
                bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                bytes.extend_from_slice(chunk);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\nX: y\r\n\r\nrest");
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let (data, trailers, done, rest) = decoded(Framing::Chunked, &pieces).unwrap();
            prop_assert_eq!((data, done, rest), (chunks.concat(), true, b"rest".to_vec()));
            prop_assert_eq!(trailers.map(|map| map.len()), Some(1));
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..6)) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let _ = decoded(Framing::Chunked, &pieces);
            let _ = decoded(Framing::Length(7), &pieces);
        }
    }
}
