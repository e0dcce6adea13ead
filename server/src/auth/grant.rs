//! What somebody may do: permissions, and the patterns of channels that they hold for.
//!
//! Does: turns a grant as written (patterns as text, with `{sub}`) into a grant as meant, and answers whether it covers
//! a channel.
//! Owns: nothing. Never knows: keys, signatures, a clock, a socket.
//! Keeps: an empty grant grants nothing; no subject reaches another subject's channels by way of `{sub}`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::{Channel, check_channel_name, check_stream_name};

/// Most patterns in one grant. Each subscription walks over them once.
pub const PATTERNS_MAX: usize = 100;

/// Stands for the token's subject in a pattern.
const SUBJECT: &str = "{sub}";

/// One thing that a client may do with a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Permission {
    /// Read its view and its updates.
    Subscribe,
    /// Write records to it.
    Publish,
}

/// Why a pattern was refused. The message says what would have been right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Neither a channel nor the beginning of one with `*` behind it.
    #[error("a pattern reads stream/name, or the beginning of that with * as its last character")]
    Shape,
    /// `{sub}` where nobody has a subject.
    #[error("{{sub}} needs a token with a subject")]
    NoSubject,
    /// A subject that cannot be a part of a channel's name.
    #[error(
        "a subject in place of {{sub}} is 1 to 200 bytes without /, *, space and control characters"
    )]
    Subject,
    /// `user/{sub}*` would give `bob` what belongs to `bobby`.
    #[error("between {{sub}} and * there is a /, as in user/{{sub}}/*")]
    OpenSubject,
}

/// Why a grant was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// More patterns than [`PATTERNS_MAX`].
    #[error("a grant has at most {PATTERNS_MAX} patterns; use * to cover several channels by one")]
    TooManyPatterns,
    /// One pattern is wrong.
    #[error("channels[{index}]: {why}")]
    Pattern {
        /// Its place in the list, from 0.
        index: usize,
        /// What is wrong.
        why: PatternError,
    },
}

/// The channels that a grant covers: one, or all that begin alike. `{sub}` is already replaced.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pattern {
    /// The channel, or the beginning of one.
    text: Arc<str>,
    /// Whether any rest may follow.
    any_rest: bool,
}

impl Pattern {
    /// Reads a pattern: `stream/name` means that channel, a `*` as the last character means any rest, so that `*` alone
    /// is every channel. `{sub}` is replaced by `subject`.
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn parse(text: &str, subject: Option<&str>) -> Result<Self, PatternError> {
        let text = &*fill_in(text, subject)?;
        let (begin, any_rest) = match text.strip_suffix('*') {
            Some(begin) => (begin, true),
            None => (text, false),
        };
        if !(any_rest && may_begin_a_channel(begin) || begin.parse::<Channel>().is_ok()) {
            return Err(PatternError::Shape);
        }
        Ok(Self {
            text: begin.into(),
            any_rest,
        })
    }

    /// Whether it covers this channel.
    #[must_use]
    pub fn covers(&self, channel: &Channel) -> bool {
        if self.any_rest {
            channel.starts_with(&*self.text)
        } else {
            **channel == *self.text
        }
    }

    /// Whether it could cover some channel of this stream.
    #[must_use]
    pub fn reaches_stream(&self, stream: &str) -> bool {
        match self.text.split_once('/') {
            Some((own, _)) => own == stream,
            None => stream.starts_with(&*self.text),
        }
    }
}

/// Replaces `{sub}`. Whether it may stand where it stands is decided on the pattern as written, before a subject could
/// add anything to it.
fn fill_in(text: &str, subject: Option<&str>) -> Result<String, PatternError> {
    let Some((_, behind)) = text.rsplit_once(SUBJECT) else {
        return Ok(text.to_owned());
    };
    if behind.ends_with('*') && !behind.contains('/') {
        return Err(PatternError::OpenSubject);
    }
    let subject = subject.ok_or(PatternError::NoSubject)?;
    if subject.contains('/') || check_channel_name(subject).is_err() {
        return Err(PatternError::Subject);
    }
    Ok(text.replace(SUBJECT, subject))
}

/// Whether at least one valid channel begins like this.
fn may_begin_a_channel(begin: &str) -> bool {
    match begin.split_once('/') {
        Some((stream, name)) => {
            check_stream_name(stream).is_ok()
                && (name.is_empty() || check_channel_name(name).is_ok())
        }
        None => begin.is_empty() || check_stream_name(begin).is_ok(),
    }
}

/// A grant as written, in a token or in the configuration. The default grants nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GrantSpec {
    /// Patterns of channels, at most [`PATTERNS_MAX`]; see [`Pattern::parse`].
    pub channels: Vec<String>,
    /// What may be done with those channels.
    pub can: Vec<Permission>,
}

impl GrantSpec {
    /// The grant that this means for a subject.
    ///
    /// # Errors
    /// [`GrantError`] when there are too many patterns or one of them is wrong: nothing is granted in part.
    pub fn resolve(&self, subject: Option<&str>) -> Result<Grant, GrantError> {
        if self.channels.len() > PATTERNS_MAX {
            return Err(GrantError::TooManyPatterns);
        }
        let pattern = |(index, text): (usize, &String)| {
            Pattern::parse(text, subject).map_err(|why| GrantError::Pattern { index, why })
        };
        Ok(Grant {
            channels: self
                .channels
                .iter()
                .enumerate()
                .map(pattern)
                .collect::<Result<_, _>>()?,
            subscribe: self.can.contains(&Permission::Subscribe),
            publish: self.can.contains(&Permission::Publish),
        })
    }
}

/// A grant as meant. The default grants nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Grant {
    channels: Box<[Pattern]>,
    subscribe: bool,
    publish: bool,
}

impl Grant {
    /// Whether it permits this with this channel.
    #[must_use]
    pub fn may(&self, permission: Permission, channel: &Channel) -> bool {
        self.permits(permission) && self.channels.iter().any(|p| p.covers(channel))
    }

    /// Whether it permits publishing to some channel of this stream. Each record's own channel is still to be asked for
    /// with [`Grant::may`].
    #[must_use]
    pub fn may_publish_stream(&self, stream: &str) -> bool {
        self.permits(Permission::Publish) && self.channels.iter().any(|p| p.reaches_stream(stream))
    }

    fn permits(&self, permission: Permission) -> bool {
        match permission {
            Permission::Subscribe => self.subscribe,
            Permission::Publish => self.publish,
        }
    }
}
