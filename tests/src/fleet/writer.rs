//! Who writes to the topics, without end, and who reads along.
//!
//! Does: writes numbered rows, events and tombstones with an idempotent producer that outlives every outage, and notes each
//! acknowledgement; reads the same topics by librdkafka as they grow. Owns: both clients of each topic. Never knows: Tidegate's
//! nodes. Both tell the truth what they know.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    producer::{DeliveryFuture, FutureProducer, FutureRecord},
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    client::Clock,
    scene::{Number, Row, Scene, StreamScene},
    truth::Telling,
};
use crate::simulation::Dice;

/// Records of a stream that wait for their acknowledgement, at most.
const WAITING_MAX: usize = 50;
/// The same where as many as possible are written.
const FAST_WAITING_MAX: usize = 2000;
/// Of a hundred records of views so many delete.
const DELETES: usize = 20;
/// Longest padding of a value.
const PADDING: usize = 200;

/// What a stream's writer and reader are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Duty {
    /// Which topic of the stream this is.
    pub(super) life: usize,
    /// Nothing is written.
    pub(super) holds: bool,
    /// The run is over.
    pub(super) ends: bool,
}

/// What all writers and readers share.
pub(super) struct Desk {
    pub(super) scene: Arc<Scene>,
    pub(super) truth: Arc<Telling>,
    pub(super) brokers: String,
    pub(super) clock: Clock,
    numbers: AtomicU64,
    /// Records of each stream that are on their way.
    waiting: Vec<AtomicUsize>,
    duties: Vec<watch::Sender<Duty>>,
}

impl Desk {
    pub(super) fn new(
        scene: Arc<Scene>,
        truth: Arc<Telling>,
        brokers: String,
        clock: Clock,
    ) -> Self {
        let begin = || {
            watch::Sender::new(Duty {
                life: 0,
                holds: true,
                ends: false,
            })
        };
        Self {
            waiting: scene.streams.iter().map(|_| AtomicUsize::new(0)).collect(),
            duties: scene.streams.iter().map(|_| begin()).collect(),
            numbers: AtomicU64::new(1),
            scene,
            truth,
            brokers,
            clock,
        }
    }

    /// Changes what a stream's writer and reader are to do.
    pub(super) fn tell(&self, stream: usize, change: impl Fn(&mut Duty)) {
        self.duties[stream].send_modify(change);
    }

    /// Records of a stream that are on their way.
    pub(super) fn waiting(&self, stream: usize) -> usize {
        self.waiting[stream].load(Ordering::Acquire)
    }

    /// Another number, and a value that says it.
    pub(super) fn value(&self, dice: &mut Dice) -> (Number, String) {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let padding = "x".repeat(dice.below(PADDING));
        (number, format!("{{\"n\":{number},\"pad\":\"{padding}\"}}"))
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("log_level", "0")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "250")
            // A broker that stands still for long is asked anew, not waited for.
            .set("socket.timeout.ms", "5000")
            .set("topic.metadata.refresh.interval.ms", "2000");
        config
    }

    /// A producer that never gives up.
    fn producer(&self) -> anyhow::Result<FutureProducer> {
        let mut config = self.client();
        config
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", "0")
            .set("linger.ms", "2");
        Ok(config.create()?)
    }

    /// A reader of all of a topic.
    fn reader(&self, of: &StreamScene) -> anyhow::Result<BaseConsumer> {
        let mut config = self.client();
        config
            .set("group.id", "along")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("fetch.wait.max.ms", "50")
            .set("fetch.error.backoff.ms", "50")
            .set("auto.offset.reset", "earliest");
        let consumer: BaseConsumer = config.create()?;
        let mut places = TopicPartitionList::new();
        for partition in 0..i32::try_from(of.partitions)? {
            places.add_partition_offset(of.name, partition, Offset::Beginning)?;
        }
        consumer.assign(&places)?;
        Ok(consumer)
    }
}

/// Writes to a stream until the run ends.
pub(super) async fn write(desk: Arc<Desk>, stream: usize, mut dice: Dice) -> anyhow::Result<()> {
    let mut duties = desk.duties[stream].subscribe();
    let mut acknowledged = JoinSet::new();
    let mut producer = None::<(usize, FutureProducer)>;
    loop {
        let duty = *duties.borrow_and_update();
        if duty.ends && acknowledged.is_empty() {
            return Ok(());
        }
        while acknowledged.try_join_next().is_some() {}
        let full = acknowledged.len() >= WAITING_MAX;
        if !duty.holds && !duty.ends && !full {
            if producer.as_ref().is_none_or(|(life, _)| *life != duty.life) {
                producer = Some((duty.life, desk.producer()?));
            }
            if let Some((life, producer)) = &producer {
                write_one(&desk, stream, *life, producer, &mut dice, &mut acknowledged);
            }
        }
        let pace = desk.scene.streams[stream].pace_ms;
        // Now and then several at once.
        let pause = if dice.percent(20) {
            0
        } else {
            1 + dice.below(usize::try_from(pace * 2)?)
        };
        tokio::select! {
            () = sleep(Duration::from_millis(pause as u64)) => {}
            _ = acknowledged.join_next(), if full => {}
        }
    }
}

