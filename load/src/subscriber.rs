//! The receiving half: one subscriber's life from connect to close.
//!
//! Does: moves a subscriber through handshake and subscribe, reads, counts. Owns: a socket and a handful of words per
//! subscriber, and one read buffer for all. Never knows: publishing, pacing, epoll. Keeps: a message that is cut is kept
//! with its connection and finished with the next read; nothing else is kept.

use std::collections::HashMap;

use rustix::fd::OwnedFd;

use crate::{
    net::{self, Read},
    parse::{self, Chunks, Message, Scanner},
    stats::{Tally, When},
    wire::{self, Channels, Target, Transport},
};

/// Bytes that one read takes.
const READ: usize = 64 << 10;
/// Longest message that can be cut: more, and the connection is given up.
const REST_MAX: usize = 192 << 10;

/// How far a subscriber is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Its connect has not ended.
    Connecting,
    /// Its request is out.
    Head,
    /// Its subscribe message is out; so many answers are missing.
    Reply(u16),
    /// It gets what is published.
    Live,
    /// And it has been told that its channel is live.
    Proven,
    /// It is gone.
    Closed,
}

impl Phase {
    /// Whether it gets what is published.
    pub(crate) const fn is_live(self) -> bool {
        matches!(self, Self::Live | Self::Proven)
    }
}

/// One subscriber.
#[derive(Debug)]
pub(crate) struct Subscriber {
    socket: OwnedFd,
    chunks: Chunks,
    /// The channel's number.
    channel: u32,
    /// The number of the next update that it expects.
    next: u64,
    /// A message that was cut.
    rest: Vec<u8>,
    /// Which group counts it.
    pub(crate) group: u16,
    /// How far it is.
    pub(crate) phase: Phase,
}

impl Subscriber {
    /// A subscriber whose connect was started.
    pub(crate) const fn new(socket: OwnedFd, group: u16, channel: u32) -> Self {
        Self {
            socket,
            chunks: Chunks::Plain,
            channel,
            next: 0,
            rest: Vec::new(),
            group,
            phase: Phase::Connecting,
        }
    }

    /// Its channel's number.
    pub(crate) const fn channel(&self) -> u32 {
        self.channel
    }

    /// The number of the next update that it expects.
    pub(crate) const fn expects(&self) -> u64 {
        self.next
    }

    /// Its connect has ended: sends the request.
    pub(crate) fn connected(&mut self, request: &[u8]) -> Result<(), String> {
        net::connected(&self.socket)?;
        self.phase = Phase::Head;
        self.say(request)
    }

    /// A handshake's message always fits an empty socket buffer.
    fn say(&self, bytes: &[u8]) -> Result<(), String> {
        match net::send(&self.socket, bytes) {
            Some(taken) if taken == bytes.len() => Ok(()),
            _ => Err("the server did not take the request".to_owned()),
        }
    }
}

/// What a turn of reading left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// Nothing: readiness will tell.
    Nothing,
    /// Perhaps more: read again.
    Perhaps,
}

/// What all subscribers share.
pub(crate) struct Reader {
    buf: Vec<u8>,
    scanner: Scanner,
    target: Target,
    transport: Transport,
    each: u32,
    channels: u32,
    /// The newest position of each channel, where they are kept.
    positions: Option<HashMap<u32, String>>,
    frozen: bool,
    kernel_times: bool,
    now: u64,
}

impl Reader {
    /// For subscribers of one kind, which have `each` of so many channels.
    pub(crate) fn new(target: Target, transport: Transport, each: u32, channels: u32) -> Self {
        Self {
            each,
            channels,
            positions: None,
            frozen: false,
            kernel_times: false,
            buf: vec![0; REST_MAX + READ],
            scanner: Scanner::default(),
            target,
            transport,
            now: 0,
        }
    }

    /// When the newest read brought bytes: nanoseconds, monotonic.
    pub(crate) const fn now(&self) -> u64 {
        self.now
    }

    /// An update has come when the kernel had it, no matter when it is read.
    pub(crate) const fn use_kernel_times(&mut self) {
        self.kernel_times = true;
    }

    /// Begins to keep the newest position of each channel, which subscribers show who come again.
    pub(crate) fn keep_positions(&mut self) {
        self.positions = Some(HashMap::new());
    }

    /// Keeps the positions as they are; tells of how many channels there are some.
    pub(crate) fn freeze_positions(&mut self) -> usize {
        self.frozen = true;
        self.positions.as_ref().map_or(0, HashMap::len)
    }

