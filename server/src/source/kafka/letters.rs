//! The dead-letter topic of a stream: where records that mean nothing are put, with where they came from and why.
//!
//! A letter's key is `topic/partition/offset`, Kafka's own offset, whoever writes it and however often: so repeats, of a process
//! that was restarted or of another one that reads the same, are one to a compacted topic and to whoever goes by the key. All are
//! in the first partition, so that they need no placing.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicUsize},
};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{
    AppenderSettings, KafkaAppender, KafkaCluster, NewKafkaRecord, NotTaken, Results, batch::Raw,
    next_after,
};
use crate::{
    model::{Channel, Offset, Record},
    source::embedded::Lost,
};

/// What the names of a letter's own headers begin with; those of the record that begin so, too, are given [`THEIRS`] before that.
const OURS: &str = "tidegate-";
const THEIRS: &str = "original-";

/// The way into a stream's dead-letter topic. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    appender: KafkaAppender,
    stream: Arc<str>,
    topic: Arc<str>,
    /// Whose order the letters belong to.
    channel: Channel,
}

/// Where a record that means nothing is, and why.
#[derive(Debug)]
pub(super) struct Dead<'a> {
    /// The topic that it is in.
    pub(super) topic: &'a str,
    pub(super) partition: u32,
    pub(super) record: &'a Record,
    pub(super) why: &'a str,
}

impl DeadLetters {
    /// Letters of this stream into this topic of the same cluster, whose bytes are counted in `scales`; none where the stream's
    /// name is none. Also the task that writes
    /// them, which ends when every clone is gone and what waited has been answered.
    pub fn new(
        cluster: Arc<KafkaCluster>,
        stream: &str,
        topic: &str,
        settings: AppenderSettings,
        scales: Arc<AtomicUsize>,
    ) -> Option<(Self, impl Future<Output = ()> + Send + use<>)> {
        let channel = Channel::new(stream, "dead-letters").ok()?;
        let (appender, task) = KafkaAppender::new(cluster, topic, 0, settings);
        let letters = Self {
            appender: appender.weighed(scales),
            stream: stream.into(),
            topic: topic.into(),
            channel,
        };
        Some((letters, task))
    }

    /// The dead-letter topic.
    pub(super) fn topic(&self) -> &str {
        &self.topic
    }

    /// Takes letters, as far as there is room: what became of each will be told.
    pub(super) fn send(
        &self,
        letters: Vec<NewKafkaRecord>,
    ) -> Result<oneshot::Receiver<Results>, NotTaken> {
        // What has failed before is no reason not to try these.
        self.appender.try_submit(letters, &Arc::<Lost>::default())
    }

    /// A record as it is put into the topic. `raw` is what its batch has of it.
    pub(super) fn letter(&self, dead: &Dead<'_>, raw: Option<&Raw>) -> NewKafkaRecord {
        let Dead {
            topic,
            partition,
            record,
            why,
        } = dead;
        let offset = kafkas(record.offset);
        let id = format!("{topic}/{partition}/{offset}");
        let (key, value) = raw.map_or_else(
            || (Some(record.key.clone()), record.value.clone()),
            |raw| (raw.key.clone(), raw.value.clone()),
        );
        let own = [
            ("stream", self.stream.to_string()),
            ("topic", (*topic).to_owned()),
            ("partition", partition.to_string()),
            ("offset", offset.to_string()),
            ("reason", (*why).to_owned()),
            ("time", record.append_time_ms.to_string()),
            ("tombstone", value.is_none().to_string()),
        ];
        let own = own.map(|(name, value)| (format!("{OURS}{name}").into(), Some(value.into())));
        let key = key.map(|key| (Bytes::from(format!("{OURS}key")), Some(key)));
        let theirs = raw.map(|raw| raw.headers.clone()).into_iter().flatten();
        NewKafkaRecord {
            channel: self.channel.clone(),
            key: id.clone().into(),
            // Without a value it would delete itself from a compacted topic.
            value: Some(value.unwrap_or_default()),
            time_ms: None,
            happened_ms: None,
            id: Some(id.into()),
            headers: own
                .into_iter()
                .chain(key)
                .chain(theirs.map(apart))
                .collect(),
        }
    }
}

/// Kafka's own number of a record.
pub(super) fn kafkas(record: Offset) -> i64 {
    next_after(record) - 1
}

/// A record's header, told apart from those of the letter.
fn apart((name, value): (Bytes, Option<Bytes>)) -> (Bytes, Option<Bytes>) {
    if name.starts_with(OURS.as_bytes()) {
        ([THEIRS.as_bytes(), &name].concat().into(), value)
    } else {
        (name, value)
    }
}

