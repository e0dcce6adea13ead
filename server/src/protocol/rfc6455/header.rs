//! A client's frame header (RFC 6455, section 5.2).
//!
//! Does: bytes → [`Header`], or how many bytes that takes, or the first rule that they break. Owns: nothing. Never
//! knows: payloads. Keeps: no payload is taken before its announced length has passed the limits.

use super::{CONTROL_MAX, FRAGMENTS_MAX, Limits, Opcode, Violation, message::Message};

/// A header that broke no rule.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) opcode: Opcode,
    pub(super) last: bool,
    pub(super) mask: [u8; 4],
    /// Of the header itself, in bytes.
    pub(super) len: usize,
    pub(super) payload_len: usize,
}

/// What a frame's first bytes say.
#[derive(Debug, Clone, Copy)]
pub(super) enum Begun {
    Whole(Header),
    /// The header, or the next part of it, ends after this many bytes.
    Needs(usize),
}

impl Header {
    /// Reads the header at the start of `bytes`; `message` is the fragmented message under way.
    pub(super) fn read(
        bytes: &[u8],
        message: Option<&Message>,
        limits: &Limits,
    ) -> Result<Begun, Violation> {
        let Some(&first) = bytes.first() else {
            return Ok(Begun::Needs(2));
        };
        let (opcode, last) = first_byte(first, message)?;
        let Some(&second) = bytes.get(1) else {
            return Ok(Begun::Needs(2));
        };
        let len_bytes = second_byte(second, opcode)?;
        let len = 2 + len_bytes + 4;
        let Some(&[.., a, b, c, d]) = bytes.get(..len) else {
            return Ok(Begun::Needs(len));
        };
        let announced = match len_bytes {
            0 => u64::from(second & 0x7f),
            _ => long_len(&bytes[2..2 + len_bytes])?,
        };
        let header = Self {
            opcode,
            last,
            mask: [a, b, c, d],
            len,
            payload_len: within_limits(announced, opcode, message, limits)?,
        };
        Ok(Begun::Whole(header))
    }

    pub(super) fn is_control(&self) -> bool {
        is_control(self.opcode)
    }

    pub(super) fn frame_len(&self) -> usize {
        self.len.saturating_add(self.payload_len)
    }
}

fn is_control(opcode: Opcode) -> bool {
    matches!(opcode, Opcode::Close | Opcode::Ping | Opcode::Pong)
}

/// FIN, the reserved bits, the opcode, and whether it may come now (section 5.4).
fn first_byte(byte: u8, message: Option<&Message>) -> Result<(Opcode, bool), Violation> {
    if byte & 0x70 != 0 {
        return Err(Violation::ReservedBits);
    }
    let last = byte & 0x80 != 0;
    let opcode = match byte & 0x0f {
        0 => Opcode::Continuation,
        1 => Opcode::Text,
        2 => Opcode::Binary,
        8 => Opcode::Close,
        9 => Opcode::Ping,
        10 => Opcode::Pong,
        unknown => return Err(Violation::UnknownOpcode(unknown)),
    };
    match (opcode, message) {
        (Opcode::Close | Opcode::Ping | Opcode::Pong, _) if !last => {
            Err(Violation::ControlFragmented)
        }
        (Opcode::Continuation, None) => Err(Violation::NothingToContinue),
        (Opcode::Text | Opcode::Binary, Some(_)) => Err(Violation::MessageInterrupted),
        (Opcode::Binary, None) => Err(Violation::Binary),
        _ => Ok((opcode, last)),
    }
}

/// MASK and the short length: how many bytes of longer length follow.
fn second_byte(byte: u8, opcode: Opcode) -> Result<usize, Violation> {
    if byte & 0x80 == 0 {
        return Err(Violation::Unmasked);
    }
    match byte & 0x7f {
        126 | 127 if is_control(opcode) => Err(Violation::ControlTooLong),
        126 => Ok(2),
        127 => Ok(8),
        _ => Ok(0),
    }
}

/// The 16 or 64 bits of a longer length, which must have been needed.
fn long_len(bytes: &[u8]) -> Result<u64, Violation> {
    let len = bytes.iter().fold(0, |len, &b| len << 8 | u64::from(b));
    if len >> 63 != 0 {
        return Err(Violation::LengthTopBit);
    }
    let shorter_max = if bytes.len() == 2 {
        CONTROL_MAX as u64
    } else {
        u64::from(u16::MAX)
    };
    if len <= shorter_max {
        return Err(Violation::LengthNotMinimal);
    }
    Ok(len)
}

fn within_limits(
    announced: u64,
    opcode: Opcode,
    message: Option<&Message>,
    limits: &Limits,
) -> Result<usize, Violation> {
    let limit = limits.message_bytes;
    let so_far = message.map_or(0, Message::len);
    let len = usize::try_from(announced).unwrap_or(usize::MAX);
    if is_control(opcode) {
        return Ok(len);
    }
    if message.is_some_and(|m| m.fragments() >= FRAGMENTS_MAX) {
        return Err(Violation::TooManyFragments);
    }
    if len > limit.saturating_sub(so_far) {
        return Err(Violation::MessageTooBig { limit });
    }
    Ok(len)
}
