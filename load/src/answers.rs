//! Answers to publications.
//!
//! Does: counts them, whether each is an HTTP response or a line of an endless one. Owns: what of an answer was cut.
//! Never knows: what was published. Keeps: at most `ANSWERS_MAX` bytes of an unfinished answer.

use anyhow::{Context as _, Result};
use rustix::fd::OwnedFd;

use crate::{
    net::{self, Read},
    parse::Chunks,
};

/// Longest unfinished answer, in bytes.
const ANSWERS_MAX: usize = 256 << 10;

/// How a server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// An HTTP response each.
    Each,
    /// One endless response with a line each.
    Streamed,
    /// `+OK` for each, and one for the introduction.
    Nats,
}

/// Counts the answers to publications.
pub(crate) struct Answers {
    style: Style,
    in_body: bool,
    /// NATS has answered the introduction.
    in_turn: bool,
    chunks: Chunks,
    kept: Vec<u8>,
    /// Publications that were answered.
    pub(crate) count: u64,
    /// Those that were refused.
    pub(crate) refused: u64,
    /// The first refusal, as it came.
    pub(crate) first_refusal: String,
}

impl Answers {
    /// None yet.
    pub(crate) const fn new(style: Style) -> Self {
        Self {
            style,
            in_body: false,
            in_turn: false,
            chunks: Chunks::Plain,
            kept: Vec::new(),
            count: 0,
            refused: 0,
            first_refusal: String::new(),
        }
    }

    /// Reads once; says whether there may be more.
    pub(crate) fn read(&mut self, socket: &OwnedFd) -> Result<bool> {
        const ROOM: usize = 16 << 10;
        let kept = self.kept.len();
        anyhow::ensure!(
            kept < ANSWERS_MAX,
            "an answer to a publication is longer than {ANSWERS_MAX} bytes"
        );
        self.kept.resize(kept + ROOM, 0);
        let bytes = match net::read(socket, &mut self.kept[kept..]) {
            Read::Bytes(bytes) => bytes,
            Read::Empty => 0,
            Read::Closed => anyhow::bail!(
                "the server closed the publisher's connection: {}",
                self.first_refusal
            ),
        };
        self.kept.truncate(kept + bytes);
        if bytes > 0 {
            self.take(kept)?;
        }
        Ok(bytes == ROOM)
    }

    /// Takes whole answers; the first `text` bytes were looked at before.
    fn take(&mut self, text: usize) -> Result<()> {
        if self.in_body {
            return self.lines(text);
        }
        if self.style == Style::Nats {
            self.count_nats();
            return Ok(());
        }
        while let Some(length) = memchr::memmem::find(&self.kept, b"\r\n\r\n").map(|at| at + 4) {
            let head = String::from_utf8_lossy(&self.kept[..length]).to_ascii_lowercase();
            let accepted = head.starts_with("http/1.1 20");
            if self.style == Style::Streamed && accepted {
                self.kept.drain(..length);
                self.in_body = true;
                self.chunks = if head.contains("transfer-encoding: chunked") {
                    Chunks::Size(0)
                } else {
                    Chunks::Plain
                };
                return self.lines(0);
            }
            let body = content_length(&head)
                .context("an answer to a publication without content-length")?;
            let Some(answer) = self.kept.get(..length + body) else {
                return Ok(());
            };
            let answer = String::from_utf8_lossy(answer).into_owned();
            self.kept.drain(..length + body);
            self.answered(accepted, &answer);
            anyhow::ensure!(
                accepted || self.style != Style::Streamed,
                "the stream of publications was refused: {answer}"
            );
        }
        Ok(())
    }

    fn count_nats(&mut self) {
        let mut kept = std::mem::take(&mut self.kept);
        let used = crate::parse::nats(&kept, |line, _| match line {
            b"+OK" if !self.in_turn => self.in_turn = true,
            b"+OK" => self.answered(true, ""),
            line if line.starts_with(b"-ERR") => {
                self.answered(false, &String::from_utf8_lossy(line));
            }
            _ => {}
        });
        kept.drain(..used);
        self.kept = kept;
    }

    fn lines(&mut self, text: usize) -> Result<()> {
        let end = self.chunks.unwrap_in_place(&mut self.kept, text);
        let end = end.map_err(|error| {
            anyhow::anyhow!("the answer to the stream is not chunked as it should be: {error:?}")
        })?;
        self.kept.truncate(end);
        let mut kept = std::mem::take(&mut self.kept);
        let mut used = 0;
        while let Some(length) = memchr::memchr(b'\n', &kept[used..]) {
            let line = &kept[used..used + length];
            used += length + 1;
            let refused = memchr::memmem::find(line, b"\"error\":").is_some();
            let text = if refused {
                String::from_utf8_lossy(line)
            } else {
                "".into()
            };
            self.answered(!refused, &text);
        }
        kept.drain(..used);
        self.kept = kept;
        Ok(())
    }

    fn answered(&mut self, accepted: bool, answer: &str) {
        self.count += 1;
        if !accepted {
            self.refused += 1;
            if self.first_refusal.is_empty() {
                answer.clone_into(&mut self.first_refusal);
            }
        }
    }
}

fn content_length(head: &str) -> Option<usize> {
    head.lines()
        .find_map(|line| line.strip_prefix("content-length:"))?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(style: Style, wire: &[u8], cut: usize) -> (u64, u64, String) {
        let mut answers = Answers::new(style);
        for part in [&wire[..cut], &wire[cut..]] {
            let text = answers.kept.len();
            answers.kept.extend_from_slice(part);
            answers.take(text).unwrap();
        }
        (answers.count, answers.refused, answers.first_refusal)
    }

    #[test]
    fn pipelined_answers_survive_a_cut_at_every_byte() {
        let bad = "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{}";
        let wire = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n{bad}HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
        );
        for cut in 0..=wire.len() {
            let expected = (
                3,
                1,
                "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{}".to_owned(),
            );
            assert_eq!(
                fed(Style::Each, wire.as_bytes(), cut),
                expected,
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn nats_answers_survive_a_cut_at_every_byte() {
        let wire = "INFO {}\r\n+OK\r\n+OK\r\nPING\r\n-ERR 'Maximum Payload Violation'\r\n+OK\r\n";
        for cut in 0..=wire.len() {
            let expected = (3, 1, "-ERR 'Maximum Payload Violation'".to_owned());
            assert_eq!(
                fed(Style::Nats, wire.as_bytes(), cut),
                expected,
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn streamed_answers_survive_a_cut_at_every_byte() {
        let lines = "{\"line\":1,\"position\":\"0.e7:18\"}\n{\"line\":2,\"error\":{}}\n{\"line\"";
        let rest = ":3}\n";
        let wire = format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{lines}\r\n{:x}\r\n{rest}\r\n",
            lines.len(),
            rest.len()
        );
        for cut in 0..=wire.len() {
            let expected = (3, 1, "{\"line\":2,\"error\":{}}".to_owned());
            assert_eq!(
                fed(Style::Streamed, wire.as_bytes(), cut),
                expected,
                "cut at {cut}"
            );
        }
    }
}
