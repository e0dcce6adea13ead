//! Kafka as a source and as the log that publishing appends to: against a real broker, with a client beside ours (librdkafka)
//! that writes what ours reads and reads what ours writes.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use tidegate::{
    model::{Channel, Epoch, Offset},
    source::{
        Fetch, Source, SourceError,
        embedded::Lost,
        kafka::{
            AppendError, AppenderSettings, ClusterSettings, KafkaAppender, KafkaCluster,
            KafkaError, KafkaSource, NewKafkaRecord, Sasl, Scram, Security, Tls,
        },
    },
};
use tidegate_tests::{
    gateway::{SOON, found},
    services::kafka::{Doubt, Kafka, Outcome, PASSWORD, STRANGER, USER},
};
use tokio::time::{Instant, timeout};

/// Bytes of a fetch.
const BYTES: usize = 1 << 20;

/// An authority that vouches for nobody here.
const ANOTHER_ROOT: &str = "-----BEGIN CERTIFICATE-----\n\
    MIIBjzCCATWgAwIBAgIUakK7qQWnf8QjuGFTxPgxS5QvPZQwCgYIKoZIzj0EAwIw\n\
    HDEaMBgGA1UEAwwRYW5vdGhlciBhdXRob3JpdHkwIBcNMjYxMTIyMTMzMjEwWhgP\n\
    MjEyNjEwMjkxMzMyMTBaMBwxGjAYBgNVBAMMEWFub3RoZXIgYXV0aG9yaXR5MFkw\n\
    EwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEu5L0cNVHjq6zSuFbf5diYG8ahLJtdW6P\n\
    YzgEyv4WifUTYHk8a20GHBtN1EHbk934QkhekfeYRkWN+/mqxb6KbaNTMFEwHQYD\n\
    VR0OBBYEFJZpNTeLCy3hWCl+wYYvj/kSvJ+KMB8GA1UdIwQYMBaAFJZpNTeLCy3h\n\
    WCl+wYYvj/kSvJ+KMA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDSAAwRQIh\n\
    APcN7+LPAxEiTcIMraLMYgyq8cylWAwtIwqMRCEviiaQAiBjYcCaUvdorcRDQ/tO\n\
    do0jJGomfV6p+UWVKsCnC73hGQ==\n\
    -----END CERTIFICATE-----\n";

/// A client with the patience that a busy machine needs.
fn cluster(kafka: &Kafka) -> Arc<KafkaCluster> {
    within(kafka, SOON)
}

/// A client that waits so long for an answer.
fn within(kafka: &Kafka, timeout: Duration) -> Arc<KafkaCluster> {
    Arc::new(KafkaCluster::new(ClusterSettings {
        brokers: vec![kafka.address()],
        security: Security::default(),
        timeout,
    }))
}

/// A reader, and what it has read.
struct Reader {
    source: KafkaSource,
    after: Option<Offset>,
    epoch: Option<Epoch>,
    read: Vec<(u64, String)>,
}

impl Reader {
    fn new(kafka: &Kafka, topic: &str) -> Self {
        Self {
            source: KafkaSource::new(cluster(kafka), topic, 0),
            after: None,
            epoch: None,
            read: Vec::new(),
        }
    }

    /// One fetch, which must prove that nothing was skipped.
    async fn fetch(&mut self) -> Result<Fetch, SourceError> {
        let fetch = self.source.fetch(self.after, BYTES).await?;
        let same = self.epoch.replace(fetch.epoch.clone()) == Some(fetch.epoch.clone());
        if same && let Some(after) = self.after {
            assert!(fetch.upto >= after, "{fetch:?} goes back behind {after}");
        }
        let mut last = self.after.filter(|_| same).unwrap_or_default();
        for record in &fetch.records {
            assert!(
                record.offset > last && record.offset <= fetch.upto,
                "{fetch:?}"
            );
            last = record.offset;
            let value = record.value.as_deref().unwrap_or(b"null");
            let value = String::from_utf8_lossy(value).into_owned();
            self.read.push((record.offset.number(), value));
        }
        self.after = Some(fetch.upto);
        Ok(fetch)
    }

