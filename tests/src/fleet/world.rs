//! One run: the broker, the roads to it, the nodes, the clients and their writer, from the first start to the last verdict.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use tidegate::model::Epoch;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    Faults, Plan,
    client::{Character, Client, Clock, Order},
    faults::{Fault, Occurred},
    judge,
    nodes::{GATEWAY, MATERIALIZER, Node},
    report::{Ending, Report},
    road::{Road, Weather},
    scene::{HEARTBEAT_MS, Ms, Scene},
    store::Store,
    truth::{Telling, Truth},
    writer::{Desk, read_along, record_of, write},
};
use crate::{binary, services::kafka::Kafka, simulation::Dice};

/// How long all may take to come to rest.
const REST: Duration = Duration::from_secs(40);
/// Between two looks whether it has.
const LOOK: Duration = Duration::from_millis(100);
/// Between two faults, at most.
const CALM_MS: usize = 2500;
/// Who fold into the cache, where there is one.
pub(super) const MATERIALIZERS: usize = 2;
/// How many nodes there are: as many as a broker has doors here.
pub(super) const NODES: usize = 3;

/// Everything of a run.
pub(super) struct World {
    pub(super) scene: Arc<Scene>,
    pub(super) truth: Arc<Telling>,
    pub(super) clock: Clock,
    pub(super) kafka: Kafka,
    /// From each node to each broker.
    pub(super) roads: Vec<Vec<Road>>,
    pub(super) nodes: Vec<Node>,
    pub(super) materializers: Vec<Node>,
    pub(super) store: Option<Store>,
    pub(super) desk: Arc<Desk>,
    pub(super) dice: Dice,
    pub(super) occurred: Vec<Occurred>,
    /// Since when that is there again which a fault took away.
    pub(super) back: Option<Ms>,
    /// What was measured on the way.
    pub(super) figures: Vec<String>,
    /// What nodes did not do that they should, and no client can see.
    blames: Vec<String>,
    clients: Vec<Arc<Client>>,
    orders: watch::Sender<Order>,
    living: JoinSet<()>,
    writing: JoinSet<anyhow::Result<()>>,
    patience: Duration,
    tells: bool,
}

impl World {
    /// Starts a broker, topics, nodes, who writes, and the clients.
    pub(super) async fn begin(plan: &Plan) -> anyhow::Result<Self> {
        ensure!(plan.nodes == NODES, "a fleet has {NODES} nodes here");
        let program = match plan.bug {
            Some(_) => binary::tidegate_with_bugs().await?,
            None => tokio::task::spawn_blocking(binary::tidegate)
                .await?
                .to_owned(),
        };
        let scene = Arc::new(Scene::new());
        let mut roads = Vec::new();
        for _ in 0..NODES {
            let mut of_node = Vec::new();
            for _ in 0..plan.brokers {
                of_node.push(Road::open().await?);
            }
            roads.push(of_node);
        }
        let ports = |broker: usize| roads.iter().map(|of_node| of_node[broker].port).collect();
        let ports: Vec<Vec<u16>> = (0..plan.brokers).map(ports).collect();
        let kafka = Kafka::start_behind(&ports).await?;
        for (node, of_node) in roads.iter().enumerate() {
            for (broker, road) in of_node.iter().enumerate() {
                road.leads_to(kafka.door(broker, node).parse()?);
            }
        }
        let clock = Clock::start();
        let truth = Arc::new(Telling::new(Truth::new(&scene)));
        let desk = Arc::new(Desk::new(
            scene.clone(),
            truth.clone(),
            kafka.addresses().join(","),
            clock,
        ));
        let mut world = Self {
            scene,
            truth,
            clock,
            kafka,
            roads,
            nodes: Vec::new(),
            materializers: Vec::new(),
            store: None,
            desk,
            dice: Dice::new(plan.seed),
            occurred: Vec::new(),
            back: None,
            figures: Vec::new(),
            blames: Vec::new(),
            clients: Vec::new(),
            orders: watch::Sender::new(Order::Roam),
            living: JoinSet::new(),
            writing: JoinSet::new(),
            // With a bug there may be no rest, and none is needed.
            patience: if plan.bug.is_some() { REST / 8 } else { REST },
            tells: plan.tells,
        };
        for stream in 0..world.scene.streams.len() {
            world.make_topic(stream).await?;
        }
        world.start_writing();
        world.start_nodes(plan, &program).await?;
        world.start_clients(plan.clients);
        Ok(world)
    }

