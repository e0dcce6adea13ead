//! Every error code and close code; `docs/protocol.md` has the same table, and a test compares them.

/// Stable codes of errors, over WebSocket and in `application/problem+json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// Not JSON, or not an object of the protocol.
    BadMessage,
    /// An `op` that this version does not know.
    UnknownOp,
    /// The channel's name breaks the rules of names.
    BadChannel,
    /// The token to resume from does not parse, or belongs to another stream.
    BadToken,
    /// The request's parameters.
    BadRequest,
    /// A record that can't be published; the message names the line and the field.
    BadRecord,
    /// No such stream.
    UnknownStream,
    /// No such path.
    NotFound,
    /// No token, or one that does not hold.
    Unauthorized,
    /// The token's time is over.
    TokenExpired,
    /// The token does not permit this.
    Forbidden,
    /// More channels than a connection may have.
    TooManyChannels,
    /// A view spread over more partitions than fit into a token.
    TooManyPartitions,
    /// Already subscribed to that channel.
    AlreadySubscribed,
    /// Not subscribed to that channel.
    NotSubscribed,
    /// An option that this channel's mode does not have.
    BadOption,
    /// A message beyond `limits.message_bytes`.
    MessageTooBig,
    /// A record beyond `limits.record_bytes`.
    RecordTooLarge,
    /// The view has as many rows or bytes as `view_max` allows.
    ViewFull,
    /// The request, its body, or the next line of it did not come in time.
    TimedOut,
    /// This address has as many connections as one may have.
    TooManyConnections,
    /// Too many at once; it passes.
    RateLimited,
    /// The node has as much to do as it can; it passes.
    Overloaded,
    /// This node is behind the client's token; another may not be.
    RetryLater,
    /// An earlier line of this channel failed in a way that passes: send both again.
    AfterFailed,
    /// The log's disk is full or failing; it may pass.
    NotStored,
    /// The log elsewhere does not answer; it may pass.
    Unavailable,
    /// The node is leaving.
    Draining,
    /// A fault of ours.
    Internal,
}

impl ErrorCode {
    /// All of them, as the page lists them.
    pub const ALL: [Self; 29] = [
        Self::BadMessage,
        Self::UnknownOp,
        Self::BadChannel,
        Self::BadToken,
        Self::BadRequest,
        Self::BadRecord,
        Self::UnknownStream,
        Self::NotFound,
        Self::Unauthorized,
        Self::TokenExpired,
        Self::Forbidden,
        Self::TooManyChannels,
        Self::TooManyPartitions,
        Self::AlreadySubscribed,
        Self::NotSubscribed,
        Self::BadOption,
        Self::MessageTooBig,
        Self::RecordTooLarge,
        Self::ViewFull,
        Self::TimedOut,
        Self::TooManyConnections,
        Self::RateLimited,
        Self::Overloaded,
        Self::RetryLater,
        Self::AfterFailed,
        Self::NotStored,
        Self::Unavailable,
        Self::Draining,
        Self::Internal,
    ];

    /// Its word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadMessage => "bad_message",
            Self::UnknownOp => "unknown_op",
            Self::BadChannel => "bad_channel",
            Self::BadToken => "bad_token",
            Self::BadRequest => "bad_request",
            Self::BadRecord => "bad_record",
            Self::UnknownStream => "unknown_stream",
            Self::NotFound => "not_found",
            Self::Unauthorized => "unauthorized",
            Self::TokenExpired => "token_expired",
            Self::Forbidden => "forbidden",
            Self::TooManyChannels => "too_many_channels",
            Self::TooManyPartitions => "too_many_partitions",
            Self::AlreadySubscribed => "already_subscribed",
            Self::NotSubscribed => "not_subscribed",
            Self::BadOption => "bad_option",
            Self::MessageTooBig => "message_too_big",
            Self::RecordTooLarge => "record_too_large",
            Self::ViewFull => "view_full",
            Self::TimedOut => "timed_out",
            Self::TooManyConnections => "too_many_connections",
            Self::RateLimited => "rate_limited",
            Self::Overloaded => "overloaded",
            Self::RetryLater => "retry_later",
            Self::AfterFailed => "after_failed",
            Self::NotStored => "not_stored",
            Self::Unavailable => "unavailable",
            Self::Draining => "draining",
            Self::Internal => "internal",
        }
    }

    /// The status that carries it over HTTP.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::BadMessage
            | Self::UnknownOp
            | Self::BadChannel
            | Self::BadToken
            | Self::BadRequest => 400,
            Self::TooManyChannels
            | Self::TooManyPartitions
            | Self::BadOption
            | Self::NotSubscribed => 400,
            Self::Unauthorized | Self::TokenExpired => 401,
            Self::Forbidden => 403,
            Self::UnknownStream | Self::NotFound => 404,
            Self::TimedOut => 408,
            Self::AlreadySubscribed => 409,
            Self::MessageTooBig | Self::RecordTooLarge => 413,
            Self::BadRecord | Self::ViewFull => 422,
            Self::TooManyConnections | Self::RateLimited => 429,
            Self::Internal => 500,
            Self::Overloaded
            | Self::RetryLater
            | Self::AfterFailed
            | Self::NotStored
            | Self::Unavailable
            | Self::Draining => 503,
        }
    }
}

