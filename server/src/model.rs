//! The nouns of Tidegate.
//!
//! Does: names what the other rooms pass to each other, and parses the names that come from outside.
//! Owns: nothing. Never knows: any other room, a clock, a socket, a wire format (but for the text of positions, which
//! is part of their meaning). Keeps: I9.

pub mod names;
mod placing;
mod poison;

use std::{borrow::Borrow, fmt, hash::Hash, ops::Deref, str::FromStr, sync::Arc, time::Duration};

use bytes::Bytes;

pub use placing::{Generations, Placing};
pub use poison::PoisonRule;

/// Longest stream name, in bytes.
pub const STREAM_NAME_MAX: usize = 63;
/// Longest name of a channel within its stream, in bytes.
pub const CHANNEL_NAME_MAX: usize = 200;
/// What the names of channels begin with by which nodes measure a stream. No pattern covers them that does not begin so, too.
pub const CANARIES: &str = "$canary/";
/// Longest row id, in bytes.
pub const ROW_ID_MAX: usize = 256;
/// Longest token, in bytes.
pub const TOKEN_MAX: usize = 4096;

/// Why a name from outside was refused. The message says what would have been right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not `[a-z0-9][a-z0-9_-]{0,62}`.
    #[error(
        "a stream's name is 1 to {STREAM_NAME_MAX} of a-z, 0-9, _ and -, and begins with a letter or digit"
    )]
    Stream,
    /// Not `stream/name`.
    #[error("a channel reads stream/name")]
    NoSlash,
    /// The part behind the slash.
    #[error(
        "a channel's name is 1 to {CHANNEL_NAME_MAX} bytes without space, control characters or *"
    )]
    Channel,
    /// A row id that is too long.
    #[error("a row id has at most {ROW_ID_MAX} bytes")]
    Row,
    /// Not `partition.epoch:offset,…`.
    #[error(
        "a token reads partition.epoch:offset, joined by commas, each partition once, {TOKEN_MAX} bytes at most"
    )]
    Token,
}

/// Checks a stream's name.
///
/// # Errors
/// [`NameError::Stream`].
pub fn check_stream_name(name: &str) -> Result<(), NameError> {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    match bytes.first() {
        Some(&first) if word(first) && bytes.len() <= STREAM_NAME_MAX => {}
        _ => return Err(NameError::Stream),
    }
    if bytes.iter().all(|&b| word(b) || b == b'_' || b == b'-') {
        Ok(())
    } else {
        Err(NameError::Stream)
    }
}

/// Checks the part of a channel behind `stream/`.
///
/// # Errors
/// [`NameError::Channel`].
pub fn check_channel_name(name: &str) -> Result<(), NameError> {
    let bad = |c: char| c.is_control() || c.is_whitespace() || c == '*';
    if name.is_empty() || name.len() > CHANNEL_NAME_MAX || name.contains(bad) {
        Err(NameError::Channel)
    } else {
        Ok(())
    }
}

/// What a client subscribes to: `stream/name`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Channel(Arc<str>);

impl Channel {
    /// Joins a stream's name and a name within it.
    ///
    /// # Errors
    /// [`NameError`] when either part is not a valid name.
    pub fn new(stream: &str, name: &str) -> Result<Self, NameError> {
        check_stream_name(stream)?;
        check_channel_name(name)?;
        Ok(Self(format!("{stream}/{name}").into()))
    }

    /// The stream's name.
    #[must_use]
    pub fn stream(&self) -> &str {
        self.0.split_once('/').map_or("", |(stream, _)| stream)
    }

    /// Whether a node measures its stream by it, and nobody else writes to it.
    #[must_use]
    pub fn is_canary(&self) -> bool {
        self.name().starts_with(CANARIES)
    }

    /// The name within the stream.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, name)| name)
    }
}

impl FromStr for Channel {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let (stream, name) = text.split_once('/').ok_or(NameError::NoSlash)?;
        check_stream_name(stream)?;
        check_channel_name(name)?;
        Ok(Self(text.into()))
    }
}

impl Deref for Channel {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}
impl Borrow<str> for Channel {
    fn borrow(&self) -> &str {
        &self.0
    }
}
impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The identity of a row within its channel. `""` where a channel is one row.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct RowId(Option<Arc<str>>);

impl RowId {
    /// Checks and takes a row id.
    ///
    /// # Errors
    /// [`NameError::Row`].
    pub fn new(text: &str) -> Result<Self, NameError> {
        match text.len() {
            0 => Ok(Self(None)),
            1..=ROW_ID_MAX => Ok(Self(Some(text.into()))),
            _ => Err(NameError::Row),
        }
    }
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or("")
    }
}
impl fmt::Debug for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// A record's place in its partition. Only its order means anything.
///
/// The engine's offsets begin at 1, so that [`Offset::BEFORE_ALL`] is a position before every record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Offset(u64);

