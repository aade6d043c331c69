//! Lines of a file, of which none can take much memory.

use std::io::{self, BufRead};

/// Reads a file line by line.
pub(super) struct Lines<R> {
    reader: R,
    max_bytes: usize,
    number: u64,
}

/// One line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// From 1 on.
    pub number: u64,
    /// Its length with what ends it.
    pub bytes: u64,
    /// Whether a line break ends it.
    pub ended: bool,
    pub text: Text,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Text {
    /// White space alone.
    Blank,
    /// Without white space around it.
    Whole(Vec<u8>),
    /// Longer than allowed, so it was not kept.
    TooLong,
}

impl<R: BufRead> Lines<R> {
    /// Lines of up to `max_bytes` bytes.
    pub fn new(reader: R, max_bytes: usize) -> Lines<R> {
        Lines { reader, max_bytes, number: 0 }
    }

    /// The next line; `None` behind the last.
    pub fn next(&mut self) -> io::Result<Option<Line>> {
        let (mut text, mut bytes, mut ended, mut too_long) = (Vec::new(), 0, false, false);
        while !ended {
            let buffer = match self.reader.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if buffer.is_empty() {
                break;
            }
            let end = buffer.iter().position(|&byte| byte == b'\n');
            let part = &buffer[..end.unwrap_or(buffer.len())];
            too_long |= text.len() + part.len() > self.max_bytes;
            if too_long {
                text = Vec::new();
            } else {
                text.extend_from_slice(part);
            }
            ended = end.is_some();
            let used = part.len() + usize::from(ended);
            bytes += used as u64;
            self.reader.consume(used);
        }
        if bytes == 0 {
            return Ok(None);
        }
        self.number += 1;
        let text = if too_long { Text::TooLong } else { self.trimmed(&text) };
        Ok(Some(Line { number: self.number, bytes, ended, text }))
    }

    /// Windows begins files with a mark and ends lines with two characters.
    fn trimmed(&self, text: &[u8]) -> Text {
        let text = if self.number == 1 { text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text) } else { text };
        match text.trim_ascii() {
            [] => Text::Blank,
            text => Text::Whole(text.to_vec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    /// However the reader's buffer cuts it.
    #[test]
    fn lines_are_whole_or_too_long() {
        let file = b"\xef\xbb\xbf one \r\n\n12345678\n123456789\n\x00\xff\nlast";
        for size in [1, 2, 3, 7, 100] {
            let mut lines = Lines::new(BufReader::with_capacity(size, &file[..]), 9);
            let mut next = || lines.next().unwrap().map(|l| (l.number, l.bytes, l.ended, l.text));
            let whole = |text: &[u8]| Text::Whole(text.to_vec());
            assert_eq!(next(), Some((1, 10, true, whole(b"one"))), "{size}");
            assert_eq!(next(), Some((2, 1, true, Text::Blank)));
            assert_eq!(next(), Some((3, 9, true, whole(b"12345678"))));
            assert_eq!(next(), Some((4, 10, true, whole(b"123456789"))));
            assert_eq!(next(), Some((5, 3, true, whole(b"\x00\xff"))));
            assert_eq!(next(), Some((6, 4, false, whole(b"last"))));
            assert_eq!(next(), None);
            let mut short = Lines::new(BufReader::with_capacity(size, &file[..]), 8);
            let texts: Vec<_> = std::iter::from_fn(|| short.next().unwrap()).map(|l| (l.bytes, l.text)).collect();
            assert_eq!(texts[3], (10, Text::TooLong), "{size}");
            assert_eq!(texts[5], (4, whole(b"last")));
        }
    }
}
