//! A Kafka broker of one node, with a client of its own: librdkafka, which shares no line with the server's.
//!
//! Does: formats and starts it (KRaft, small), makes and changes topics, writes records, in transactions too, reads them back,
//! kills, restarts, freezes, loses data. Owns: the broker. Never knows: Tidegate.
//!
//! It has two listeners: one in the clear, where everybody may do everything, and one with TLS and SASL, where [`USER`] may do
//! everything and [`STRANGER`] nothing.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context, anyhow, bail, ensure};
use nix::sys::signal::Signal;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    message::{Header, Headers, OwnedHeaders, ToBytes},
    producer::{BaseRecord, FutureProducer, FutureRecord, Producer, ThreadedProducer},
};
use tokio::time::Instant;

use super::{Process, folder, free_ports, root, set_up};

/// The longest that a start, or anything that a client asks of the broker, may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries.
const AGAIN: Duration = Duration::from_millis(100);
/// A virtual machine that begins quickly and stays small.
const JAVA: [&str; 5] = [
    "-Xms128m",
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
];
/// Who may do everything.
pub const USER: &str = "node";
/// Who is known, and may do nothing.
pub const STRANGER: &str = "stranger";
/// The password of both.
pub const PASSWORD: &str = "a=password of the tests";
/// Any 16 bytes: the cluster's name for itself.
const CLUSTER: &str = "dGlkZWdhdGUtdGVzdHMtMQ";
const LOGGING: &str = "appender.console.type=Console\n\
    appender.console.name=STDOUT\n\
    appender.console.layout.type=PatternLayout\n\
    appender.console.layout.pattern=[%d] %p %m (%c)%n\n\
    rootLogger.level=WARN\n\
    rootLogger.appenderRef.stdout.ref=STDOUT\n";

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

/// A broker.
pub struct Kafka {
    folder: PathBuf,
    port: u16,
    secure_port: u16,
    doors: Vec<u16>,
    process: Option<Process>,
    admin: AdminClient<DefaultClientContext>,
}

