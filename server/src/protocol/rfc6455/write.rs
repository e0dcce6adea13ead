//! The server's frames: whole messages, not masked (RFC 6455, sections 5.1 and 5.2).
//!
//! Does: writes headers, and close frames. Owns: nothing. Never knows: connections. Keeps: I8, since a header depends on
//! nothing but its payload.

use super::{Opcode, REASON_MAX};

/// Appends the header of an unfragmented frame to `out`: 2, 4 or 10 bytes. Of a close, ping or pong, the payload must
/// have at most [`super::CONTROL_MAX`] bytes.
pub fn frame_header(opcode: Opcode, payload_len: usize, out: &mut Vec<u8>) {
    let opcode = match opcode {
        Opcode::Continuation => 0,
        Opcode::Text => 1,
        Opcode::Binary => 2,
        Opcode::Close => 8,
        Opcode::Ping => 9,
        Opcode::Pong => 10,
    };
    out.push(0x80 | opcode);
    match (u8::try_from(payload_len), u16::try_from(payload_len)) {
        (Ok(len @ ..126), _) => out.push(len),
        (_, Ok(len)) => {
            out.push(126);
            out.extend_from_slice(&len.to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(payload_len as u64).to_be_bytes());
        }
    }
}

/// The length in bytes of the header that [`frame_header`] writes.
#[must_use]
pub const fn header_len(payload_len: usize) -> usize {
    match payload_len {
        0..126 => 2,
        126..=0xffff => 4,
        _ => 10,
    }
}

/// Appends a whole close frame to `out`. The reason is cut to [`REASON_MAX`] bytes, between characters.
///
/// `code` is one that may be sent: 1000 to 1003, 1007 to 1014, 3000 to 4999.
pub fn close_frame(code: u16, reason: &str, out: &mut Vec<u8>) {
    let reason = &reason[..reason.floor_char_boundary(REASON_MAX)];
    frame_header(Opcode::Close, 2 + reason.len(), out);
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}