    /// Reads once and counts. After an error, whose text says why, the subscriber is of no more use.
    pub(crate) fn read(
        &mut self,
        subscriber: &mut Subscriber,
        tally: &mut Tally,
    ) -> Result<Left, String> {
        self.read_some(subscriber, tally, READ)
    }

    /// As [`Reader::read`], at most `most` bytes.
    pub(crate) fn read_some(
        &mut self,
        subscriber: &mut Subscriber,
        tally: &mut Tally,
        most: usize,
    ) -> Result<Left, String> {
        let most = most.min(READ);
        let kept = subscriber.rest.len();
        self.buf[..kept].copy_from_slice(&subscriber.rest);
        let room = &mut self.buf[kept..kept + most];
        let (read, arrived) = if self.kernel_times {
            net::read_arrived(&subscriber.socket, room)
        } else {
            (net::read(&subscriber.socket, room), None)
        };
        let bytes = match read {
            Read::Bytes(bytes) => bytes,
            Read::Empty => return Ok(Left::Nothing),
            Read::Closed => return Err("closed by the server".to_owned()),
        };
        let now = net::now();
        self.now = now;
        let when = When { read: now, arrived };
        tally.reads += 1;
        tally.bytes += bytes as u64;
        subscriber.rest.clear();
        let (start, end) = self.text(subscriber, kept, kept + bytes)?;
        let used = match self.transport {
            _ if self.target == Target::Nats => {
                self.count_nats(start, end, subscriber, tally, when)?
            }
            Transport::Ws => self.count_frames(start, end, subscriber, tally, when)?,
            Transport::Sse => self.count_events(start, end, subscriber, tally, when),
        };
        if end - start - used > REST_MAX {
            return Err(format!("a message of more than {REST_MAX} bytes"));
        }
        subscriber
            .rest
            .extend_from_slice(&self.buf[start + used..end]);
        Ok(if bytes == most {
            Left::Perhaps
        } else {
            Left::Nothing
        })
    }

    /// Where in the buffer the body's text is, of which the first `kept` bytes were text before this read.
    fn text(
        &mut self,
        subscriber: &mut Subscriber,
        kept: usize,
        end: usize,
    ) -> Result<(usize, usize), String> {
        let broken = |error| format!("the body is not chunked as it should be: {error:?}");
        if subscriber.phase != Phase::Head {
            let end = subscriber
                .chunks
                .unwrap_in_place(&mut self.buf[..end], kept)
                .map_err(broken)?;
            return Ok((0, end));
        }
        let Some(length) = memchr::memmem::find(&self.buf[..end], b"\r\n\r\n") else {
            return Ok((0, end));
        };
        let start = length + 4;
        self.head(subscriber, start)?;
        let text = subscriber
            .chunks
            .unwrap_in_place(&mut self.buf[start..end], 0)
            .map_err(broken)?;
        Ok((start, start + text))
    }

    /// The answer to the request is whole: checks it, and subscribes where that takes a message.
    fn head(&self, subscriber: &mut Subscriber, length: usize) -> Result<(), String> {
        let head = String::from_utf8_lossy(&self.buf[..length]).to_ascii_lowercase();
        let status = match self.transport {
            Transport::Ws => "http/1.1 101",
            Transport::Sse => "http/1.1 200",
        };
        if !head.starts_with(status) {
            return Err(format!("refused: {}", head.lines().next().unwrap_or("")));
        }
        if self.transport == Transport::Sse && head.contains("transfer-encoding: chunked") {
            subscriber.chunks = Chunks::Size(0);
        }
        subscriber.phase = Phase::Live;
        if self.target == Target::Nats {
            subscriber.chunks = Chunks::Frame;
        }
        let wishes = wire::subscribe_frame(
            self.target,
            self.channels_of(subscriber),
            self.position_of(subscriber.channel),
        );
        if let Some(wishes) = wishes.filter(|_| self.transport == Transport::Ws) {
            let answers = match self.target {
                Target::Tidegate => u16::try_from(self.each).unwrap_or(u16::MAX),
                Target::Limit | Target::Nats => 1,
            };
            subscriber.phase = Phase::Reply(answers);
            subscriber.say(&wishes)?;
        }
        Ok(())
    }

    /// Where a subscriber of that channel resumes.
    pub(crate) fn position_of(&self, channel: u32) -> Option<&str> {
        let kept = self.positions.as_ref().filter(|_| self.frozen)?;
        kept.get(&channel).map(String::as_str)
    }