    /// Reads on, waiting for what is to come, until a fetch satisfies; over failures too.
    async fn until(
        &mut self,
        what: &str,
        done: impl Fn(&Self, &Fetch) -> bool,
    ) -> anyhow::Result<Fetch> {
        let reading = async {
            loop {
                if let Ok(fetch) = self.fetch().await {
                    if done(self, &fetch) {
                        return fetch;
                    }
                    if fetch.upto < fetch.head {
                        continue;
                    }
                }
                self.source.changed().await;
            }
        };
        let late = format!("{what} does not happen");
        timeout(4 * SOON, reading).await.context(late)
    }

    async fn count(&mut self, count: usize) -> anyhow::Result<Fetch> {
        self.until(&format!("the reading of {count} records"), |reader, _| {
            reader.read.len() >= count
        })
        .await
    }

    fn values(&self) -> Vec<&str> {
        self.read.iter().map(|(_, value)| value.as_str()).collect()
    }
}

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

async fn produce(kafka: &Kafka, topic: &str, values: &[String]) -> anyhow::Result<Vec<i64>> {
    let records = values.iter().map(|value| ("key", Some(value.as_str())));
    kafka.produce(topic, 0, records, &[]).await
}

#[tokio::test]
async fn records_come_in_order_from_the_beginning_and_from_a_place_and_while_they_are_written()
-> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka.create_topic("ordered", 1, &[]).await?;
    let values = numbers(0..3000);
    let offsets = produce(kafka, "ordered", &values[..2000]).await?;
    let mut reader = Reader::new(kafka, "ordered");
    let fetch = reader.count(2000).await?;
    assert_eq!(reader.values(), values[..2000]);
    assert_eq!(fetch.start, Offset::BEFORE_ALL);
    // Kafka's offset k is ours of k + 1.
    let ours: Vec<_> = reader
        .read
        .iter()
        .map(|(offset, _)| i64::try_from(*offset).unwrap() - 1)
        .collect();
    assert_eq!(ours, offsets);
    // Written while somebody waits, in small batches.
    let writing = async {
        for chunk in values[2000..].chunks(100) {
            produce(kafka, "ordered", chunk).await?;
        }
        anyhow::Ok(())
    };
    let (written, read) = tokio::join!(writing, reader.count(3000));
    written?;
    let fetch = read?;
    assert_eq!(reader.values(), values);
    assert_eq!(
        (fetch.upto, fetch.head),
        (Offset::new(3000), Offset::new(3000))
    );
    let mut later = Reader::new(kafka, "ordered");
    later.after = Some(Offset::new(1500));
    later.count(1500).await?;
    assert_eq!(later.values(), values[1500..]);
    Ok(())
}

