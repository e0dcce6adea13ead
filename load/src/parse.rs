//! From bytes to messages: WebSocket frames, HTTP chunks, server-sent events, and what a message is.
//!
//! Does: finds whole messages at the front of a buffer and says how much it used; what is left over is handed in again
//! in front of the next bytes, so a cut at any byte is harmless. Owns: nothing but the state of a chunked body and two
//! remembered places. Never knows: sockets, clocks, who reads. Keeps: no allocation, no JSON parser, every length
//! bounded by the caller's buffer.

/// Largest chunk that is believed. Larger sizes mean that the stream was misread.
const CHUNK_MAX: u32 = 64 << 20;
/// How an update begins, on every wire.
const UPDATE: &[u8] = b"{\"op\":\"update\"";

/// Why a stream of bytes cannot be what was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// A masked frame, or reserved bits, from a server.
    Frame,
    /// A chunk size that is no hexadecimal number, or an absurd one, or a chunk without its line break.
    Chunk,
}

/// One WebSocket frame from a server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    /// 1 text, 2 binary, 8 close, 9 ping, 10 pong.
    pub(crate) opcode: u8,
    /// What it carries.
    pub(crate) payload: &'a [u8],
    /// Its length on the wire, in bytes, header included.
    pub(crate) wire: usize,
}

/// Calls `on` for every whole frame at the front of `bytes`; returns the bytes used.
///
/// # Errors
/// [`Broken::Frame`].
pub(crate) fn frames(bytes: &[u8], mut on: impl FnMut(Frame<'_>)) -> Result<usize, Broken> {
    let mut at = 0;
    while let [first, second, rest @ ..] = &bytes[at..] {
        if first & 0x70 != 0 || second & 0x80 != 0 {
            return Err(Broken::Frame);
        }
        let (header, length) = match (second & 0x7f, rest) {
            (126, [a, b, ..]) => (4, usize::from(u16::from_be_bytes([*a, *b]))),
            (127, [a, b, c, d, e, f, g, h, ..]) => {
                let length = u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]);
                (10, usize::try_from(length).map_err(|_| Broken::Frame)?)
            }
            (126 | 127, _) => break,
            (short, _) => (2, usize::from(short)),
        };
        let end = header + length.min(usize::MAX / 2);
        let Some(payload) = bytes[at..].get(header..end) else {
            break;
        };
        on(Frame {
            opcode: first & 0x0f,
            payload,
            wire: end,
        });
        at += end;
    }
    Ok(at)
}

/// Where a chunked body stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chunks {
    /// The body is not chunked.
    Plain,
    /// In a size line; the number so far.
    Size(u32),
    /// In an extension behind the size.
    Extension(u32),
    /// In data; so many bytes are left of it.
    Data(u32),
    /// Behind data, before the line break that ends it.
    DataEnd,
    /// Behind the last chunk.
    Ended,
    /// Before a frame of a WebSocket whose payloads are one stream of bytes.
    Frame,
    /// Before that frame's length.
    FrameLength,
    /// In a long length: bytes of it that are left, and the number so far.
    FrameLong(u8, u32),
    /// In a frame's payload; so many bytes are left of it.
    FrameData(u32),
}

impl Chunks {
    /// Moves the text of `buf[kept..]` down behind the first `kept` bytes, which are text already; returns where the
    /// text ends.
    ///
    /// # Errors
    /// [`Broken::Chunk`].
    pub(crate) fn unwrap_in_place(&mut self, buf: &mut [u8], kept: usize) -> Result<usize, Broken> {
        let (mut from, mut to) = (kept, kept);
        while from < buf.len() {
            let byte = buf[from];
            match *self {
                Self::Plain => return Ok(buf.len()),
                Self::Ended => return Ok(to),
                Self::Data(left) | Self::FrameData(left) => {
                    let framed = matches!(*self, Self::FrameData(_));
                    let take = (buf.len() - from).min(left as usize);
                    buf.copy_within(from..from + take, to);
                    from += take;
                    to += take;
                    let left = left - u32::try_from(take).map_err(|_| Broken::Chunk)?;
                    *self = match (left, framed) {
                        (0, false) => Self::DataEnd,
                        (0, true) => Self::Frame,
                        (left, false) => Self::Data(left),
                        (left, true) => Self::FrameData(left),
                    };
                    continue;
                }
                Self::Frame => *self = Self::FrameLength,
                Self::FrameLength if byte & 0x80 != 0 => return Err(Broken::Frame),
                Self::FrameLength => {
                    *self = match byte {
                        0 => Self::Frame,
                        126 => Self::FrameLong(2, 0),
                        127 => Self::FrameLong(8, 0),
                        short => Self::FrameData(u32::from(short)),
                    }
                }
                Self::FrameLong(left, high) => {
                    let length = high
                        .checked_mul(256)
                        .map(|high| high + u32::from(byte))
                        .ok_or(Broken::Frame)?;
                    *self = match left {
                        1 => Self::FrameData(length),
                        left => Self::FrameLong(left - 1, length),
                    };
                }
                Self::DataEnd if byte == b'\n' => *self = Self::Size(0),
                Self::DataEnd if byte == b'\r' => {}
                Self::DataEnd => return Err(Broken::Chunk),
                Self::Size(0) | Self::Extension(0) if byte == b'\n' => *self = Self::Ended,
                Self::Size(size) | Self::Extension(size) if byte == b'\n' => {
                    *self = Self::Data(size)
                }
                Self::Extension(_) => {}
                Self::Size(size) => *self = size_digit(size, byte)?,
            }
            from += 1;
        }
        Ok(to)
    }
}

