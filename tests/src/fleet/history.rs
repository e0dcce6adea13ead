//! What one client went through, in order: where it connected and with what, what it heard, how it ended.

use tidegate::model::Token;

use super::{message::Message, scene::Ms};

/// How a client follows its channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Over WebSocket.
    WebSocket,
    /// Over server-sent events.
    Sse,
    /// By long-polling views.
    Poll,
}

/// How a client's last connection ends.
pub(super) const THE_END: &str = "the run ended";

/// Something that happened to a client.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// It began to connect to a node, or to ask it, and handed over these tokens, by channel.
    Began {
        node: usize,
        tokens: Vec<(usize, Option<Token>)>,
    },
    /// It heard this.
    Heard(Message),
    /// It heard what makes no sense.
    Garbled(String),
    /// The connection ended: so says who ended it.
    Ended(&'static str),
}

/// That, and when.
#[derive(Clone, Debug)]
pub(super) struct Happened {
    pub(super) at: Ms,
    pub(super) what: What,
}

/// All that happened to a client.
#[derive(Debug)]
pub(super) struct History {
    pub(super) client: usize,
    pub(super) manner: Manner,
    pub(super) channels: Vec<usize>,
    pub(super) happened: Vec<Happened>,
}