#[tokio::test]
async fn keys_values_tombstones_times_and_every_compression_come_through() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let topic = format!("packed-{codec}");
        kafka.create_topic(&topic, 1, &[]).await?;
        let large = "x".repeat(5000);
        let records = [
            (r#"["JFK","B6"]"#, Some(large.as_str())),
            (r#"["JFK","B6"]"#, None),
            ("", Some("")),
        ];
        let settings = [("compression.type", codec), ("linger.ms", "50")];
        kafka.produce(&topic, 0, records, &settings).await?;
        let mut source = KafkaSource::new(cluster(kafka), &topic, 0);
        let fetch = source.fetch(None, BYTES).await?;
        let theirs = kafka.read(&topic, 0).await?;
        assert_eq!((fetch.records.len(), theirs.len()), (3, 3), "{codec}");
        for (ours, theirs) in fetch.records.iter().zip(theirs) {
            assert_eq!(ours.key, theirs.key, "{codec}");
            assert_eq!(ours.value.as_deref(), theirs.value.as_deref(), "{codec}");
            assert_eq!(ours.event_time_ms, theirs.time_ms, "{codec}");
            assert_eq!(Some(ours.append_time_ms), theirs.time_ms, "{codec}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn aborted_records_never_come_and_the_end_behind_them_is_reached() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka.create_topic("transactions", 1, &[]).await?;
    let run = async |values: [(&str, &str); 2], outcome| {
        kafka.transaction("transactions", 0, &values, outcome).await
    };
    run([("k", "a"), ("k", "b")], Outcome::Commit).await?;
    run([("k", "never"), ("k", "never")], Outcome::Abort).await?;
    run([("k", "c"), ("k", "d")], Outcome::Commit).await?;
    run([("k", "never"), ("k", "never")], Outcome::Abort).await?;
    let mut reader = Reader::new(kafka, "transactions");
    let fetch = reader
        .until("the end", |_, fetch| fetch.head >= Offset::new(12))
        .await?;
    assert_eq!(reader.values(), ["a", "b", "c", "d"]);
    // Four transactions of two records and a marker each: the last three offsets have nothing to read.
    assert_eq!((fetch.upto, fetch.head), (Offset::new(12), Offset::new(12)));
    produce(kafka, "transactions", &["e".into()]).await?;
    reader.count(5).await?;
    assert_eq!(reader.read.last(), Some(&(13, "e".to_owned())));
    Ok(())
}

#[tokio::test]
async fn a_compacted_topic_is_read_over_its_holes_to_its_end() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    let settings = [
        ("cleanup.policy", "compact"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("segment.ms", "1000"),
        ("max.compaction.lag.ms", "1000"),
    ];
    kafka.create_topic("compacted", 1, &settings).await?;
    let compacted = async |count: usize| {
        let cleaning = async {
            loop {
                // Only what is behind the newest segment is compacted: a record begins another one.
                kafka
                    .produce("compacted", 0, [("last", Some("last"))], &[])
                    .await?;
                let read = kafka.read("compacted", 0).await?;
                let kept = read.iter().filter(|read| read.key != b"last").count();
                if kept <= count {
                    return anyhow::Ok(read);
                }
                // The cleaner comes by at times of its own, up to some seconds apart.
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        };
        timeout(4 * SOON, cleaning)
            .await
            .context("nothing is compacted")?
    };
    let keys = ["a", "b", "c"];
    let records = (0..300).map(|at| (keys[at % 3], Some("value")));
    kafka.produce("compacted", 0, records, &[]).await?;
    // It is being compacted while this one reads.
    let mut early = Reader::new(kafka, "compacted");
    early.count(300).await?;
    let theirs = compacted(3).await?;
    let mut late = Reader::new(kafka, "compacted");
    let fetch = late.count(theirs.len()).await?;
    let ours: Vec<_> = late
        .read
        .iter()
        .map(|(offset, _)| i64::try_from(*offset).unwrap() - 1)
        .collect();
    let theirs: Vec<_> = theirs.iter().map(|read| read.offset).collect();
    assert_eq!(ours, theirs);
    assert!(theirs[0] > 0 && theirs.len() < 100, "{theirs:?}");
    assert_eq!(fetch.upto, fetch.head);
    early
        .until("the end", |reader, fetch| reader.after == Some(fetch.head))
        .await?;
    assert_eq!(
        early.read.last().map(|(offset, _)| *offset),
        late.read.last().map(|(offset, _)| *offset)
    );
    Ok(())
}

#[tokio::test]
async fn every_fetch_that_succeeds_proves_the_head_that_was_there() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka.create_topic("proofs", 1, &[]).await?;
    let mut reader = Reader::new(kafka, "proofs");
    for round in 1..=20 {
        // Whatever waits meanwhile is given up again and again.
        let given_up = timeout(Duration::from_millis(5), reader.source.changed());
        given_up.await.unwrap_or_default();
        produce(kafka, "proofs", &[round.to_string()]).await?;
        let fetch = reader.source.fetch(reader.after, BYTES).await?;
        assert_eq!(
            (fetch.upto, fetch.head, fetch.records.len()),
            (Offset::new(round), Offset::new(round), 1)
        );
        reader.after = Some(fetch.upto);
    }
    Ok(())
}

#[tokio::test]
async fn a_leader_that_does_not_know_its_end_proves_nothing() -> anyhow::Result<()> {
    let doubt = Doubt::open().await?;
    let kafka = Kafka::start_behind(&[vec![doubt.port]]).await?;
    doubt.leads_to(&kafka.door(0, 0))?;
    kafka.create_topic("doubted", 1, &[]).await?;
    produce(&kafka, "doubted", &numbers(0..10)).await?;
    let cluster = Arc::new(KafkaCluster::new(ClusterSettings {
        brokers: vec![format!("127.0.0.1:{}", doubt.port)],
        security: Security::default(),
        timeout: SOON,
    }));
    let mut reader = Reader::new(&kafka, "doubted");
    reader.source = KafkaSource::new(cluster.clone(), "doubted", 0);
    reader.count(10).await?;
    // Who goes on from there finds the leader anew, and nothing more to read: the broker answers fetches as ever.
    reader.source = KafkaSource::new(cluster, "doubted", 0);
    doubt.set(true);
    for _ in 0..3 {
        let fetch = timeout(SOON, reader.fetch()).await?;
        ensure!(fetch.is_err(), "{fetch:?}");
        let why = reader.source.failure().unwrap_or_default();
        ensure!(why.contains("just become the leader"), "{why}");
        timeout(SOON, reader.source.changed()).await?;
    }
    doubt.set(false);
    let fetch = reader.until("the end", |_, _| true).await?;
    ensure!(fetch.upto == fetch.head, "{fetch:?}");
    Ok(())
}

#[tokio::test]
async fn a_topic_that_is_made_anew_is_another_epoch() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka.create_topic("anew", 1, &[]).await?;
    produce(kafka, "anew", &numbers(0..10)).await?;
    let mut reader = Reader::new(kafka, "anew");
    let old = reader.count(10).await?;
    kafka.delete_topic("anew").await?;
    kafka.create_topic("anew", 1, &[]).await?;
    // More than before, so that the old place is within the new log.
    produce(kafka, "anew", &numbers(100..120)).await?;
    let new = reader
        .until("another epoch", |_, fetch| fetch.epoch != old.epoch)
        .await?;
    assert_eq!(reader.values(), numbers(0..10));
    assert!(new.records.is_empty());
    assert_eq!(new.head, Offset::new(20));
    produce(kafka, "anew", &numbers(120..121)).await?;
    let next = reader.count(11).await?;
    assert_eq!(
        (next.epoch, reader.values().pop()),
        (new.epoch, Some("120"))
    );
    Ok(())
}

#[tokio::test]
async fn a_log_that_went_back_is_another_epoch_for_good() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka.create_topic("back", 1, &[]).await?;
    produce(kafka, "back", &numbers(0..10)).await?;
    let mut source = KafkaSource::new(cluster(kafka), "back", 0);
    let there = source.fetch(None, BYTES).await?;
    assert_eq!(there.upto, Offset::new(10));
    // Whoever has read more than there is, has read what is lost.
    let gone = source.fetch(Some(Offset::new(17)), BYTES).await?;
    assert_ne!(gone.epoch, there.epoch);
    assert_eq!((gone.records.len(), gone.head), (0, Offset::new(10)));
    produce(kafka, "back", &numbers(10..11)).await?;
    let next = source.fetch(Some(gone.head), BYTES).await?;
    assert_eq!((next.epoch, next.records.len()), (gone.epoch, 1));
    Ok(())
}

#[tokio::test]
async fn who_goes_on_where_another_left_proves_that_the_log_is_the_same() -> anyhow::Result<()> {
    let mut kafka = Kafka::start().await?;
    kafka.create_topic("left", 1, &[]).await?;
    produce(&kafka, "left", &numbers(0..10)).await?;
    let first = KafkaSource::new(cluster(&kafka), "left", 0)
        .fetch(None, BYTES)
        .await?;
    // A leader begins a new stretch of the log's history.
    kafka.kill()?;
    kafka.restart().await?;
    produce(&kafka, "left", &numbers(10..20)).await?;
    let last = Reader::new(&kafka, "left").count(20).await?;
    let (then, now) = (first.lineage.as_deref(), last.lineage.as_deref());
    assert!(
        then.is_some() && now.is_some() && then != now,
        "{then:?} {now:?}"
    );
    let on = async |epoch: &Epoch, at: u64, lineage: Option<&str>| {
        let mut source = KafkaSource::new(cluster(&kafka), "left", 0);
        source.resume(epoch, Offset::new(at), lineage);
        source.fetch(Some(Offset::new(at)), BYTES).await
    };
    for (at, lineage) in [(10, then), (4, then), (15, now), (20, now), (15, None)] {
        let fetch = on(&last.epoch, at, lineage).await?;
        let found = (
            fetch.epoch,
            fetch.records.len() as u64,
            fetch.lineage.as_deref() == now,
        );
        assert_eq!(
            found,
            (last.epoch.clone(), 20 - at, true),
            "{at} {lineage:?}"
        );
    }
    // What was read before the leader changed and went further than the log did by then is lost; so is what is beyond its end.
    for (at, lineage) in [(11, then), (21, now), (20, Some("9999"))] {
        let fetch = on(&last.epoch, at, lineage).await?;
        assert_ne!(fetch.epoch, last.epoch, "{at} {lineage:?}");
        let again = on(&fetch.epoch, fetch.upto.number(), fetch.lineage.as_deref()).await?;
        assert_eq!(again.epoch, fetch.epoch);
    }
    for other in ["1", "AAAAAAAAAAAAAAAAAAAAAA", "kein-lager-l3", "é"] {
        let Ok(other) = Epoch::new(other) else {
            continue;
        };
        let fetch = on(&other, 5, now).await?;
        assert_eq!((fetch.epoch, fetch.upto), (last.epoch.clone(), last.head));
    }
    Ok(())
}

#[tokio::test]
async fn a_reader_that_retention_overtook_is_told_where_the_log_begins() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka.create_topic("overrun", 1, &[]).await?;
    produce(kafka, "overrun", &numbers(0..100)).await?;
    let mut source = KafkaSource::new(cluster(kafka), "overrun", 0);
    let first = source.fetch(Some(Offset::new(10)), 200).await?;
    assert_eq!(first.start, Offset::BEFORE_ALL);
    kafka.delete_records("overrun", 0, 60).await?;
    let overrun = source.fetch(Some(Offset::new(20)), BYTES).await?;
    assert_eq!(
        (&overrun.epoch, overrun.start),
        (&first.epoch, Offset::new(60))
    );
    assert!(overrun.records.is_empty(), "{overrun:?}");
    assert_eq!(overrun.head, Offset::new(100));
    let rest = source.fetch(Some(overrun.start), BYTES).await?;
    assert_eq!(
        (rest.records.len(), rest.records[0].offset),
        (40, Offset::new(61))
    );
    let beginning = KafkaSource::new(cluster(kafka), "overrun", 0)
        .fetch(None, BYTES)
        .await?;
    assert_eq!(
        (beginning.records.len(), beginning.start),
        (40, Offset::new(60))
    );
    Ok(())
}