fn size_digit(size: u32, byte: u8) -> Result<Chunks, Broken> {
    if byte == b';' || byte == b'\r' {
        return Ok(Chunks::Extension(size));
    }
    let digit = char::from(byte).to_digit(16).ok_or(Broken::Chunk)?;
    let size = size
        .checked_mul(16)
        .map_or(CHUNK_MAX + 1, |high| high + digit);
    if size > CHUNK_MAX {
        return Err(Broken::Chunk);
    }
    Ok(Chunks::Size(size))
}

/// Bytes that a chunk of `length` adds on the wire: its size, and two line breaks.
pub(crate) fn chunk_overhead(length: usize) -> usize {
    let digits = (usize::BITS - length.leading_zeros()).div_ceil(4).max(1);
    digits as usize + 4
}

/// Calls `on` with the data and the whole length of every event in `text`; returns the bytes used. Of an event with
/// several `data:` lines only the last is handed on: JSON messages have no line breaks.
pub(crate) fn events(text: &[u8], mut on: impl FnMut(&[u8], usize)) -> usize {
    let (mut used, mut at) = (0, 0);
    let mut data: &[u8] = b"";
    while let Some(length) = memchr::memchr(b'\n', &text[at..]) {
        let line = &text[at..at + length];
        at += length + 1;
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            on(data, at - used);
            used = at;
            data = b"";
        } else if let Some(value) = line.strip_prefix(b"data:") {
            data = value.strip_prefix(b" ").unwrap_or(value);
        }
    }
    used
}

/// Calls `on` with each message of the NATS protocol at the front of `text`, and its whole length: with the payload of a
/// `MSG`, with the line of anything else. Returns the bytes used.
pub(crate) fn nats(text: &[u8], mut on: impl FnMut(&[u8], usize)) -> usize {
    const BREAK: usize = b"\r\n".len();
    let mut used = 0;
    while let Some(length) = memchr::memchr(b'\n', &text[used..]) {
        let (line, rest) = text[used..].split_at(length + 1);
        let line = line.trim_ascii_end();
        if !line.starts_with(b"MSG ") {
            on(line, length + 1);
            used += length + 1;
            continue;
        }
        let bytes = line.rsplit(|&byte| byte == b' ').next().and_then(number);
        let bytes = bytes.map_or(0, |(bytes, _)| usize::try_from(bytes).unwrap_or(0));
        let Some(payload) = rest.get(..bytes).filter(|_| rest.len() >= bytes + BREAK) else {
            return used;
        };
        on(payload, length + 1 + bytes + BREAK);
        used += length + 1 + bytes + BREAK;
    }
    used
}

/// What a message is, as far as the driver cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message {
    /// A delivery: when its publication was due (nanoseconds, monotonic), and its number within its channel.
    Update {
        /// Nanoseconds of the monotonic clock.
        due: u64,
        /// Counted from 0 in each channel.
        seq: u64,
    },
    /// An answer to a request of the client.
    Accepted,
    /// A refusal of a request of the client.
    Refused,
    /// The server says that updates are missing.
    Gap,
    /// The server proves that the channel is live.
    Beat,
    /// Hello, freshness, snapshot, outcome, comments.
    Other,
}

/// Finds due time and number in updates. Remembers where the last one had them: they rarely move.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    place: usize,
}

