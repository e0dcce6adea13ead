//! A Kafka broker of one node, or a cluster of some, with a client of its own: librdkafka, which shares no line with the server's.
//!
//! Does: starts it, makes and changes topics, writes records, in transactions too, reads them back,
//! kills, restarts, freezes, loses data. Owns: the brokers. Never knows: Tidegate.
//!
//! It has two listeners: one in the clear, where everybody may do everything, and one with TLS and SASL, where [`USER`] may do
//! everything and [`STRANGER`] nothing.

mod broker;
mod doubt;

use std::{fs, sync::OnceLock, time::Duration};

use anyhow::{Context, anyhow, bail, ensure};
use nix::sys::signal::Signal;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    message::{Header, Headers, OwnedHeaders, ToBytes},
    metadata::{Metadata, MetadataTopic},
    producer::{BaseRecord, FutureProducer, FutureRecord, Producer, ThreadedProducer},
};
use tokio::time::Instant;

pub use self::doubt::Doubt;

use self::broker::{Broker, Ports};
use super::{set_up, some_ports};

/// The longest that a start, or anything that a client asks of the broker, may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same of several brokers: who comes back must fetch all that he missed, and all three start as slowly as one machine has them do.
const PATIENCE_WITH_ALL: Duration = Duration::from_secs(180);
/// Between two tries.
const AGAIN: Duration = Duration::from_millis(100);
/// Who may do everything.
pub const USER: &str = "node";
/// Who is known, and may do nothing.
pub const STRANGER: &str = "stranger";
/// The password of both.
pub const PASSWORD: &str = "a=password of the tests";

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its records count.
    Commit,
    /// They never were.
    Abort,
}

/// A record as the second client reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Kafka's offset.
    pub offset: i64,
    /// The key.
    pub key: Vec<u8>,
    /// The value; none in a tombstone.
    pub value: Option<Vec<u8>>,
    /// Its time, in milliseconds since 1970.
    pub time_ms: Option<i64>,
    /// Its headers.
    pub headers: Vec<(String, Vec<u8>)>,
}

/// A broker, or a cluster of some.
pub struct Kafka {
    brokers: Vec<Broker>,
    admin: AdminClient<DefaultClientContext>,
}

