//! The smallest of HTTP/1.1, the same for every peer: each head that ends is a request, and has the same answer.

use std::sync::LazyLock;

pub(crate) const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n";
pub(crate) const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 12\r\n\r\nHello, world";

const END: &[u8] = b"\r\n\r\n";

/// As many as one read can ask for.
static ANSWERS: LazyLock<Vec<u8>> = LazyLock::new(|| ANSWER.repeat(crate::BUFFER / END.len()));

/// What is left of a head from one read to the next.
#[derive(Default)]
pub(crate) struct Heads {
    /// So many bytes of `END` came last.
    ended: usize,
}

impl Heads {
    /// The answers to all requests that end in these bytes.
    pub(crate) fn answers(&mut self, bytes: &[u8]) -> &'static [u8] {
        let mut requests = 0;
        for &byte in bytes {
            self.ended = match byte {
                b'\r' | b'\n' if byte == END[self.ended] => self.ended + 1,
                b'\r' => 1,
                _ => 0,
            };
            if self.ended == END.len() {
                self.ended = 0;
                requests += 1;
            }
        }
        &ANSWERS[..requests * ANSWER.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_in_pieces() {
        let text = [REQUEST, REQUEST, b"GET / HTTP/1.1\r\n\r\r\n\r\n"].concat();
        for piece in 1..=text.len() {
            let mut heads = Heads::default();
            let answers: usize = text.chunks(piece).map(|bytes| heads.answers(bytes).len() / ANSWER.len()).sum();
            assert_eq!(answers, 3, "in pieces of {piece}");
        }
    }
}