/// Why a connection is closed. 4000–4499 ask to reconnect, 4500–4999 not to; the others are RFC 6455, section 7.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseCode {
    /// The client said goodbye.
    Normal,
    /// The frames broke RFC 6455.
    Protocol,
    /// A binary message.
    Unsupported,
    /// Text that is not UTF-8.
    InvalidText,
    /// A message beyond the limit.
    TooBig,
    /// A fault of ours.
    Internal,
    /// The node drains; `bye` said when to come back.
    Restart,
    /// The node can't take more.
    Overloaded,
    /// Drained slower than the minimal rate, or its policy is `disconnect`. Its token lets it resume.
    SlowConsumer,
    /// The token's time is over: come back with a fresh one.
    TokenExpired,
    /// Nothing was heard for two heartbeats and a ping.
    IdleTimeout,
    /// More pings and refused messages than `limits.messages_per_second` allows.
    RateLimited,
    /// A message that was not whole within `limits.message_timeout`.
    TooSlow,
    /// An operator asks it to come back, in its own time.
    Moved,
    /// No token within `access.auth_timeout`.
    AuthTimeout,
    /// The token does not hold.
    Unauthorized,
    /// An operator closed it.
    Closed,
}

impl CloseCode {
    /// All of them, as the page lists them.
    pub const ALL: [Self; 17] = [
        Self::Normal,
        Self::Protocol,
        Self::Unsupported,
        Self::InvalidText,
        Self::TooBig,
        Self::Internal,
        Self::Restart,
        Self::Overloaded,
        Self::SlowConsumer,
        Self::TokenExpired,
        Self::IdleTimeout,
        Self::RateLimited,
        Self::TooSlow,
        Self::Moved,
        Self::AuthTimeout,
        Self::Unauthorized,
        Self::Closed,
    ];

    /// Its number in a close frame.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Normal => 1000,
            Self::Protocol => 1002,
            Self::Unsupported => 1003,
            Self::InvalidText => 1007,
            Self::TooBig => 1009,
            Self::Internal => 1011,
            Self::Restart => 1012,
            Self::Overloaded => 1013,
            Self::SlowConsumer => 4000,
            Self::TokenExpired => 4001,
            Self::IdleTimeout => 4002,
            Self::RateLimited => 4003,
            Self::TooSlow => 4004,
            Self::Moved => 4005,
            Self::AuthTimeout => 4500,
            Self::Unauthorized => 4501,
            Self::Closed => 4502,
        }
    }

    /// Its word: in `bye`, metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Protocol => "protocol",
            Self::Unsupported => "unsupported",
            Self::InvalidText => "invalid_text",
            Self::TooBig => "too_big",
            Self::Internal => "internal",
            Self::Restart => "draining",
            Self::Overloaded => "overloaded",
            Self::SlowConsumer => "slow_consumer",
            Self::TokenExpired => "token_expired",
            Self::IdleTimeout => "idle_timeout",
            Self::RateLimited => "rate_limited",
            Self::TooSlow => "too_slow",
            Self::Moved => "moved",
            Self::AuthTimeout => "auth_timeout",
            Self::Unauthorized => "unauthorized",
            Self::Closed => "closed",
        }
    }
}
