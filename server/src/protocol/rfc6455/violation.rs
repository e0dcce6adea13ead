//! The rules of RFC 6455 that a client can break.
//!
//! Does: names each, with the code to close with and words for the close frame. Owns and knows nothing else. Keeps: a
//! violation's text fits into a close frame.

use super::{CONTROL_MAX, FRAGMENTS_MAX};

/// What a client did wrong. Its text fits into a close frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Section 5.2: no extension gave the reserved bits a meaning.
    #[error("a frame has a reserved bit set, but no extension was agreed on")]
    ReservedBits,
    /// Section 5.2: opcodes 3 to 7 and 11 to 15.
    #[error("a frame has the unknown opcode {0}")]
    UnknownOpcode(u8),
    /// Section 5.1.
    #[error("a frame is not masked; a client masks all its frames")]
    Unmasked,
    /// Section 5.2.
    #[error("a frame's length is not in its shortest form")]
    LengthNotMinimal,
    /// Section 5.2.
    #[error("the top bit of a frame's 64-bit length is set")]
    LengthTopBit,
    /// Section 5.5.
    #[error("a close, ping or pong frame is fragmented")]
    ControlFragmented,
    /// Section 5.5.
    #[error("a close, ping or pong frame has more than {CONTROL_MAX} bytes")]
    ControlTooLong,
    /// Section 5.4.
    #[error("a continuation frame came without a message to continue")]
    NothingToContinue,
    /// Section 5.4.
    #[error("a message began before the fragmented one ended")]
    MessageInterrupted,
    /// Section 5.5.1.
    #[error("a close frame's payload has one byte; it is empty or begins with a code of two")]
    CloseTooShort,
    /// Section 7.4.
    #[error("a close frame has the code {0}, which may not be sent")]
    CloseCode(u16),
    /// Section 7.4.1, code 1003.
    #[error("a binary message came; send text")]
    Binary,
    /// Section 8.1: in a message or in the reason of a close frame.
    #[error("a text is not valid UTF-8")]
    Utf8,
    /// More than [`super::Limits::message_bytes`].
    #[error("a message has more than {limit} bytes")]
    MessageTooBig {
        /// The limit in bytes.
        limit: usize,
    },
    /// More than [`FRAGMENTS_MAX`].
    #[error("a message comes in more than {FRAGMENTS_MAX} fragments")]
    TooManyFragments,
}

impl Violation {
    /// The code to close the connection with (section 7.4.1).
    #[must_use]
    pub fn close_code(self) -> u16 {
        match self {
            Self::Binary => 1003,
            Self::Utf8 => 1007,
            Self::MessageTooBig { .. } | Self::TooManyFragments => 1009,
            Self::ReservedBits
            | Self::UnknownOpcode(_)
            | Self::Unmasked
            | Self::LengthNotMinimal
            | Self::LengthTopBit
            | Self::ControlFragmented
            | Self::ControlTooLong
            | Self::NothingToContinue
            | Self::MessageInterrupted
            | Self::CloseTooShort
            | Self::CloseCode(_) => 1002,
        }
    }
}