impl Offset {
    /// Before the first record of any log.
    pub const BEFORE_ALL: Self = Self(0);
    /// From an adapter's number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }
    /// The adapter's number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}
impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The identity of a partition's log. When it changes, old offsets mean nothing.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(Arc<str>);

impl Epoch {
    /// Takes an epoch's name: 1 to 64 of letters, digits, `_` and `-`.
    ///
    /// # Errors
    /// [`NameError::Token`].
    pub fn new(text: &str) -> Result<Self, NameError> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if (1..=64).contains(&text.len()) && text.bytes().all(word) {
            Ok(Self(text.into()))
        } else {
            Err(NameError::Token)
        }
    }
    /// The epoch's name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// (epoch, partition, offset): a place in a stream. Its text is `partition.epoch:offset`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Position {
    /// Which lane of the stream.
    pub partition: u32,
    /// Which log of that lane.
    pub epoch: Epoch,
    /// Where in that log.
    pub offset: Offset,
}
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}:{}", self.partition, self.epoch, self.offset)
    }
}
impl FromStr for Position {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let (partition, rest) = text.split_once('.').ok_or(NameError::Token)?;
        let (epoch, offset) = rest.split_once(':').ok_or(NameError::Token)?;
        Ok(Self {
            partition: decimal(partition)?,
            epoch: Epoch::new(epoch)?,
            offset: Offset(decimal(offset)?),
        })
    }
}

/// Digits only: `u64::from_str` would also take a plus sign.
fn decimal<T: FromStr>(text: &str) -> Result<T, NameError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(NameError::Token);
    }
    text.parse().map_err(|_| NameError::Token)
}

/// What a client hands back to resume: the newest position of each partition that it has heard of.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Token(Vec<Position>);

impl Token {
    /// A token of these positions; of two for one partition the later one in the list counts.
    #[must_use]
    pub fn of(positions: impl IntoIterator<Item = Position>) -> Self {
        let mut token = Self::default();
        positions.into_iter().for_each(|p| token.advance(p));
        token
    }
    /// The position in one partition.
    #[must_use]
    pub fn position(&self, partition: u32) -> Option<&Position> {
        self.0.iter().find(|p| p.partition == partition)
    }
    /// Without the position of a partition. Tells whether it had one.
    pub fn forget(&mut self, partition: u32) -> bool {
        let had = self.0.len();
        self.0.retain(|position| position.partition != partition);
        self.0.len() < had
    }
    /// Replaces the position of that partition.
    pub fn advance(&mut self, position: Position) {
        match self
            .0
            .binary_search_by_key(&position.partition, |p| p.partition)
        {
            Ok(at) => self.0[at] = position,
            Err(at) => {
                // Most have one, and connections keep them.
                if self.0.is_empty() {
                    self.0.reserve_exact(1);
                }
                self.0.insert(at, position);
            }
        }
    }
    /// Its positions, by partition.
    #[must_use]
    pub fn positions(&self) -> &[Position] {
        &self.0
    }
}
impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, position) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            position.fmt(f)?;
        }
        Ok(())
    }
}
impl FromStr for Token {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.len() > TOKEN_MAX {
            return Err(NameError::Token);
        }
        let positions = text
            .split(',')
            .map(str::parse)
            .collect::<Result<Vec<Position>, _>>()?;
        let named = positions.len();
        let token = Self::of(positions);
        if token.0.len() == named {
            Ok(token)
        } else {
            Err(NameError::Token)
        }
    }
}

/// A moment of the node's monotonic clock: microseconds since the node started.
///
/// Microseconds, because the resume table compares the sending of a fetch with the arrival of a token.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Moment(u64);

impl Moment {
    /// From microseconds since the node started.
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }
    /// Milliseconds since the node started, as they stand on the wire.
    #[must_use]
    pub const fn millis(self) -> u64 {
        self.0 / 1000
    }
    /// Microseconds since the node started.
    #[must_use]
    pub const fn micros(self) -> u64 {
        self.0
    }
    /// How much later this is; zero when it is earlier.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
    /// This much later.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)),
        )
    }
}

/// What a source yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place in its partition.
    pub offset: Offset,
    /// The identity of the row: what logs compact by.
    pub key: Bytes,
    /// The value; none in a tombstone.
    pub value: Option<Bytes>,
    /// When it happened, says the producer, in milliseconds since 1970.
    pub event_time_ms: Option<i64>,
    /// When the log took it, in milliseconds since 1970.
    pub append_time_ms: i64,
    /// Whether the log wrote it by itself, since its row's time was over: no sign of a producer.
    pub expired: bool,
}

/// A decoded upsert or tombstone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The channel it belongs to.
    pub channel: Channel,
    /// The row that it sets or deletes.
    pub row: RowId,
    /// JSON text of the row; none deletes it.
    pub data: Option<Bytes>,
    /// Event time, else append time, in milliseconds since 1970.
    pub ts_ms: i64,
}