#[tokio::test]
async fn partitions_that_are_added_are_seen_and_times_are_found() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    let cluster = cluster(kafka);
    let missing = cluster.partitions("grown").await;
    assert!(
        matches!(missing, Err(KafkaError::NoTopic(_))),
        "{missing:?}"
    );
    kafka.create_topic("grown", 2, &[]).await?;
    assert_eq!(cluster.partitions("grown").await?, 2);
    kafka.grow_topic("grown", 3).await?;
    found("the topic has grown", async || {
        let partitions = cluster.partitions("grown").await.ok();
        Ok((partitions == Some(3)).then_some(()))
    })
    .await?;
    let (appender, task) =
        KafkaAppender::new(cluster.clone(), "grown", 2, AppenderSettings::default());
    let at = |time| NewKafkaRecord {
        time_ms: Some(time),
        id: None,
        ..record("k", "v")
    };
    let appending = async move { append(&appender, vec![at(1000), at(2000), at(3000)]).await };
    let (results, ()) = tokio::join!(appending, task);
    assert_eq!(results, [1, 2, 3].map(|number| Ok(Offset::new(number))));
    for (time, offset) in [(0, 0), (1001, 1), (2000, 1), (2500, 2), (9000, 3)] {
        assert_eq!(
            cluster.offset_at("grown", 2, time).await?,
            Offset::new(offset),
            "{time}"
        );
    }
    Ok(())
}

