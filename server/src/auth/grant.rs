//! What somebody may do: permissions, and the patterns of channels that they hold for.
//!
//! Does: turns a grant as written (patterns as text, with `{sub}`) into a grant as meant, and answers whether it covers
//! a channel.
//! Owns: nothing. Never knows: keys, signatures, a clock, a socket.
//! Keeps: an empty grant grants nothing; no subject reaches another subject's channels by way of `{sub}`.

use serde::{Deserialize, Serialize};

use crate::model::{CANARIES, Channel, check_channel_name, check_stream_name};

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

/// The channels that a grant covers: one, or with a `*` as its last character all that begin alike. `{sub}` is already
/// replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Reads a pattern: `stream/name` means that channel, a `*` as the last character means any rest, so that `*` alone
    /// is every channel. `{sub}` is replaced by `subject`.
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn parse(text: &str, subject: Option<&str>) -> Result<Self, PatternError> {
        let text = fill_in(text, subject)?;
        let means_something = match text.strip_suffix('*') {
            Some(begin) => may_begin_a_channel(begin),
            None => text.parse::<Channel>().is_ok(),
        };
        if means_something {
            Ok(Self(text))
        } else {
            Err(PatternError::Shape)
        }
    }

    /// Whether it covers this channel.
    #[must_use]
    pub fn covers(&self, channel: &Channel) -> bool {
        covers(&self.0, channel)
    }

    /// Whether it could cover some channel of this stream.
    #[must_use]
    pub fn reaches_stream(&self, stream: &str) -> bool {
        reaches_stream(&self.0, stream)
    }
}

fn covers(pattern: &str, channel: &Channel) -> bool {
    match pattern.strip_suffix('*') {
        // What nodes measure by is covered only by what names it.
        Some(begin) if channel.is_canary() => {
            let named = begin
                .split_once('/')
                .is_some_and(|(_, name)| name.starts_with(CANARIES));
            named && channel.starts_with(begin)
        }
        Some(begin) => channel.starts_with(begin),
        None => **channel == *pattern,
    }
}

fn reaches_stream(pattern: &str, stream: &str) -> bool {
    match pattern.split_once('/') {
        Some((own, _)) => own == stream,
        None => pattern
            .strip_suffix('*')
            .is_some_and(|begin| stream.starts_with(begin)),
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
        let mut patterns = String::new();
        for parsed in self.channels.iter().enumerate().map(pattern) {
            patterns.push_str(&parsed?.0);
            patterns.push('\n');
        }
        Ok(Grant {
            patterns: patterns.into(),
            rights: Rights {
                subscribe: self.can.contains(&Permission::Subscribe),
                publish: self.can.contains(&Permission::Publish),
            },
        })
    }
}

/// What may be done. The default is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Rights {
    subscribe: bool,
    publish: bool,
}

impl Rights {
    /// Whether they and these patterns, a line each, permit this with this channel.
    pub(super) fn permit(self, patterns: &str, permission: Permission, channel: &Channel) -> bool {
        self.have(permission) && patterns.lines().any(|pattern| covers(pattern, channel))
    }

    /// Whether they and these patterns permit publishing to some channel of this stream.
    pub(super) fn permit_publish(self, patterns: &str, stream: &str) -> bool {
        let mut patterns = patterns.lines();
        self.publish && patterns.any(|pattern| reaches_stream(pattern, stream))
    }

    const fn have(self, permission: Permission) -> bool {
        match permission {
            Permission::Subscribe => self.subscribe,
            Permission::Publish => self.publish,
        }
    }
}

/// A grant as meant. The default grants nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grant {
    /// A line for each pattern: no pattern has a control character.
    pub(super) patterns: Box<str>,
    pub(super) rights: Rights,
}

impl Grant {
    /// Whether it permits this with this channel.
    #[must_use]
    pub fn may(&self, permission: Permission, channel: &Channel) -> bool {
        self.rights.permit(&self.patterns, permission, channel)
    }

    /// Whether it permits publishing to some channel of this stream. Each record's own channel is still to be asked for
    /// with [`Grant::may`].
    #[must_use]
    pub fn may_publish_stream(&self, stream: &str) -> bool {
        self.rights.permit_publish(&self.patterns, stream)
    }
}