/// What a view says after a change, at one position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// Where.
    pub position: Position,
    /// What.
    pub change: Change,
}

/// One row of a view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// JSON text; empty where the row is a grave.
    pub data: Bytes,
    /// Event time, else append time, in milliseconds since 1970.
    pub ts_ms: i64,
    /// The offset of the change that it comes from.
    pub offset: Offset,
}

impl Row {
    /// Whether it says that this partition has deleted the row: kept where an older partition may still have it.
    #[must_use]
    pub const fn is_grave(&self) -> bool {
        self.data.is_empty()
    }
}

/// The rows of a view, by row id: a persistent map, cheap to clone, so that a snapshot is encoded off the line.
pub type Rows = imbl::OrdMap<RowId, Row>;

/// What a channel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Rows, snapshots, conflation.
    View,
    /// Every record, nothing conflated.
    Events,
}

/// How a stream's records are placed in its partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// All of a channel's records are in one partition.
    ByChannel,
    /// Rows are spread over all partitions.
    Spread,
}

/// What happens to a line whose socket takes no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// A newer update of a row takes the waiting one's place (views).
    Conflate,
    /// The oldest waiting update goes, and a counted `gap` says so (events).
    DropOldest,
    /// The connection is closed; its token lets it resume.
    Disconnect,
}

/// What a view or a line says of its age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FreshnessState {
    /// The newest proof is younger than the stream's objective.
    Live,
    /// This node is not yet as far as the client, or as the log's head at the start.
    CatchingUp,
    /// The newest proof is too old.
    Stale,
    /// Nothing is known.
    Unavailable,
}

/// Why a view is not live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StaleReason {
    /// Fetches from the source fail.
    SourceUnavailable,
    /// The cache does not answer.
    CacheUnavailable,
    /// A healthy log to which nobody writes any more.
    ProducerSilent,
    /// The log answers, but this node, or this connection, is behind it.
    Lagging,
    /// Records were found in a partition where the channel does not belong.
    Misplaced,
    /// The log no longer reaches back to where this node was.
    HistoryLost,
    /// The log did not reach back to its birth when the view was folded.
    IncompleteHistory,
    /// An operator paused the source.
    Paused,
}

/// A state, the age of the newest proof, and a reason unless live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// The state.
    pub state: FreshnessState,
    /// Milliseconds since the newest proof's fetch was sent; none when there never was one.
    pub age_ms: Option<u64>,
    /// Why not live.
    pub reason: Option<StaleReason>,
}

/// A bug that a stream has on purpose, so that the tests see whether their oracle finds it.
#[cfg(feature = "seeded-bugs")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeededBug {
    /// An update is lost.
    Lose,
    /// An update is sent twice.
    Double,
    /// Two updates of a channel change places.
    Swap,
    /// Failed fetches count as proofs.
    Hide,
    /// A subscription goes on from another place than its token's.
    Misplace,
}

/// FNV-1a (64 bits) of channel and row, modulo the partitions: stable for ever, since logs outlive releases.
#[must_use]
pub fn partition_of(channel: &str, row: &str, partitions: u32) -> u32 {
    let bytes = channel.bytes().chain([0xff]).chain(row.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    u32::try_from(hash % u64::from(partitions.max(1))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        let channel = |text: &str| {
            text.parse::<Channel>()
                .map(|c| (c.stream().to_owned(), c.name().to_owned()))
        };
        assert_eq!(
            channel("departures/JFK"),
            Ok(("departures".into(), "JFK".into()))
        );
        assert_eq!(channel("a/b/c"), Ok(("a".into(), "b/c".into())));
        for bad in [
            "", "/", "a", "a/", "A/b", "-a/b", "a/b c", "a/b*", "a/b\n", "a/\u{85}",
        ] {
            assert!(channel(bad).is_err(), "{bad:?}");
        }
        assert!(channel(&format!("a/{}", "x".repeat(200))).is_ok());
        assert!(channel(&format!("a/{}", "x".repeat(201))).is_err());
        assert!(RowId::new(&"r".repeat(256)).is_ok());
        assert!(RowId::new(&"r".repeat(257)).is_err());
    }

    #[test]
    fn tokens_read_back_as_written() {
        let token: Token = "1.b:7,0.a:18446744073709551615".parse().unwrap();
        assert_eq!(token.to_string(), "0.a:18446744073709551615,1.b:7");
        assert_eq!(token.position(1).unwrap().offset, Offset::new(7));
        for bad in [
            "",
            ",",
            "0",
            "0.a",
            "0.a:",
            "0.:1",
            ".a:1",
            "0.a:+1",
            "0.a:-1",
            "-1.a:1",
            "0.a:1,0.a:2",
            "0.a b:1",
            "0.a:1,",
            "4294967296.a:1",
        ] {
            assert_eq!(bad.parse::<Token>(), Err(NameError::Token), "{bad:?}");
        }
    }
}
