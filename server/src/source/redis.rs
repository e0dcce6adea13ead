//! Redis Streams: one of a stream's partitions as a source, and as the log that publishing appends to.
//!
//! Does: reads a key of Redis from a place on, together with the proof that it is the log that the caller knows; waits for more
//! on connections that all partitions of a stream share; appends in order, each record once. Owns: the stream's connections, one
//! for calls and two for waiting (of a cluster two for each partition), and the keys that `docs/reference/redis-streams.md` names.
//! Never knows: views, wire formats of clients, who else writes to the key.
//! Keeps: each fetch is a request of its own to a primary, sent after it was asked for, so its answer is a proof; a log that may have
//! gone back is another epoch, for all nodes the same; what has been trimmed is told by where the log begins; nothing is skipped.
//!
//! **Offsets.** An entry's id, `ms-seq`, is the [`Offset`] `ms · 2^22 + seq`: so it keeps its order and its time. It holds up to
//! the year 2109 and four million entries of one millisecond. An id beyond that has no offset, and the partition is not read past it.
//!
//! **Epochs.** A key beside the stream has its log's name, and by which life of which server it was given: the replication id.
//! Where that is another one, a failover or a restart lies between, which may have lost what somebody has read: so the log gets
//! another name. So it does where the stream's end went back, or an entry that was read is missing (decision 23).

mod appender;
mod ears;
mod entries;
mod error;
mod keys;
mod member;
mod reader;
mod route;
mod script;
mod server;

use crate::model::Offset;

pub use appender::{RedisAppender, RedisAppenderSettings, Retention};
pub use ears::Ears;
pub use error::LogError;
pub use member::{MemberSettings, RedisMember};
pub use reader::RedisSource;
pub use server::RedisServer;

/// Bits of an offset for the number within a millisecond.
const SEQ_BITS: u32 = 22;
/// The numbers that have no room in an offset any more.
const SEQ_END: u64 = 1 << SEQ_BITS;
/// The same of milliseconds.
const MS_END: u64 = 1 << (u64::BITS - SEQ_BITS);

/// The offset of an entry with this id; none where there is no room for it.
fn offset_of(id: &[u8]) -> Option<Offset> {
    let (ms, seq) = std::str::from_utf8(id).ok()?.split_once('-')?;
    let (ms, seq) = (ms.parse::<u64>().ok()?, seq.parse::<u64>().ok()?);
    (ms < MS_END && seq < SEQ_END).then(|| Offset::new(ms << SEQ_BITS | seq))
}

/// The id of the entry at this offset, or of the place where it would be.
fn id_of(offset: Offset) -> String {
    let number = offset.number();
    format!("{}-{}", number >> SEQ_BITS, number & (SEQ_END - 1))
}

/// When Redis took the entry at this offset, in milliseconds since 1970.
fn time_of(offset: Offset) -> i64 {
    i64::try_from(offset.number() >> SEQ_BITS).unwrap_or(i64::MAX)
}

/// Just before the first entry of this millisecond.
fn before_time(ms: i64) -> Offset {
    let ms = u64::try_from(ms).unwrap_or(0).min(MS_END - 1);
    Offset::new((ms << SEQ_BITS).saturating_sub(1))
}

/// Just before this one.
fn before(offset: Offset) -> Offset {
    Offset::new(offset.number().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_offsets_in_their_order_and_back() {
        let ids = [
            "0-1",
            "0-4194303",
            "1-0",
            "1795389824251-154",
            "4398046511103-4194303",
        ];
        let offsets: Vec<_> = ids
            .iter()
            .map(|id| offset_of(id.as_bytes()).unwrap())
            .collect();
        assert!(offsets.is_sorted_by(|a, b| a < b), "{offsets:?}");
        for (id, offset) in ids.iter().zip(&offsets) {
            assert_eq!(id_of(*offset), *id);
        }
        assert_eq!(offset_of(b"0-0"), Some(Offset::BEFORE_ALL));
        assert_eq!(offsets[3], Offset::new(1_795_389_824_251 * 4_194_304 + 154));
        assert_eq!(
            (time_of(offsets[3]), time_of(offsets[1])),
            (1_795_389_824_251, 0)
        );
    }

    #[test]
    fn an_id_without_room_in_an_offset_has_none() {
        for id in [
            "0-4194304",
            "4398046511104-0",
            "18446744073709551615-0",
            "1",
            "a-b",
            "1--1",
            "",
        ] {
            assert_eq!(offset_of(id.as_bytes()), None, "{id}");
        }
    }

    #[test]
    fn a_time_is_before_all_that_came_in_it() {
        let at = before_time(7);
        assert!(at < offset_of(b"7-0").unwrap() && at >= offset_of(b"6-4194303").unwrap());
        assert_eq!(before_time(-1), Offset::BEFORE_ALL);
        assert_eq!(before(Offset::BEFORE_ALL), Offset::BEFORE_ALL);
    }
}