    /// The channels that a subscriber has.
    pub(crate) const fn channels_of(&self, subscriber: &Subscriber) -> Channels {
        Channels {
            first: subscriber.channel,
            each: self.each,
            of: self.channels,
        }
    }

    fn count_nats(
        &mut self,
        start: usize,
        end: usize,
        subscriber: &mut Subscriber,
        tally: &mut Tally,
        when: When,
    ) -> Result<usize, String> {
        if subscriber.phase == Phase::Head {
            return Ok(0);
        }
        // Its frames hold whole messages: a message alone in its frame has four bytes of header before it.
        const FRAME_HEAD: usize = 4;
        let mut refused = None;
        let Self { buf, scanner, .. } = self;
        let used = parse::nats(&buf[start..end], |data, length| {
            let message = match data {
                b"PONG" => Message::Accepted,
                b"PING" => {
                    // A pong that finds no room is not missed: the next ping asks again.
                    net::send(&subscriber.socket, &wire::client_frame(2, b"PONG\r\n"));
                    Message::Other
                }
                error if error.starts_with(b"-ERR") => {
                    refused = Some(String::from_utf8_lossy(error).into_owned());
                    Message::Refused
                }
                payload => scanner.message(payload),
            };
            count(message, length + FRAME_HEAD, subscriber, tally, when);
        });
        refused.map_or(Ok(used), Err)
    }

    fn count_frames(
        &mut self,
        start: usize,
        end: usize,
        subscriber: &mut Subscriber,
        tally: &mut Tally,
        when: When,
    ) -> Result<usize, String> {
        if subscriber.phase == Phase::Head {
            return Ok(0);
        }
        let mut refused = None;
        let keeps = !self.frozen;
        let Self {
            buf,
            scanner,
            positions,
            ..
        } = self;
        let used = parse::frames(&buf[start..end], |frame| match frame.opcode {
            1 | 2 => {
                let message = scanner.message(frame.payload);
                if let Some(positions) = positions.as_mut().filter(|_| keeps) {
                    keep(positions, subscriber.channel, message, frame.payload);
                }
                count(message, frame.wire, subscriber, tally, when);
                if message == Message::Refused {
                    refused = Some(String::from_utf8_lossy(frame.payload).into_owned());
                }
            }
            8 => {
                refused = Some(format!(
                    "close frame: {}",
                    String::from_utf8_lossy(frame.payload)
                ))
            }
            9 => {
                tally.others += 1;
                // A pong that finds no room is not missed: the next ping asks again.
                net::send(&subscriber.socket, &wire::client_frame(10, frame.payload));
            }
            _ => tally.others += 1,
        })
        .map_err(|error| format!("not a server's frame: {error:?}"))?;
        refused.map_or(Ok(used), Err)
    }

    fn count_events(
        &mut self,
        start: usize,
        end: usize,
        subscriber: &mut Subscriber,
        tally: &mut Tally,
        when: When,
    ) -> usize {
        if subscriber.phase == Phase::Head {
            return 0;
        }
        let Self { buf, scanner, .. } = self;
        let chunked = subscriber.chunks != Chunks::Plain;
        parse::events(&buf[start..end], |data, length| {
            let wire = if chunked {
                length + parse::chunk_overhead(length)
            } else {
                length
            };
            count(scanner.message(data), wire, subscriber, tally, when);
        })
    }
}

fn keep(positions: &mut HashMap<u32, String>, channel: u32, message: Message, payload: &[u8]) {
    if matches!(message, Message::Update { .. } | Message::Beat)
        && let Some(position) = parse::position(payload)
    {
        positions.insert(channel, position.to_owned());
    }
}

fn count(
    message: Message,
    wire: usize,
    subscriber: &mut Subscriber,
    tally: &mut Tally,
    when: When,
) {
    match message {
        Message::Update { due, seq } => {
            tally.frame_bytes = wire;
            subscriber.next = tally.update(when, due, seq, subscriber.next);
        }
        Message::Gap => tally.gaps += 1,
        Message::Beat => {
            tally.others += 1;
            if subscriber.phase == Phase::Live {
                subscriber.phase = Phase::Proven;
            }
        }
        Message::Accepted => match subscriber.phase {
            Phase::Reply(0..=1) => subscriber.phase = Phase::Live,
            Phase::Reply(left) => subscriber.phase = Phase::Reply(left - 1),
            _ => tally.others += 1,
        },
        Message::Refused | Message::Other => tally.others += 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscriber_is_small() {
        assert_eq!(size_of::<Subscriber>(), 56);
    }
}