impl Kafka {
    /// Starts one, and waits until it answers.
    ///
    /// # Errors
    /// When it can't be installed or does not answer.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_behind(&[Vec::new()]).await
    }

    /// Starts a broker for each of these, which is reached through these ports too, by whoever takes connections there to
    /// [`Kafka::door`]: clients that come that way are told to come that way again. What several brokers keep, all of them keep.
    ///
    /// # Errors
    /// As [`Kafka::start`].
    pub async fn start_behind(ports_before: &[Vec<u16>]) -> anyhow::Result<Self> {
        set_up("kafka")?;
        let count = |before: &Vec<u16>| 3 + before.len();
        let mut free = some_ports(ports_before.iter().map(count).sum())?.into_iter();
        let mut next = || free.next().context("a port");
        let mut all = Vec::new();
        for before in ports_before {
            let [clear, secure, controller] = [next()?, next()?, next()?];
            let mut doors = Vec::new();
            for port in before {
                doors.push((next()?, *port));
            }
            all.push(Ports {
                clear,
                secure,
                controller,
                doors,
            });
        }
        let brokers = (0..all.len()).map(|at| Broker::new(at, &all));
        let brokers: Vec<_> = brokers.collect::<Result<_, _>>()?;
        let mut kafka = Self {
            admin: client(&addresses(&brokers)).create()?,
            brokers,
        };
        kafka.restart().await?;
        Ok(kafka)
    }

    /// The broker of those tests of a program that leave it alone.
    ///
    /// # Errors
    /// As [`Kafka::start`], for all of them.
    pub async fn shared() -> anyhow::Result<&'static Self> {
        static BROKER: OnceLock<anyhow::Result<Kafka>> = OnceLock::new();
        let begin = || tokio::runtime::Runtime::new()?.block_on(Self::start());
        let start = move || BROKER.get_or_init(begin);
        let broker = tokio::task::spawn_blocking(start).await?;
        broker.as_ref().map_err(|error| anyhow!("{error:#}"))
    }

    /// Where it listens; of a cluster, where the first does.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.brokers[0].ports.clear)
    }

    /// Where all listen.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        addresses(&self.brokers)
    }

    /// Where it listens with TLS and SASL.
    #[must_use]
    pub fn secure_address(&self) -> String {
        format!("127.0.0.1:{}", self.brokers[0].ports.secure)
    }

    /// The lines of a stream's source for the listener with TLS, as this user: `brokers`, `tls`, `sasl` and what they need.
    ///
    /// # Errors
    /// When the password's file can't be written.
    pub fn secured(&self, user: &str, password: &str, sasl: &str) -> anyhow::Result<String> {
        let folder = &self.brokers[0].folder;
        let file = folder.join(format!("{user}.{}.password", password.len()));
        fs::write(&file, password)?;
        let (ca, file) = (folder.join("ca.pem"), file.display());
        let (brokers, ca) = (self.secure_address(), ca.display());
        Ok(format!(
            "brokers = [\"{brokers}\"], tls = true, ca_file = \"{ca}\", \
             sasl = \"{sasl}\", user = \"{user}\", password_file = \"{file}\""
        ))
    }

    /// Where a broker listens for what comes through the port of this number ([`Kafka::start_behind`]).
    #[must_use]
    pub fn door(&self, broker: usize, number: usize) -> String {
        format!("127.0.0.1:{}", self.brokers[broker].ports.doors[number].0)
    }

    /// The id of a topic, as Kafka's tools print it.
    ///
    /// # Errors
    /// When there is no such topic.
    pub fn topic_id(&self, topic: &str) -> anyhow::Result<String> {
        let file = self.brokers[0]
            .folder
            .join(format!("data/{topic}-0/partition.metadata"));
        let text = fs::read_to_string(file)?;
        let id = text.lines().find_map(|line| line.strip_prefix("topic_id:"));
        Ok(id
            .context("a partition without its topic's id")?
            .trim()
            .to_owned())
    }

    /// Who vouches for it, in PEM.
    ///
    /// # Errors
    /// When the file is gone.
    pub fn roots(&self) -> anyhow::Result<Vec<u8>> {
        Ok(fs::read(self.brokers[0].folder.join("ca.pem"))?)
    }

    /// Starts those brokers again that do not run, with the data that they had, and waits until they answer, and have all that
    /// the others have.
    ///
    /// # Errors
    /// When it does not come to that.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        let down = self
            .brokers
            .iter_mut()
            .filter(|broker| !broker.is_running());
        for broker in down {
            broker.start()?;
        }
        let all = self.brokers.len();
        let whole = move |metadata: &Metadata| {
            let topics = metadata.topics().iter();
            let mut partitions = topics.flat_map(MetadataTopic::partitions);
            metadata.brokers().len() == all
                && (all == 1 || partitions.all(|partition| partition.isr().len() == all))
        };
        self.until(self.addresses(), whole).await
    }

    /// Asks these brokers what they know until it is so.
    async fn until(
        &self,
        brokers: Vec<String>,
        is_so: impl Fn(&Metadata) -> bool + Clone + Send + 'static,
    ) -> anyhow::Result<()> {
        let patience = match self.brokers.len() {
            1 => PATIENCE,
            _ => PATIENCE_WITH_ALL,
        };
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            let admin: AdminClient<DefaultClientContext> = client(&brokers).create()?;
            let is_so = is_so.clone();
            let asked = tokio::task::spawn_blocking(move || {
                let metadata = admin.inner().fetch_metadata(None, Duration::from_secs(1))?;
                Ok::<_, rdkafka::error::KafkaError>(is_so(&metadata))
            });
            if asked.await?.is_ok_and(|is_so| is_so) {
                return Ok(());
            }
            tokio::time::sleep(AGAIN).await;
        }
        let logs: Vec<_> = self.brokers.iter().map(Broker::log).collect();
        bail!(
            "the broker does not answer within {patience:?}; its log says: {}",
            logs.join("\n")
        )
    }

    /// Kills it, as a loss of power would; of a cluster all. Their data stay.
    ///
    /// # Errors
    /// When one does not run.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.brokers.iter_mut().try_for_each(Broker::kill)
    }

    /// Kills one of a cluster.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_one(&mut self, broker: usize) -> anyhow::Result<()> {
        self.brokers[broker].kill()
    }

    /// Which broker leads a partition.
    ///
    /// # Errors
    /// When nobody says so.
    pub async fn leader_of(&self, topic: &str, partition: i32) -> anyhow::Result<usize> {
        let admin: AdminClient<DefaultClientContext> = client(&self.addresses()).create()?;
        let topic = topic.to_owned();
        let asked = tokio::task::spawn_blocking(move || {
            let metadata = admin.inner().fetch_metadata(Some(&topic), PATIENCE)?;
            let partitions = metadata.topics().iter().flat_map(MetadataTopic::partitions);
            let mut found = partitions.filter(|found| found.id() == partition);
            let leader = found.next().map_or(-1, |found| found.leader());
            Ok::<_, rdkafka::error::KafkaError>(leader)
        });
        let leader = asked.await??;
        usize::try_from(leader - 1).context("a partition without a leader")
    }

    /// Waits until the others say that this broker leads nothing any more, and that everything has a leader.
    ///
    /// # Errors
    /// When it does not come to that.
    pub async fn until_it_leads_nothing(&self, broker: usize) -> anyhow::Result<()> {
        let id = i32::try_from(broker + 1)?;
        let mut others = self.addresses();
        others.remove(broker);
        self.until(others, move |metadata| {
            let mut partitions = metadata.topics().iter().flat_map(MetadataTopic::partitions);
            partitions.all(|partition| partition.leader() >= 0 && partition.leader() != id)
        })
        .await
    }

    /// Takes the records of a partition away, while the broker does not run: the topic is there, under its id, and empty.
    ///
    /// # Errors
    /// When it has none.
    pub fn lose(&self, topic: &str, partition: u32) -> anyhow::Result<()> {
        let broker = &self.brokers[0];
        ensure!(!broker.is_running(), "the broker runs");
        for file in fs::read_dir(broker.folder.join(format!("data/{topic}-{partition}")))? {
            let path = file?.path();
            if !path.ends_with("partition.metadata") {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Stops it from doing anything, while its connections stay; of a cluster all.
    pub fn freeze(&self) {
        (0..self.brokers.len()).for_each(|broker| self.freeze_one(broker));
    }

    /// Stops one of a cluster from doing anything.
    pub fn freeze_one(&self, broker: usize) {
        self.brokers[broker].signal(Signal::SIGSTOP);
    }

    /// Lets all go on.
    pub fn thaw(&self) {
        let all = self.brokers.iter();
        all.for_each(|broker| broker.signal(Signal::SIGCONT));
    }

    /// Makes a topic.
    ///
    /// # Errors
    /// What the broker says.
    pub async fn create_topic(
        &self,
        topic: &str,
        partitions: i32,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let copies = i32::try_from(self.brokers.len())?;
        loop {
            let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(copies));
            for (key, value) in settings {
                new = new.set(key, value);
            }
            let made = self.admin.create_topics([&new], &options()).await;
            match made.map(|mut made| made.pop()) {
                Ok(Some(Ok(_))) => return Ok(()),
                // A topic of that name that was deleted is still there for a while.
                wrong if Instant::now() > deadline => bail!("{topic} can't be made: {wrong:?}"),
                _ => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    /// Deletes a topic.
    ///
    /// # Errors
    /// What the broker says.
    pub async fn delete_topic(&self, topic: &str) -> anyhow::Result<()> {
        let deleted = self.admin.delete_topics(&[topic], &options()).await?;
        one(deleted)
    }

    /// Gives a topic more partitions, so that it has `partitions`.
    ///
    /// # Errors
    /// What the broker says.
    pub async fn grow_topic(&self, topic: &str, partitions: usize) -> anyhow::Result<()> {
        let new = NewPartitions::new(topic, partitions);
        one(self.admin.create_partitions([&new], &options()).await?)
    }

    /// Deletes the records of a partition before an offset, as retention would.
    ///
    /// # Errors
    /// What the broker says.
    pub async fn delete_records(
        &self,
        topic: &str,
        partition: i32,
        before: i64,
    ) -> anyhow::Result<()> {
        let mut places = TopicPartitionList::new();
        places.add_partition_offset(topic, partition, Offset::Offset(before))?;
        let answer = self.admin.delete_records(&places, &options()).await?;
        for place in answer.elements() {
            place.error()?;
        }
        Ok(())
    }

    /// Writes records in order, idempotently; the broker has them all when this returns. Their offsets.
    ///
    /// # Errors
    /// When one is not acknowledged.
    pub async fn produce<'a>(
        &self,
        topic: &str,
        partition: i32,
        records: impl IntoIterator<Item = (&'a str, Option<&'a str>)>,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<Vec<i64>> {
        let mut config = client(&self.addresses());
        config.set("enable.idempotence", "true");
        for (key, value) in settings {
            config.set(*key, *value);
        }
        let producer: FutureProducer = config.create()?;
        let mut waiting = Vec::new();
        for (key, value) in records {
            let headers = OwnedHeaders::new().insert(Header {
                key: "from",
                value: Some("tests"),
            });
            let mut record = FutureRecord::to(topic)
                .partition(partition)
                .key(key)
                .headers(headers);
            if let Some(value) = value {
                record = record.payload(value);
            }
            waiting.push(producer.send_result(record).map_err(|(error, _)| error)?);
        }
        let mut offsets = Vec::new();
        for acknowledged in waiting {
            let delivery = acknowledged.await?.map_err(|(error, _)| error)?;
            offsets.push(delivery.offset);
        }
        Ok(offsets)
    }

    /// Writes one record without a key.
    ///
    /// # Errors
    /// When it is not acknowledged.
    pub async fn produce_keyless(
        &self,
        topic: &str,
        partition: i32,
        value: &str,
    ) -> anyhow::Result<()> {
        let record = FutureRecord::<(), str>::to(topic).partition(partition);
        self.produce_one(record.payload(value)).await
    }

    /// Writes one record of this time, in milliseconds since 1970.
    ///
    /// # Errors
    /// When it is not acknowledged.
    pub async fn produce_at(
        &self,
        topic: &str,
        partition: i32,
        key: &str,
        value: &str,
        time_ms: i64,
    ) -> anyhow::Result<()> {
        let record = FutureRecord::to(topic).partition(partition).key(key);
        self.produce_one(record.payload(value).timestamp(time_ms))
            .await
    }

    async fn produce_one<K: ToBytes + ?Sized>(
        &self,
        record: FutureRecord<'_, K, str>,
    ) -> anyhow::Result<()> {
        let producer: FutureProducer = client(&self.addresses()).create()?;
        let sent = producer.send(record, PATIENCE).await;
        sent.map_err(|(error, _)| error)?;
        Ok(())
    }

    /// Writes records in a transaction, and ends it.
    ///
    /// # Errors
    /// What the broker says.
    pub async fn transaction(
        &self,
        topic: &str,
        partition: i32,
        records: &[(&str, &str)],
        outcome: Outcome,
    ) -> anyhow::Result<()> {
        let mut config = client(&self.addresses());
        config.set("transactional.id", format!("{topic}-{partition}"));
        let (topic, records) = (topic.to_owned(), owned(records));
        let whole = move || {
            let producer: ThreadedProducer<_> = config.create()?;
            producer.init_transactions(PATIENCE)?;
            producer.begin_transaction()?;
            for (key, value) in &records {
                let record = BaseRecord::to(&topic)
                    .partition(partition)
                    .key(key)
                    .payload(value);
                producer.send(record).map_err(|(error, _)| error)?;
            }
            producer.flush(PATIENCE)?;
            match outcome {
                Outcome::Commit => producer.commit_transaction(PATIENCE),
                Outcome::Abort => producer.abort_transaction(PATIENCE),
            }
        };
        Ok(tokio::task::spawn_blocking(whole).await??)
    }

    /// Everything that is committed in a partition now, from its beginning.
    ///
    /// # Errors
    /// When it can't be read.
    pub async fn read(&self, topic: &str, partition: i32) -> anyhow::Result<Vec<Read>> {
        let mut config = client(&self.addresses());
        config
            .set("group.id", "tests")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true");
        let topic = topic.to_owned();
        let whole = move || {
            let consumer: BaseConsumer = config.create()?;
            let mut places = TopicPartitionList::new();
            places.add_partition_offset(&topic, partition, Offset::Beginning)?;
            consumer.assign(&places)?;
            let mut read = Vec::new();
            loop {
                match consumer
                    .poll(PATIENCE)
                    .ok_or_else(|| anyhow!("{topic} can't be read"))?
                {
                    Ok(message) => read.push(as_read(&message)),
                    Err(rdkafka::error::KafkaError::PartitionEOF(_)) => return Ok(read),
                    Err(error) => return Err(error.into()),
                }
            }
        };
        tokio::task::spawn_blocking(whole).await?
    }
}

fn as_read(message: &impl Message) -> Read {
    let headers = message.headers().map_or(Vec::new(), |headers| {
        let all = headers.iter().map(|header| {
            let value = header.value.unwrap_or_default().to_vec();
            (header.key.to_owned(), value)
        });
        all.collect()
    });
    Read {
        offset: message.offset(),
        key: message.key().unwrap_or_default().to_vec(),
        value: message.payload().map(<[u8]>::to_vec),
        time_ms: message.timestamp().to_millis(),
        headers,
    }
}

fn owned(records: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    records.iter().map(owned).collect()
}

/// What came of an operation on one topic.
fn one(results: Vec<rdkafka::admin::TopicResult>) -> anyhow::Result<()> {
    for result in results {
        result.map_err(|(topic, code)| anyhow!("{topic}: {code}"))?;
    }
    Ok(())
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .operation_timeout(Some(Duration::from_secs(10)))
        .request_timeout(Some(Duration::from_secs(10)))
}

fn addresses(brokers: &[Broker]) -> Vec<String> {
    let each = brokers.iter().map(|broker| broker.ports.clear);
    each.map(|port| format!("127.0.0.1:{port}")).collect()
}

fn client(brokers: &[String]) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers.join(","))
        .set("log_level", "0");
    config
}