impl Scanner {
    /// Says what a message is.
    pub(crate) fn message(&mut self, payload: &[u8]) -> Message {
        if payload.starts_with(UPDATE) {
            return self.update(payload).unwrap_or(Message::Other);
        }
        if payload.starts_with(b"{\"op\":\"gap\"") {
            return Message::Gap;
        }
        if payload.starts_with(b"{\"op\":\"heartbeat\"") {
            return Message::Beat;
        }
        if payload.starts_with(b"{\"id\":") {
            let refused = memchr::memmem::find(payload, b"\"error\":").is_some();
            return if refused {
                Message::Refused
            } else {
                Message::Accepted
            };
        }
        Message::Other
    }

    fn update(&mut self, payload: &[u8]) -> Option<Message> {
        const DUE: &[u8] = b"\"t\":";
        const SEQ: &[u8] = b",\"n\":";
        if payload.get(self.place..self.place + DUE.len()) != Some(DUE) {
            self.place = memchr::memmem::find(payload, DUE)?;
        }
        let (due, rest) = number(&payload[self.place + DUE.len()..])?;
        let rest = match rest.strip_prefix(SEQ) {
            Some(rest) => rest,
            None => &rest[memchr::memmem::find(rest, SEQ)? + SEQ.len()..],
        };
        let (seq, _) = number(rest)?;
        Some(Message::Update { due, seq })
    }
}

/// The position that an update or a heartbeat tells.
pub(crate) fn position(payload: &[u8]) -> Option<&str> {
    const POSITION: &[u8] = b"\"position\":\"";
    let at = memchr::memmem::find(payload, POSITION)? + POSITION.len();
    let end = memchr::memchr(b'"', &payload[at..])?;
    std::str::from_utf8(&payload[at..at + end]).ok()
}

fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0_u64;
    let mut digits = 0;
    while let Some(byte) = text.get(digits).filter(|byte| byte.is_ascii_digit()) {
        value = value.wrapping_mul(10).wrapping_add(u64::from(byte - b'0'));
        digits += 1;
    }
    (digits > 0).then(|| (value, &text[digits..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPDATE_TEXT: &str = r#"{"op":"update","channel":"bench/c0","position":"0.e7:1042","ts":1373493600000,"row":"","data":{"t":123456789,"n":42,"pad":"xx"}}"#;

    fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0x80 | opcode];
        match payload.len() {
            length @ 0..126 => out.push(u8::try_from(length).unwrap()),
            length @ 126..65536 => {
                out.push(126);
                out.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
            length => {
                out.push(127);
                out.extend((length as u64).to_be_bytes());
            }
        }
        out.extend_from_slice(payload);
        out
    }

    /// Feeds `wire` cut at `cut`, keeping what is left over, and returns the payloads.
    fn fed_in_two(wire: &[u8], cut: usize) -> Vec<(u8, Vec<u8>)> {
        let (mut kept, mut seen) = (Vec::new(), Vec::new());
        for part in [&wire[..cut], &wire[cut..]] {
            kept.extend_from_slice(part);
            let used = frames(&kept, |f| seen.push((f.opcode, f.payload.to_vec()))).unwrap();
            kept.drain(..used);
        }
        assert!(kept.is_empty());
        seen
    }

    #[test]
    fn frames_survive_a_cut_at_every_byte() {
        let large = vec![b'y'; 70_000];
        let payloads = [&b"short"[..], UPDATE_TEXT.as_bytes(), &large, b""];
        let wire: Vec<u8> = payloads.iter().flat_map(|p| frame(1, p)).collect();
        let expected: Vec<_> = payloads.iter().map(|p| (1, p.to_vec())).collect();
        let interesting = (0..300).chain(70_000..wire.len() + 1);
        for cut in interesting {
            assert_eq!(fed_in_two(&wire, cut), expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_masked_frame_from_a_server_is_broken() {
        assert_eq!(
            frames(&[0x81, 0x80, 0, 0, 0, 0], |_| {}),
            Err(Broken::Frame)
        );
        assert_eq!(frames(&[0xc1, 0x00], |_| {}), Err(Broken::Frame));
    }

    #[test]
    fn nats_messages_in_frames_survive_a_cut_at_every_byte() {
        let message = format!("MSG c0 1 {}\r\n{UPDATE_TEXT}\r\n", UPDATE_TEXT.len());
        let text = format!("INFO {{}}\r\nPONG\r\n{message}{message}PING\r\n");
        let (head, tail) = text.as_bytes().split_at(60);
        let wire: Vec<u8> = [head, b"", tail]
            .iter()
            .flat_map(|part| frame(2, part))
            .collect();
        let update = (UPDATE_TEXT.as_bytes().to_vec(), message.len());
        let expected = [
            (b"INFO {}".to_vec(), 9),
            (b"PONG".to_vec(), 6),
            update.clone(),
            update,
            (b"PING".to_vec(), 6),
        ];
        for cut in 0..=wire.len() {
            let (mut state, mut kept, mut seen) = (Chunks::Frame, Vec::new(), Vec::new());
            for part in [&wire[..cut], &wire[cut..]] {
                let text = kept.len();
                kept.extend_from_slice(part);
                let end = state.unwrap_in_place(&mut kept, text).unwrap();
                kept.truncate(end);
                let used = nats(&kept, |data, length| seen.push((data.to_vec(), length)));
                kept.drain(..used);
            }
            assert_eq!(seen, expected, "cut at {cut}");
        }
    }

    #[test]
    fn an_absurd_length_waits_and_does_not_overflow() {
        let wire = [0x81, 127, 255, 255, 255, 255, 255, 255, 255, 255];
        assert_eq!(frames(&wire, |_| {}), Ok(0));
    }

    fn chunked(parts: &[&str]) -> Vec<u8> {
        let chunk = |part: &&str| format!("{:x}\r\n{part}\r\n", part.len());
        parts.iter().map(chunk).collect::<String>().into_bytes()
    }

    #[test]
    fn chunked_events_survive_a_cut_at_every_byte() {
        let event = format!("event: update\nid: 0.e7:1042\ndata: {UPDATE_TEXT}\n\n");
        let (head, tail) = event.split_at(40);
        let wire = chunked(&[&event, ": comment\n\n", head, tail, &event]);
        for cut in 0..=wire.len() {
            let mut state = Chunks::Size(0);
            let (mut kept, mut seen) = (Vec::new(), Vec::new());
            for part in [&wire[..cut], &wire[cut..]] {
                let text = kept.len();
                kept.extend_from_slice(part);
                let end = state.unwrap_in_place(&mut kept, text).unwrap();
                kept.truncate(end);
                let used = events(&kept, |data, length| seen.push((data.to_vec(), length)));
                kept.drain(..used);
            }
            let update = (UPDATE_TEXT.as_bytes().to_vec(), event.len());
            let expected = [update.clone(), (vec![], 11), update.clone(), update];
            assert_eq!(seen, expected, "cut at {cut}");
            assert!(kept.is_empty());
        }
    }

    #[test]
    fn chunks_end_and_break_where_they_should() {
        let mut state = Chunks::Size(0);
        let mut wire = *b"1\r\nx\r\n0\r\n\r\n";
        assert_eq!(state.unwrap_in_place(&mut wire, 0), Ok(1));
        assert_eq!(state, Chunks::Ended);
        for wrong in ["zz\r\n", "fffffffff\r\n", "1\r\nxy\r\n"] {
            let mut wire = wrong.as_bytes().to_vec();
            let result = Chunks::Size(0).unwrap_in_place(&mut wire, 0);
            assert_eq!(result, Err(Broken::Chunk), "{wrong:?}");
        }
        assert_eq!([1, 15, 16, 255, 256].map(chunk_overhead), [5, 5, 6, 6, 7]);
    }

    #[test]
    fn messages_are_told_apart() {
        let mut scanner = Scanner::default();
        let update = Message::Update {
            due: 123_456_789,
            seq: 42,
        };
        for (text, expected) in [
            (UPDATE_TEXT, update),
            (UPDATE_TEXT, update),
            (
                r#"{"op":"update","data":{"t":7,"n":8}}"#,
                Message::Update { due: 7, seq: 8 },
            ),
            (
                r#"{"op":"update","data":{"t":7,"x":0,"n":8}}"#,
                Message::Update { due: 7, seq: 8 },
            ),
            (r#"{"op":"update","deleted":true}"#, Message::Other),
            (
                r#"{"op":"snapshot","rows":{"":{"data":{"t":7,"n":8}}}}"#,
                Message::Other,
            ),
            (r#"{"op":"heartbeat","channel":"bench/c0"}"#, Message::Beat),
            (r#"{"op":"gap","dropped":17}"#, Message::Gap),
            (r#"{"id":1,"ok":{"outcome":"started"}}"#, Message::Accepted),
            (r#"{"id":1,"error":{"code":"forbidden"}}"#, Message::Refused),
            ("", Message::Other),
        ] {
            assert_eq!(scanner.message(text.as_bytes()), expected, "{text}");
        }
    }
}