fn record(key: &str, value: &str) -> NewKafkaRecord {
    NewKafkaRecord {
        channel: Channel::new("tests", key).expect("a name of a test"),
        key: key.to_owned().into(),
        value: Some(value.to_owned().into()),
        time_ms: None,
        happened_ms: None,
        id: Some(format!("id of {value}").into()),
        headers: Vec::new(),
    }
}

#[tokio::test]
async fn what_is_acknowledged_is_what_is_read_and_in_order() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka
        .create_topic("appended", 1, &[("max.message.bytes", "100000")])
        .await?;
    let (appender, task) =
        KafkaAppender::new(cluster(kafka), "appended", 0, AppenderSettings::default());
    let large = "x".repeat(200_000);
    let appending = async {
        let several = (0..50).map(|at| {
            let mut records: Vec<_> = (0..20)
                .map(|of| record("key", &format!("{at}-{of}-{}", "x".repeat(800))))
                .collect();
            // One that the topic does not take; the others of its batch do get in.
            records.insert(10, record("key", &large));
            let appender = appender.clone();
            async move { append(&appender, records).await }
        });
        let results = futures_util::future::join_all(several).await;
        drop(appender);
        results
    };
    let (results, ()) = tokio::join!(appending, task);
    let theirs = kafka.read("appended", 0).await?;
    assert_eq!(theirs.len(), 1000);
    for (at, results) in results.iter().enumerate() {
        assert_eq!(results[10], Err(AppendError::TooLarge));
        let taken = results.iter().enumerate().filter(|(of, _)| *of != 10);
        for (of, (_, result)) in taken.enumerate() {
            let offset = (*result)?.number();
            let read = &theirs[usize::try_from(offset)? - 1];
            let expected = format!("{at}-{of}-{}", "x".repeat(800));
            assert_eq!(read.value.as_deref(), Some(expected.as_bytes()));
            assert_eq!(
                read.headers,
                [(
                    "tidegate-id".to_owned(),
                    format!("id of {expected}").into_bytes()
                )]
            );
        }
    }
    let order: Vec<_> = results
        .iter()
        .flatten()
        .filter_map(|result| result.ok())
        .collect();
    assert!(order.is_sorted(), "what was submitted first is first");
    Ok(())
}