/// Writes so many records more to a stream, as fast as it goes, until the broker has them all.
pub(super) async fn write_fast(
    desk: &Arc<Desk>,
    stream: usize,
    count: usize,
    dice: &mut Dice,
) -> anyhow::Result<()> {
    let life = desk.duties[stream].borrow().life;
    let producer = desk.producer()?;
    let mut acknowledged = JoinSet::new();
    for _ in 0..count {
        write_one(desk, stream, life, &producer, dice, &mut acknowledged);
        if acknowledged.len() >= FAST_WAITING_MAX {
            acknowledged.join_next().await;
        }
    }
    while acknowledged.join_next().await.is_some() {}
    Ok(())
}

fn write_one(
    desk: &Arc<Desk>,
    stream: usize,
    life: usize,
    producer: &FutureProducer,
    dice: &mut Dice,
    acknowledged: &mut JoinSet<()>,
) {
    let of = &desk.scene.streams[stream];
    let channel = of.channels.start + dice.below(of.channels.len());
    let row = Row::try_from(dice.below(of.rows.into())).unwrap_or(0);
    let deletes = of.is_compacted() && dice.percent(DELETES);
    let (number, text) = desk.value(dice);
    let value = (!deletes).then_some(number);
    let partition = desk.scene.partition_of(channel, row);
    let key = desk.scene.key(channel, row);
    let mut record = FutureRecord::to(of.name)
        .partition(i32::try_from(partition).unwrap_or(0))
        .key(&key);
    if value.is_some() {
        record = record.payload(&text);
    }
    let Ok(delivery) = producer.send_result(record) else {
        return;
    };
    desk.waiting[stream].fetch_add(1, Ordering::AcqRel);
    acknowledged.spawn(note(
        desk.clone(),
        (stream, life),
        delivery,
        (channel, row, value),
    ));
}

/// Waits for a record's acknowledgement.
async fn note(
    desk: Arc<Desk>,
    (stream, life): (usize, usize),
    delivery: DeliveryFuture,
    record: (usize, Row, Option<Number>),
) {
    if let Ok(Ok(delivered)) = delivery.await {
        let place = place(delivered.partition, delivered.offset);
        desk.truth.lock().acknowledge((stream, life), place, record);
    }
    desk.waiting[stream].fetch_sub(1, Ordering::AcqRel);
}

/// As positions name it: Kafka's first record is behind 0, where everything begins.
fn place(partition: i32, offset: i64) -> (u32, u64) {
    let partition = u32::try_from(partition).unwrap_or(u32::MAX);
    (partition, u64::try_from(offset + 1).unwrap_or(0))
}

/// What a record of a topic says.
pub(super) fn record_of(
    scene: &Scene,
    stream: usize,
    key: &[u8],
    value: Option<&[u8]>,
) -> Option<(usize, Row, Option<Number>)> {
    let (channel, row) = scene.of_key(stream, key)?;
    let number = |value: &[u8]| {
        let value: serde_json::Value = serde_json::from_slice(value).ok()?;
        value["n"].as_u64()
    };
    Some((channel, row, value.and_then(number)))
}

/// So often a reader looks whether it gets on …
const READER_LOOK: Duration = Duration::from_secs(2);
/// … and is made anew after so many looks at which it did not.
const READER_LOOKS: u32 = 5;

/// Reads along with a stream until the run ends; a thread of its own.
pub(super) fn read_along(desk: &Desk, stream: usize) -> anyhow::Result<()> {
    let duties = desk.duties[stream].subscribe();
    let of = &desk.scene.streams[stream];
    let mut reader = None::<(usize, BaseConsumer)>;
    let (mut looked, mut unread, mut stuck) = (Instant::now(), None, 0);
    loop {
        let duty = *duties.borrow();
        if duty.ends {
            return Ok(());
        }
        // After a broker stood still for long the library may never again ask for a partition.
        if looked.elapsed() >= READER_LOOK {
            looked = Instant::now();
            let first = desk.truth.lock().first_unread((stream, duty.life));
            let same = first.is_some() && first == unread;
            (unread, stuck) = (first, if same { stuck + 1 } else { 0 });
            if stuck >= READER_LOOKS {
                (reader, stuck) = (None, 0);
            }
        }
        if reader.as_ref().is_none_or(|(life, _)| *life != duty.life) {
            reader = Some((duty.life, desk.reader(of)?));
        }
        let Some((life, consumer)) = &reader else {
            continue;
        };
        // Errors pass: the broker is away, or the topic is not there yet.
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(20)) else {
            continue;
        };
        let key = message.key().unwrap_or_default();
        if let Some(record) = record_of(&desk.scene, stream, key, message.payload()) {
            let at = place(message.partition(), message.offset());
            let now = desk.clock.now();
            desk.truth.lock().read((stream, *life), at, record, now);
        }
    }
}