/// What came of letters that were sent: how many of them, from the first on, are in the topic; and what is wrong with the next.
pub(super) fn stored(told: &Results) -> (usize, Option<String>) {
    let failed = told.iter().position(Result::is_err);
    let why = failed.and_then(|at| told[at].as_ref().err().map(ToString::to_string));
    (failed.unwrap_or(told.len()), why)
}

/// The records of a fetch by Kafka's own numbers.
pub(super) type Raws = HashMap<i64, Raw>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::Position,
        source::kafka::{AppendError, ClusterSettings, Security, Stored, batch},
    };

    fn letters() -> DeadLetters {
        let settings = ClusterSettings {
            brokers: vec!["127.0.0.1:1".into()],
            security: Security::default(),
            timeout: std::time::Duration::from_secs(1),
        };
        let cluster = Arc::new(KafkaCluster::new(settings));
        let (letters, _task) = DeadLetters::new(
            cluster,
            "board",
            "dead",
            AppenderSettings::default(),
            Arc::default(),
        )
        .unwrap();
        letters
    }

    fn record(value: Option<&'static str>) -> Record {
        Record {
            offset: Offset::new(8),
            key: "k".into(),
            value: value.map(Into::into),
            event_time_ms: None,
            append_time_ms: 5,
            expired: false,
        }
    }

    fn header(letter: &NewKafkaRecord, name: &str) -> Option<String> {
        let found = letter.headers.iter().find(|(is, _)| *is == name)?;
        let value = found.1.as_deref().unwrap_or_default();
        Some(String::from_utf8(value.to_vec()).unwrap())
    }

    fn dead(record: &Record) -> Dead<'_> {
        Dead {
            topic: "board-log",
            partition: 3,
            record,
            why: "the value is not JSON",
        }
    }

    #[test]
    fn a_letter_says_where_its_record_was_and_keeps_all_of_it() {
        let written = NewKafkaRecord {
            channel: "s/c".parse().unwrap(),
            key: "k".into(),
            value: Some("{".into()),
            time_ms: None,
            happened_ms: None,
            id: Some("an id".into()),
            headers: vec![("from".into(), Some("tests".into())), ("none".into(), None)],
        };
        let bytes = batch::tests::at(&[written], 7);
        let raws = batch::raw(bytes, &[7, 9].into()).unwrap();
        assert_eq!(raws.len(), 1);
        let of = record(Some("{"));
        let letter = letters().letter(&dead(&of), raws.get(&7));
        assert_eq!(letter.key, "board-log/3/7");
        assert_eq!(letter.id.as_deref(), Some("board-log/3/7"));
        assert_eq!(letter.value.as_deref(), Some(b"{".as_slice()));
        for (name, value) in [
            ("tidegate-stream", "board"),
            ("tidegate-topic", "board-log"),
            ("tidegate-partition", "3"),
            ("tidegate-offset", "7"),
            ("tidegate-reason", "the value is not JSON"),
            ("tidegate-time", "5"),
            ("tidegate-tombstone", "false"),
            ("tidegate-key", "k"),
            ("original-tidegate-id", "an id"),
            ("from", "tests"),
        ] {
            assert_eq!(header(&letter, name).as_deref(), Some(value), "{name}");
        }
        let without = (Bytes::from_static(b"none"), None);
        assert!(letter.headers.contains(&without), "{letter:?}");
    }

    #[test]
    fn a_tombstone_is_a_letter_that_stays() {
        let of = record(None);
        let letter = letters().letter(&dead(&of), None);
        assert_eq!(letter.value.as_deref(), Some(b"".as_slice()));
        assert_eq!(
            header(&letter, "tidegate-tombstone").as_deref(),
            Some("true")
        );
        assert_eq!(header(&letter, "tidegate-key").as_deref(), Some("k"));
    }

    #[test]
    fn what_is_stored_ends_at_the_first_that_is_not() {
        let at = Position {
            partition: 0,
            epoch: crate::model::Epoch::new("e").unwrap(),
            offset: Offset::new(1),
        };
        let taken = || {
            Ok(Stored {
                position: at.clone(),
                repeat: false,
            })
        };
        assert_eq!(stored(&vec![taken(), taken()]), (2, None));
        let (count, why) = stored(&vec![taken(), Err(AppendError::TooLarge), taken()]);
        assert_eq!(count, 1);
        assert!(why.unwrap().contains("larger than the topic takes"));
    }
}