    /// Makes a stream's topic, and lets it be written to.
    pub(super) async fn make_topic(&self, stream: usize) -> anyhow::Result<()> {
        let of = &self.scene.streams[stream];
        let settings = of.topic_settings();
        let settings: Vec<_> = settings
            .iter()
            .map(|(key, value)| (*key, value.as_str()))
            .collect();
        let partitions = i32::try_from(of.partitions)?;
        self.kafka
            .create_topic(of.name, partitions, &settings)
            .await?;
        let deadline = Instant::now() + REST;
        let id = loop {
            // The broker makes the files a moment later, and may still have those of the topic before.
            let id = self
                .kafka
                .topic_id(of.name)
                .and_then(|id| Ok(Epoch::new(&id)?));
            match id {
                Ok(id) if self.truth.lock().life(stream, &id).is_none() => break id,
                other => ensure!(Instant::now() < deadline, "no new topic: {other:?}"),
            }
            sleep(LOOK).await;
        };
        let lives = {
            let mut truth = self.truth.lock();
            truth.begin(stream, id);
            truth.lives(stream)
        };
        self.desk.tell(stream, |duty| {
            (duty.life, duty.holds) = (lives - 1, false);
        });
        Ok(())
    }

    fn start_writing(&mut self) {
        for stream in 0..self.scene.streams.len() {
            let dice = Dice::new(self.dice.next());
            self.writing.spawn(write(self.desk.clone(), stream, dice));
            let desk = self.desk.clone();
            self.writing
                .spawn_blocking(move || read_along(&desk, stream));
        }
    }

    async fn start_nodes(&mut self, plan: &Plan, program: &Path) -> anyhow::Result<()> {
        let mut sections = format!(
            "heartbeat = \"{HEARTBEAT_MS}ms\"\n[limits]\nrecord_bytes = \"4KiB\"\nresume_hold = \"2s\"\n"
        );
        let bug = plan.bug.map(super::Bug::word);
        if let Some(cache) = plan.cache {
            let store = Store::start(cache, NODES + MATERIALIZERS).await?;
            sections += "[materializer]\nsession_timeout = \"6s\"\n";
            let streams = self.scene.streams_text(&self.kafka.addresses(), None);
            for process in NODES..NODES + MATERIALIZERS {
                let sections = sections.clone() + &store.section(process);
                let mut process = Node::new(program, MATERIALIZER, (&sections, &streams))?;
                process.start().await?;
                self.materializers.push(process);
            }
            self.store = Some(store);
        }
        for (process, roads) in self.roads.iter().enumerate() {
            let brokers = roads.iter().map(|road| format!("127.0.0.1:{}", road.port));
            let brokers: Vec<_> = brokers.collect();
            let streams = self.scene.streams_text(&brokers, bug);
            let cache = self.store.as_ref().map(|store| store.section(process));
            let sections = sections.clone() + &cache.unwrap_or_default();
            let mut node = Node::new(program, GATEWAY, (&sections, &streams))?;
            node.start().await?;
            self.nodes.push(node);
        }
        Ok(())
    }

    fn start_clients(&mut self, count: usize) {
        let addresses: Vec<SocketAddr> = self.nodes.iter().map(|node| node.address).collect();
        for _ in 0..count {
            self.come(addresses.clone(), |number, world| {
                Character::roll(number, &world.scene, &mut world.dice)
            });
        }
    }

    /// One client more, which knows these nodes.
    pub(super) fn come(
        &mut self,
        addresses: Vec<SocketAddr>,
        character: impl FnOnce(usize, &mut Self) -> Character,
    ) -> Arc<Client> {
        let character = character(self.clients.len(), self);
        let client = Client::new(character, self.scene.clone(), addresses, self.clock);
        let client = Arc::new(client);
        let dice = Dice::new(self.dice.next());
        self.living
            .spawn(client.clone().live(dice, self.orders.subscribe()));
        self.clients.push(client.clone());
        client
    }

    /// The cache.
    pub(super) fn store(&mut self) -> anyhow::Result<&mut Store> {
        self.store.as_mut().context("this fleet has no cache")
    }

    /// The weather on all roads from a node to brokers.
    pub(super) fn weather(&self, node: usize, weather: Weather) {
        self.roads[node].iter().for_each(|road| road.set(weather));
    }

    /// What the fault took away is there again, also for others.
    pub(super) fn is_back(&mut self) {
        self.back.get_or_insert(self.clock.now());
    }

    /// Something is wrong that no client can see.
    pub(super) fn blame(&mut self, what: String) {
        self.tell(&what);
        self.blames.push(what);
    }

    /// What happens now, for whoever waits.
    pub(super) fn tell(&self, what: &str) {
        if self.tells {
            eprintln!("t={} {what}", self.clock.now());
        }
    }

    /// Lives through the plan, comes to rest, and is judged.
    pub(super) async fn live(mut self, plan: &Plan) -> anyhow::Result<Report> {
        let ends = Instant::now() + plan.length;
        match &plan.faults {
            Faults::InTurn(faults) => {
                for fault in faults {
                    self.pause().await;
                    fault.occur(&mut self).await?;
                }
            }
            Faults::Random => {
                while Instant::now() < ends {
                    self.pause().await;
                    let faults = Fault::of(plan, false);
                    let fault = faults[self.dice.below(faults.len())];
                    fault.occur(&mut self).await?;
                }
            }
        }
        tokio::time::sleep_until(ends).await;
        let rest = self.come_to_rest().await?;
        self.end(plan, rest).await
    }

