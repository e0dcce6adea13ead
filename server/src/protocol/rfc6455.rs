//! RFC 6455, the server's side: a client's bytes → events, and the headers of the frames that answer.
//!
//! Does: reads frames out of a read buffer that all connections of a worker share, unmasks them there, joins fragments,
//! and refuses whatever the RFC forbids at the first byte that shows it. A binary message is refused (1003), an
//! extension is never agreed to. After a close frame, a violation or a `Break` it ignores every further byte.
//! Owns: [`Partial`], what a connection's last read cut off; a connection that is between messages holds none.
//! Never knows: a socket, a clock, what a text means. Keeps: I9. What it holds is bounded by [`Limits`], whatever a
//! header announces; and where reads cut the stream never changes the events nor the verdict.

use std::{ops::ControlFlow, str};

mod header;
mod message;
#[cfg(test)]
mod tests;
mod violation;
mod write;

use header::{Begun, Header};
use message::Message;
pub use violation::Violation;
pub use write::{close_frame, frame_header, header_len};

/// Most frames that one message may come in. The RFC has no limit; without one, empty fragments would never end.
pub const FRAGMENTS_MAX: u32 = 1024;
/// Longest payload of a close, ping or pong frame, in bytes (section 5.5).
pub const CONTROL_MAX: usize = 125;
/// Longest reason in a close frame, in bytes: [`CONTROL_MAX`] less the code.
pub const REASON_MAX: usize = CONTROL_MAX - 2;

/// What a connection may make this server hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest message in bytes, all its fragments together.
    pub message_bytes: usize,
}

/// What a frame is (section 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opcode {
    /// A further fragment of a message.
    Continuation,
    /// A message of UTF-8, or its first fragment.
    Text,
    /// A message of bytes, or its first fragment.
    Binary,
    /// The sender will send nothing more.
    Close,
    /// Asks for a pong of the same payload.
    Ping,
    /// Answers a ping.
    Pong,
}