impl Kafka {
    /// Starts one, and waits until it answers.
    ///
    /// # Errors
    /// When it can't be installed or does not answer.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_behind([]).await
    }

    /// Starts one that is reached through these ports too, by whoever takes connections there to [`Kafka::door`]: clients that
    /// come that way are told to come that way again.
    ///
    /// # Errors
    /// As [`Kafka::start`].
    pub async fn start_behind<const N: usize>(ports_before: [u16; N]) -> anyhow::Result<Self> {
        set_up("kafka")?;
        let folder = folder("kafka")?;
        let ports = free_ports()?;
        let doors: [u16; N] = free_ports()?;
        fs::write(folder.join("logging.properties"), LOGGING)?;
        let doors_before: Vec<_> = doors.into_iter().zip(ports_before).collect();
        let properties = properties(&folder, ports, &doors_before);
        fs::write(folder.join("server.properties"), properties)?;
        certify(&folder)?;
        format(&folder)?;
        let [port, secure_port, _] = ports;
        let mut kafka = Self {
            admin: client(port).create()?,
            folder,
            port,
            secure_port,
            doors: doors.to_vec(),
            process: None,
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

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where it listens with TLS and SASL.
    #[must_use]
    pub fn secure_address(&self) -> String {
        format!("127.0.0.1:{}", self.secure_port)
    }

    /// The lines of a stream's source for the listener with TLS, as this user: `brokers`, `tls`, `sasl` and what they need.
    ///
    /// # Errors
    /// When the password's file can't be written.
    pub fn secured(&self, user: &str, password: &str, sasl: &str) -> anyhow::Result<String> {
        let file = self
            .folder
            .join(format!("{user}.{}.password", password.len()));
        fs::write(&file, password)?;
        let (ca, file) = (self.folder.join("ca.pem"), file.display());
        let (brokers, ca) = (self.secure_address(), ca.display());
        Ok(format!(
            "brokers = [\"{brokers}\"], tls = true, ca_file = \"{ca}\", \
             sasl = \"{sasl}\", user = \"{user}\", password_file = \"{file}\""
        ))
    }

    /// Where it listens for what comes through the port of this number ([`Kafka::start_behind`]).
    #[must_use]
    pub fn door(&self, number: usize) -> String {
        format!("127.0.0.1:{}", self.doors[number])
    }

    /// The id of a topic, as Kafka's tools print it.
    ///
    /// # Errors
    /// When there is no such topic.
    pub fn topic_id(&self, topic: &str) -> anyhow::Result<String> {
        let file = self
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
        Ok(fs::read(self.folder.join("ca.pem"))?)
    }

    /// Starts it again with the data that it had, and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        let mut arguments = java(&self.folder);
        arguments.push("kafka.Kafka".into());
        arguments.push(self.folder.join("server.properties").display().to_string());
        self.process = Some(Process::start(&self.folder, "java", &arguments)?);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let admin: AdminClient<DefaultClientContext> = client(self.port).create()?;
            let asked = tokio::task::spawn_blocking(move || {
                let metadata = admin.inner().fetch_metadata(None, Duration::from_secs(1))?;
                Ok::<_, rdkafka::error::KafkaError>(metadata.brokers().len())
            });
            if asked.await?.is_ok_and(|brokers| brokers > 0) {
                return Ok(());
            }
            tokio::time::sleep(AGAIN).await;
        }
        let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        bail!("the broker does not answer within {PATIENCE:?}; its log says: {log}")
    }

    /// Kills it, as a loss of power would. Its data stay.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process
            .take()
            .context("the broker does not run")?
            .kill()
    }

    /// Takes the records of a partition away, while the broker does not run: the topic is there, under its id, and empty.
    ///
    /// # Errors
    /// When it has none.
    pub fn lose(&self, topic: &str, partition: u32) -> anyhow::Result<()> {
        ensure!(self.process.is_none(), "the broker runs");
        for file in fs::read_dir(self.folder.join(format!("data/{topic}-{partition}")))? {
            let path = file?.path();
            if !path.ends_with("partition.metadata") {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Stops it from doing anything, while its connections stay.
    pub fn freeze(&self) {
        if let Some(process) = &self.process {
            process.signal(Signal::SIGSTOP);
        }
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        if let Some(process) = &self.process {
            process.signal(Signal::SIGCONT);
        }
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
        loop {
            let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
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
        let mut config = client(self.port);
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
        let producer: FutureProducer = client(self.port).create()?;
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
        let mut config = client(self.port);
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
        let mut config = client(self.port);
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

fn client(port: u16) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", format!("127.0.0.1:{port}"))
        .set("log_level", "0");
    config
}

fn java(folder: &Path) -> Vec<String> {
    let jars = root().join("target/services/kafka/jars/*");
    let logging = folder.join("logging.properties");
    let ours = [
        format!("-Dlog4j2.configurationFile={}", logging.display()),
        "-cp".into(),
        jars.display().to_string(),
    ];
    JAVA.map(str::to_owned).into_iter().chain(ours).collect()
}

/// Runs a command to its end.
fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command
        .output()
        .with_context(|| format!("{command:?} can't be run"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {said}");
    Ok(())
}

fn format(folder: &Path) -> anyhow::Result<()> {
    let mut command = Command::new("java");
    command
        .args(java(folder))
        .arg("kafka.tools.StorageTool")
        .args(["format", "-t", CLUSTER, "-c"])
        .arg(folder.join("server.properties"));
    for hash in ["256", "512"] {
        let known = format!("SCRAM-SHA-{hash}=[name={USER},password=\"{PASSWORD}\"]");
        command.args(["--add-scram", &known]);
    }
    run(&mut command)
}

/// An authority, and a certificate of the broker's that it vouches for.
fn certify(folder: &Path) -> anyhow::Result<()> {
    let openssl = |arguments: &str| {
        let mut command = Command::new("openssl");
        run(command.args(arguments.split(' ')).current_dir(folder))
    };
    fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1\n")?;
    let new = "-newkey rsa:2048 -nodes";
    openssl(&format!(
        "req -x509 {new} -days 9 -keyout ca.key -out ca.pem -subj /CN=tests"
    ))?;
    openssl(&format!(
        "req -new {new} -keyout key.pem -out request.pem -subj /CN=broker"
    ))?;
    openssl(
        "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 9 -extfile names -out broker.pem",
    )?;
    let both = [
        fs::read(folder.join("key.pem"))?,
        fs::read(folder.join("broker.pem"))?,
    ];
    Ok(fs::write(folder.join("keystore.pem"), both.concat())?)
}

fn properties(folder: &Path, [port, secure, controller]: [u16; 3], doors: &[(u16, u16)]) -> String {
    let (mut listeners, mut advertised, mut kinds) = (String::new(), String::new(), String::new());
    for (number, (door, before)) in doors.iter().enumerate() {
        listeners += &format!(",DOOR{number}://127.0.0.1:{door}");
        advertised += &format!(",DOOR{number}://127.0.0.1:{before}");
        kinds += &format!(",DOOR{number}:PLAINTEXT");
    }
    let (data, keystore) = (folder.join("data"), folder.join("keystore.pem"));
    let (data, keystore) = (data.display(), keystore.display());
    let module = "org.apache.kafka.common.security";
    format!(
        "process.roles=broker,controller\n\
         node.id=1\n\
         listeners=PLAINTEXT://127.0.0.1:{port},SECURE://127.0.0.1:{secure},CONTROLLER://127.0.0.1:{controller}{listeners}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{port},SECURE://127.0.0.1:{secure}{advertised}\n\
         controller.listener.names=CONTROLLER\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SECURE:SASL_SSL,CONTROLLER:PLAINTEXT{kinds}\n\
         controller.quorum.voters=1@127.0.0.1:{controller}\n\
         log.dirs={data}\n\
         ssl.keystore.type=PEM\n\
         ssl.keystore.location={keystore}\n\
         sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\n\
         listener.name.secure.plain.sasl.jaas.config={module}.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\" user_{STRANGER}=\"{PASSWORD}\";\n\
         listener.name.secure.scram-sha-256.sasl.jaas.config={module}.scram.ScramLoginModule required;\n\
         listener.name.secure.scram-sha-512.sasl.jaas.config={module}.scram.ScramLoginModule required;\n\
         authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
         super.users=User:ANONYMOUS;User:{USER}\n\
         offsets.topic.replication.factor=1\n\
         offsets.topic.num.partitions=1\n\
         transaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\n\
         transaction.state.log.num.partitions=1\n\
         share.coordinator.state.topic.replication.factor=1\n\
         share.coordinator.state.topic.min.isr=1\n\
         group.initial.rebalance.delay.ms=0\n\
         auto.create.topics.enable=false\n\
         log.cleaner.backoff.ms=200\n"
    )
}