    async fn pause(&mut self) {
        let pause = 500 + self.dice.below(CALM_MS);
        sleep(Duration::from_millis(pause as u64)).await;
    }

    /// Waits until what was written to a stream has been acknowledged.
    pub(super) async fn hold(&self, stream: usize) -> anyhow::Result<()> {
        self.desk.tell(stream, |duty| duty.holds = true);
        let deadline = Instant::now() + REST;
        while self.desk.waiting(stream) > 0 {
            ensure!(
                Instant::now() < deadline,
                "the broker does not acknowledge what was written"
            );
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Nobody writes any more, nobody leaves: gives how long it took until all was at rest, if it came to that.
    async fn come_to_rest(&self) -> anyhow::Result<Option<Ms>> {
        self.orders.send_replace(Order::Settle);
        for stream in 0..self.scene.streams.len() {
            self.hold(stream).await?;
        }
        let deadline = Instant::now() + REST;
        while self.truth.lock().unread() > 0 {
            ensure!(
                Instant::now() < deadline,
                "what was acknowledged is not in the log: {:?}",
                {
                    let mut truth = self.truth.lock();
                    truth.compare();
                    truth.contradictions.clone()
                }
            );
            sleep(LOOK).await;
        }
        let (began, deadline) = (self.clock.now(), Instant::now() + self.patience);
        self.tell("all is written");
        let mut restless: Vec<_> = self.clients.iter().collect();
        let mut last = String::new();
        while Instant::now() < deadline {
            restless.retain(|client| match self.unsettled(client) {
                Some(why) => {
                    last = format!("client {}: {why}", client.character.number);
                    true
                }
                None => false,
            });
            if restless.is_empty() {
                self.tell(&format!("all is at rest; last was {last}"));
                return Ok(Some(self.clock.now() - began));
            }
            sleep(LOOK).await;
        }
        Ok(None)
    }

    /// Why a client does not show all that the logs come to, or not as live. Each need do so once: on a busy machine two
    /// hundred leases overlap late.
    fn unsettled(&self, client: &Client) -> Option<String> {
        let (truth, now) = (self.truth.lock(), self.clock.now());
        client.find(|channel, held| {
            let why = judge::unsettled(&self.scene, &truth, channel, held, now)?;
            Some(format!("{} {why}", self.scene.channels[channel].0))
        })
    }

    /// Ends everything, compares the logs, and judges.
    async fn end(mut self, plan: &Plan, rest: Option<Ms>) -> anyhow::Result<Report> {
        let at = self.clock.now();
        self.tell("the end");
        self.orders.send_replace(Order::Stop);
        while self.living.join_next().await.is_some() {}
        for stream in 0..self.scene.streams.len() {
            self.desk.tell(stream, |duty| duty.ends = true);
        }
        while let Some(ended) = self.writing.join_next().await {
            ended??;
        }
        self.compare_logs().await?;
        self.tell("what the clients saw is judged");
        let processes = self.nodes.iter().chain(&self.materializers);
        let logs = processes.map(Node::log).collect();
        let scene = self.scene.clone();
        let ending = Ending {
            at,
            rest,
            occurred: std::mem::take(&mut self.occurred),
            figures: std::mem::take(&mut self.figures),
            blames: std::mem::take(&mut self.blames),
            logs,
        };
        let histories: Vec<_> = self.clients.drain(..).map(Client::into_history).collect();
        let truth = self.truth.lock();
        Ok(Report::of(plan, &scene, &truth, &histories, ending))
    }

    /// What is left of the logs, read once more from their beginning.
    async fn compare_logs(&self) -> anyhow::Result<()> {
        self.truth.lock().compare();
        for (stream, of) in self.scene.streams.iter().enumerate() {
            for partition in 0..of.partitions {
                let left = self.kafka.read(of.name, i32::try_from(partition)?).await?;
                let records: Option<Vec<_>> = left
                    .iter()
                    .map(|read| {
                        let record =
                            record_of(&self.scene, stream, &read.key, read.value.as_deref())?;
                        Some((u64::try_from(read.offset + 1).ok()?, record))
                    })
                    .collect();
                let records = records.context("a record that nobody wrote")?;
                let mut truth = self.truth.lock();
                truth.survives((stream, partition), of.is_compacted(), &records);
            }
        }
        Ok(())
    }
}

impl Drop for World {
    /// Who reads along ends too when a run fails.
    fn drop(&mut self) {
        for stream in 0..self.scene.streams.len() {
            self.desk.tell(stream, |duty| duty.ends = true);
        }
    }
}