/// Of each record: where it is, or why it is not in the log.
type Appended = Vec<Result<Offset, AppendError>>;

/// What becomes of a publisher's records.
async fn append(appender: &KafkaAppender, records: Vec<NewKafkaRecord>) -> Appended {
    append_as(appender, records, &Arc::default()).await
}

/// The same, of a publisher that has lost some.
async fn append_as(
    appender: &KafkaAppender,
    records: Vec<NewKafkaRecord>,
    lost: &Arc<Lost>,
) -> Appended {
    let answer = appender.submit(records, lost).await;
    let results = answer.await.unwrap_or_default().into_iter();
    let offset = |stored: tidegate::source::kafka::Stored| stored.position.offset;
    results.map(|result| result.map(offset)).collect()
}

/// What becomes of one record.
async fn append_one(cluster: Arc<KafkaCluster>, topic: &str) -> Result<Offset, AppendError> {
    let settings = AppenderSettings {
        delivery_timeout: Duration::from_secs(4),
        ..AppenderSettings::default()
    };
    let (appender, task) = KafkaAppender::new(cluster, topic, 0, settings);
    let appending = async move { append(&appender, vec![record("key", "value")]).await };
    let (results, ()) = tokio::join!(appending, task);
    results[0]
}

#[tokio::test]
async fn a_topic_that_is_missing_is_unavailable() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    let appended = append_one(cluster(kafka), "no-such-topic").await;
    assert_eq!(appended, Err(AppendError::Unavailable));
    let mut source = KafkaSource::new(cluster(kafka), "no-such-topic", 0);
    let fetched = source.fetch(None, BYTES).await;
    assert!(matches!(fetched, Err(SourceError::Unavailable)));
    Ok(())
}