/// What a client said. Everything borrowed lives until the callback returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole message.
    Text(&'a str),
    /// To be answered with a pong of the same payload, 125 bytes at most.
    Ping(&'a [u8]),
    /// An answer to a ping, or unasked for.
    Pong(&'a [u8]),
    /// The last event of a connection.
    Close {
        /// Why, if the client says so.
        code: Option<u16>,
        /// In words, 123 bytes at most; may be empty.
        reason: &'a str,
    },
}

/// What is left of a connection's input between reads; `None` when nothing is, so that an idle connection holds nothing.
#[derive(Debug, Default)]
pub struct Partial {
    /// The bytes so far of a header, or of a whole control frame: 131 at most.
    cut: Vec<u8>,
    /// The text frame whose payload is arriving.
    frame: Option<TextFrame>,
    /// The message that it, or the next continuation, belongs to.
    message: Option<Message>,
    /// Nothing more is read.
    ended: bool,
}

#[derive(Debug, Clone, Copy)]
struct TextFrame {
    last: bool,
    left: usize,
    /// Turned so that its first byte is the one for the next byte of the payload.
    mask: [u8; 4],
}

impl Partial {
    /// What this holds in memory, in bytes: at most [`Limits::message_bytes`] and some 500 more.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        let message = self.message.as_ref().map_or(0, Message::held_bytes);
        size_of::<Self>() + self.cut.capacity() + message
    }

    /// Bytes that the frame whose payload is arriving still lacks: nothing else can come before them.
    #[must_use]
    pub fn payload_left(&self) -> usize {
        self.frame.map_or(0, |frame| frame.left)
    }

    fn is_idle(&self) -> bool {
        self.cut.is_empty() && self.frame.is_none() && self.message.is_none() && !self.ended
    }
}

/// Takes bytes as they came from a connection's socket, and calls `on` for each event that they complete.
///
/// A frame that is whole in `input` is unmasked there and handed on without a copy; only what is cut is copied to
/// `partial`, which is `None` again as soon as nothing is pending. When `on` returns `Break`, and after a close frame
/// or a violation, the rest of `input` is dropped, and so is the input of any later call.
///
/// # Errors
/// The first [`Violation`]; events before it have been handed on.
pub fn feed(
    partial: &mut Option<Box<Partial>>,
    input: &mut [u8],
    limits: &Limits,
    on: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<(), Violation> {
    if partial.as_ref().is_some_and(|p| p.ended) {
        return Ok(());
    }
    let outcome = read(partial, input, limits, on);
    if !matches!(outcome, Ok(ControlFlow::Continue(()))) {
        *partial = Some(Box::new(Partial {
            ended: true,
            ..Partial::default()
        }));
    } else if partial.as_ref().is_some_and(|p| p.is_idle()) {
        *partial = None;
    }
    outcome.map(|_| ())
}

type Flow = Result<ControlFlow<()>, Violation>;
const GO_ON: Flow = Ok(ControlFlow::Continue(()));

fn read(
    partial: &mut Option<Box<Partial>>,
    mut rest: &mut [u8],
    limits: &Limits,
    on: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Flow {
    while !rest.is_empty() {
        let flow = match partial {
            Some(p) if p.frame.is_some() => p.read_payload(&mut rest, limits, on)?,
            Some(p) if !p.cut.is_empty() => p.read_cut(&mut rest, limits, on)?,
            _ => read_frame(partial, &mut rest, limits, on)?,
        };
        if flow.is_break() {
            return Ok(flow);
        }
    }
    GO_ON
}

/// The usual case: a frame begins in `rest`, and most often ends there.
fn read_frame(
    partial: &mut Option<Box<Partial>>,
    rest: &mut &mut [u8],
    limits: &Limits,
    on: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Flow {
    let message = partial.as_ref().and_then(|p| p.message.as_ref());
    let header = match Header::read(rest, message, limits)? {
        Begun::Whole(header) if !header.is_control() || rest.len() >= header.frame_len() => header,
        _ => {
            let cut = take(rest, usize::MAX);
            partial.get_or_insert_default().cut.extend_from_slice(cut);
            return GO_ON;
        }
    };
    let in_place = header.is_control() || (header.last && message.is_none());
    if !in_place || rest.len() < header.frame_len() {
        take(rest, header.len);
        return partial
            .get_or_insert_default()
            .begin_text(header, rest, limits, on);
    }
    let payload = &mut take(rest, header.frame_len())[header.len..];
    unmask(payload, header.mask);
    if header.is_control() {
        control(header.opcode, payload, on)
    } else {
        let text = str::from_utf8(payload).map_err(|_| Violation::Utf8)?;
        Ok(on(Event::Text(text)))
    }
}

impl Partial {
    /// Completes a header, or a control frame, that an earlier read cut.
    fn read_cut(
        &mut self,
        rest: &mut &mut [u8],
        limits: &Limits,
        on: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Flow {
        let need = match Header::read(&self.cut, self.message.as_ref(), limits)? {
            Begun::Needs(need) => need,
            Begun::Whole(control) => control.frame_len(), // text is begun as soon as its header is whole
        };
        let more = need.saturating_sub(self.cut.len());
        self.cut.extend_from_slice(take(rest, more));
        let Begun::Whole(header) = Header::read(&self.cut, self.message.as_ref(), limits)? else {
            return GO_ON;
        };
        if !header.is_control() {
            self.cut = Vec::new();
            return self.begin_text(header, rest, limits, on);
        }
        if self.cut.len() < header.frame_len() {
            return GO_ON;
        }
        let mut frame = std::mem::take(&mut self.cut);
        let payload = &mut frame[header.len..];
        unmask(payload, header.mask);
        control(header.opcode, payload, on)
    }

    fn begin_text(
        &mut self,
        header: Header,
        rest: &mut &mut [u8],
        limits: &Limits,
        on: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Flow {
        self.message.get_or_insert_default().begin_fragment();
        self.frame = Some(TextFrame {
            last: header.last,
            left: header.payload_len,
            mask: header.mask,
        });
        self.read_payload(rest, limits, on)
    }

    fn read_payload(
        &mut self,
        rest: &mut &mut [u8],
        limits: &Limits,
        on: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Flow {
        let (Some(frame), Some(message)) = (&mut self.frame, &mut self.message) else {
            return GO_ON;
        };
        let payload = take(rest, frame.left);
        unmask(payload, frame.mask);
        frame.mask.rotate_left(payload.len() % 4);
        frame.left -= payload.len();
        message.push(payload, limits.message_bytes)?;
        if frame.left > 0 {
            return GO_ON;
        }
        let last = frame.last;
        self.frame = None;
        match self.message.take_if(|_| last) {
            Some(message) => Ok(on(Event::Text(&message.finish()?))),
            None => GO_ON,
        }
    }
}

/// Splits off the first `len` bytes, or as many as there are.
fn take<'a>(rest: &mut &'a mut [u8], len: usize) -> &'a mut [u8] {
    let whole = std::mem::take(rest);
    let (first, second) = whole.split_at_mut(len.min(whole.len()));
    *rest = second;
    first
}

/// Section 5.3.
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, end) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in end.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

/// Hands on a whole control frame.
fn control(
    opcode: Opcode,
    payload: &[u8],
    on: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Flow {
    match opcode {
        Opcode::Ping => Ok(on(Event::Ping(payload))),
        Opcode::Pong => Ok(on(Event::Pong(payload))),
        Opcode::Close | Opcode::Continuation | Opcode::Text | Opcode::Binary => {
            // Section 5.5.1: whatever `on` says, nothing comes after a close frame.
            match on(close_event(payload)?) {
                ControlFlow::Continue(()) | ControlFlow::Break(()) => Ok(ControlFlow::Break(())),
            }
        }
    }
}

fn close_event(payload: &[u8]) -> Result<Event<'_>, Violation> {
    match payload {
        [] => Ok(Event::Close {
            code: None,
            reason: "",
        }),
        [_] => Err(Violation::CloseTooShort),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            // Sections 7.4.1 and 7.4.2, and IANA's registry of close codes: 1004 to 1006 and 1015 are never sent.
            if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                return Err(Violation::CloseCode(code));
            }
            let reason = str::from_utf8(reason).map_err(|_| Violation::Utf8)?;
            Ok(Event::Close {
                code: Some(code),
                reason,
            })
        }
    }
}