fn secure(kafka: &Kafka, roots: &[u8], sasl: Sasl) -> anyhow::Result<Arc<KafkaCluster>> {
    let security = Security {
        tls: Some(Tls::new(Some(roots), None)?),
        sasl: Some(sasl),
    };
    Ok(Arc::new(KafkaCluster::new(ClusterSettings {
        brokers: vec![kafka.secure_address()],
        security,
        timeout: SOON,
    })))
}

#[tokio::test]
async fn brokers_with_tls_and_sasl_are_spoken_to_and_others_are_not_trusted() -> anyhow::Result<()>
{
    let kafka = Kafka::shared().await?;
    kafka.create_topic("secured", 1, &[]).await?;
    let roots = kafka.roots()?;
    let sasl = |user: &str, password: &str, scram| Sasl {
        user: user.into(),
        password: password.into(),
        scram,
    };
    for (count, scram) in [
        (1, None),
        (2, Some(Scram::Sha256)),
        (3, Some(Scram::Sha512)),
    ] {
        let cluster = secure(kafka, &roots, sasl(USER, PASSWORD, scram))?;
        assert_eq!(
            append_one(cluster.clone(), "secured").await,
            Ok(Offset::new(count))
        );
        let fetch = KafkaSource::new(cluster, "secured", 0)
            .fetch(None, BYTES)
            .await?;
        assert_eq!(fetch.head, Offset::new(count));
        let wrong = secure(kafka, &roots, sasl(USER, "another password", scram))?;
        let refused = wrong.partitions("secured").await;
        assert!(
            matches!(refused, Err(KafkaError::Security(_))),
            "{refused:?}"
        );
    }
    let stranger = secure(kafka, &roots, sasl(STRANGER, PASSWORD, None))?;
    assert_eq!(
        append_one(stranger, "secured").await,
        Err(AppendError::NotAuthorized)
    );
    let untrusted = secure(kafka, ANOTHER_ROOT.as_bytes(), sasl(USER, PASSWORD, None))?;
    let refused = untrusted.partitions("secured").await;
    assert!(
        matches!(refused, Err(KafkaError::Security(_))),
        "{refused:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_log_that_lost_its_records_is_another_epoch_even_when_it_has_grown_again()
-> anyhow::Result<()> {
    let mut kafka = Kafka::start().await?;
    kafka.create_topic("lost", 1, &[]).await?;
    produce(&kafka, "lost", &numbers(0..10)).await?;
    let mut reader = Reader::new(&kafka, "lost");
    let old = reader.count(10).await?;
    kafka.kill()?;
    kafka.lose("lost", 0)?;
    kafka.restart().await?;
    // Far beyond the old place: by offsets alone nobody would notice.
    produce(&kafka, "lost", &numbers(100..150)).await?;
    let new = reader
        .until("another epoch", |_, fetch| fetch.epoch != old.epoch)
        .await?;
    assert_eq!(reader.values(), numbers(0..10));
    assert_eq!((new.records.len(), new.head), (0, Offset::new(50)));
    let later = reader.fetch().await?;
    assert_eq!((later.epoch, later.head), (new.epoch, Offset::new(50)));
    Ok(())
}

/// Appends numbers one after the other until it is told to end; those that were acknowledged, with their offsets.
async fn append_numbers(
    appender: KafkaAppender,
    mut go_on: tokio::sync::watch::Receiver<bool>,
) -> Vec<(u64, String)> {
    let mut acknowledged = Vec::new();
    for number in 0.. {
        if !*go_on.borrow_and_update() {
            break;
        }
        let value = format!("{number}");
        if let Ok(offset) = append(&appender, vec![record("key", &value)]).await[0] {
            acknowledged.push((offset.number(), value));
        }
    }
    acknowledged
}

#[tokio::test]
async fn a_broker_that_dies_and_comes_back_costs_neither_a_loss_nor_a_repeat() -> anyhow::Result<()>
{
    let mut kafka = Kafka::start().await?;
    kafka.create_topic("numbers", 1, &[]).await?;
    let settings = AppenderSettings {
        delivery_timeout: Duration::from_secs(60),
        ..AppenderSettings::default()
    };
    let (appender, task) = KafkaAppender::new(cluster(&kafka), "numbers", 0, settings);
    let (go_on, told) = tokio::sync::watch::channel(true);
    let mut reader = Reader::new(&kafka, "numbers");
    let faults = async {
        reader.count(100).await?;
        kafka.kill()?;
        let killed = Instant::now();
        let failure = loop {
            match reader.fetch().await {
                Ok(_) => ensure!(killed.elapsed() < SOON, "a dead broker answers"),
                Err(error) => break error,
            }
        };
        assert_eq!(failure, SourceError::Unavailable);
        kafka.restart().await?;
        let so_far = reader.read.len();
        reader.count(so_far + 100).await?;
        go_on.send(false)?;
        anyhow::Ok(())
    };
    let (faults, acknowledged, ()) = tokio::join!(faults, append_numbers(appender, told), task);
    faults?;
    reader.count(acknowledged.len()).await?;
    assert_eq!(reader.read, acknowledged);
    let theirs = kafka.read("numbers", 0).await?;
    assert_eq!(theirs.len(), acknowledged.len());
    Ok(())
}

#[tokio::test]
async fn a_broker_that_freezes_is_noticed_and_heals_by_itself() -> anyhow::Result<()> {
    let kafka = Kafka::start().await?;
    kafka.create_topic("frozen", 1, &[]).await?;
    produce(&kafka, "frozen", &numbers(0..10)).await?;
    let mut reader = Reader::new(&kafka, "frozen");
    let hasty = within(&kafka, Duration::from_secs(1));
    reader.source = KafkaSource::new(hasty.clone(), "frozen", 0);
    reader.count(10).await?;
    kafka.freeze();
    for _ in 0..5 {
        let fetch = timeout(SOON, reader.fetch()).await?;
        assert!(matches!(fetch, Err(SourceError::Unavailable)));
        timeout(SOON, reader.source.changed()).await?;
    }
    let settings = AppenderSettings {
        delivery_timeout: Duration::from_secs(4),
        ..AppenderSettings::default()
    };
    let (appender, task) = KafkaAppender::new(hasty, "frozen", 0, settings);
    let appending = async {
        let lost = Arc::default();
        let given_up = append_as(&appender, vec![record("key", "given up")], &lost).await;
        kafka.thaw();
        let healed = reader.until("healing", |_, _| true).await;
        let taken = append_as(&appender, vec![record("other", "taken")], &lost).await;
        // Of the channel that lost one, nothing more is taken of this publisher; of another publisher it is.
        let both = vec![record("key", "never"), record("other", "too")];
        let after = append_as(&appender, both, &lost).await;
        let others = append(&appender, vec![record("key", "another's")]).await;
        drop(appender);
        healed.map(|_| [given_up, taken, after, others])
    };
    let (results, ()) = tokio::join!(appending, task);
    let [given_up, taken, after, others] = results?;
    assert_eq!(given_up, [Err(AppendError::Unavailable)]);
    assert_eq!(after[0], Err(AppendError::AfterFailed));
    let fetch = reader
        .until("the end", |reader, fetch| reader.after == Some(fetch.head))
        .await?;
    assert_eq!(Ok(fetch.head), others[0]);
    // Whether the one that was given up is in the log, nobody promised.
    let mut values = reader.values();
    values.retain(|value| *value != "given up");
    let mut expected = numbers(0..10);
    expected.extend(["taken", "too", "another's"].map(str::to_owned));
    assert_eq!(values, expected);
    let offsets: Vec<_> = [taken[0], after[1], others[0]]
        .into_iter()
        .collect::<Result<_, _>>()?;
    assert!(offsets.is_sorted(), "{offsets:?}");
    Ok(())
}
