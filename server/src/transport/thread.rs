//! One worker's thread: its listener, its HTTP connections, its worker, on one `current_thread` runtime.

use std::{
    cell::RefCell, collections::HashMap, io, net::SocketAddr, os::fd::OwnedFd, rc::Rc, sync::Arc,
    time::Duration,
};

use axum::Router;
use futures_util::FutureExt;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::unix::AsyncFd,
    net::TcpListener,
    sync::{Notify, mpsc, oneshot},
    time::sleep_until,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    App,
    admission::Seat,
    door::{self, Door},
};
use crate::{
    auth::Claims,
    model::Channel,
    protocol::{ErrorCode, PublishMessage, Refusal},
    publish::{Answer, Flow},
    streams::Stream,
    worker::{
        ChannelInfo, ConnectionInfo, Farewell, Opening, Outside, Pick, Retold, Worker,
        poll::{Epoll, await_readable},
        sockets::Ready,
    },
};

/// Records that came over WebSockets of one worker and are being stored; beyond it the publisher is told to come back.
const STORING_MAX: usize = 4096;
/// Commands that may wait for a worker.
const COMMANDS_MAX: usize = 64;

/// What a worker is told from outside.
#[derive(Debug)]
pub enum Command {
    /// Serve this socket as one whose head has been answered.
    Adopt(OwnedFd, Box<Opening>),
    /// Tell everybody to come back elsewhere, spread over this time.
    Drain(Duration),
    /// Close these; answers with how many.
    Close(Pick, Farewell, oneshot::Sender<usize>),
    /// End the subscriptions to channels of this stream; answers with how many.
    EndStream(Arc<str>, oneshot::Sender<usize>),
    /// A stream has grown into this one; answered once everybody who follows it follows all of it.
    Grow(Arc<Stream>, oneshot::Sender<()>),
    /// What of the settings has changed.
    Retell(Retold),
    /// List these connections, at most so many.
    Inspect(Pick, usize, oneshot::Sender<Vec<ConnectionInfo>>),
    /// List channels, at most so many, in no order.
    Channels(usize, oneshot::Sender<Vec<ChannelInfo>>),
    /// List these channels, where somebody follows them.
    Named(Arc<[Channel]>, oneshot::Sender<Vec<ChannelInfo>>),
    /// Free so many bytes, by closing those who hold most.
    Shed(usize),
    /// How many there are.
    Count(oneshot::Sender<usize>),
}

/// The way to a worker.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    /// Bounded; a worker that is too busy to take one is asked again.
    pub commands: mpsc::Sender<Command>,
}

/// The queue of a worker's commands.
#[must_use]
pub fn commands() -> (WorkerHandle, mpsc::Receiver<Command>) {
    let (commands, taken) = mpsc::channel(COMMANDS_MAX);
    (WorkerHandle { commands }, taken)
}

/// The seats of the worker's connections, where seats are counted.
pub(super) type Seats = Rc<RefCell<HashMap<u64, Seat>>>;

/// Answers to what was published over WebSockets.
#[derive(Default)]
struct Answers {
    known: RefCell<Vec<(u64, u64, Answer)>>,
    /// Told when one came that was waited for.
    came: Notify,
}

/// Of each connection that waits for answers to what it published: for how many. What is published while none is waited for comes
/// after its publisher has heard of everything before it, so its flow is a new one.
type Flows = Rc<RefCell<HashMap<u64, (usize, Flow)>>>;

/// The rest of the node, as a worker sees it.
pub struct Node {
    app: Arc<App>,
    answers: Rc<Answers>,
    flows: Flows,
    /// Records that are being stored. Nobody waits for them at the end: those who would be told are gone.
    storing: TaskTracker,
    seats: Seats,
}

impl Outside for Node {
    fn verify(&self, token: &str) -> Result<Arc<Claims>, Refusal> {
        self.app.verify(token)
    }
    fn stream(&self, name: &str) -> Option<Arc<Stream>> {
        self.app.streams.get(name)
    }
    fn publish(&self, from: u64, id: u64, record: PublishMessage, claims: Arc<Claims>) {
        let answers = self.answers.clone();
        if self.storing.len() >= STORING_MAX {
            let message = "too many records are being stored";
            let refusal = Refusal::retry(ErrorCode::Overloaded, message, 1000);
            return answers.known.borrow_mut().push((from, id, Err(refusal)));
        }
        let publisher = self.app.publisher.clone();
        let before = self.flows.borrow();
        let flow = before.get(&from).map(|(_, flow)| flow.beside());
        drop(before);
        let flow = flow.unwrap_or_default();
        let its = flow.beside();
        let mut publishing = Box::pin(async move {
            let line = record.record.as_bytes();
            let one = publisher.publish_one(&record.stream, &claims, line, its);
            one.await
        });
        // A log in memory answers at once.
        if let Some(answer) = (&mut publishing).now_or_never() {
            return answers.known.borrow_mut().push((from, id, answer));
        }
        let flows = self.flows.clone();
        flows.borrow_mut().entry(from).or_insert((0, flow)).0 += 1;
        self.storing.spawn_local(async move {
            let answer = publishing.await;
            answered(&flows, from);
            answers.known.borrow_mut().push((from, id, answer));
            answers.came.notify_one();
        });
    }
    fn wall_s(&self) -> u64 {
        self.app.clock.wall_s()
    }
    fn is_short_of_memory(&self) -> bool {
        let memory = &self.app.counts.memory;
        let short = memory.short.get() > 0;
        memory.refused_joins.add(u64::from(short));
        short
    }
    fn closed(&self, key: u64) {
        self.seats.borrow_mut().remove(&key);
    }
}

/// One of a connection's records has its answer.
fn answered(flows: &Flows, from: u64) {
    let mut flows = flows.borrow_mut();
    if let Some((waiting, _)) = flows.get_mut(&from) {
        *waiting -= 1;
        if *waiting == 0 {
            flows.remove(&from);
        }
    }
}

/// A listening socket that shares its port with those of the other workers.
///
/// # Errors
/// What the operating system says: the address is in use, or not ours.
pub fn listen(address: SocketAddr, backlog: u32) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(socket.into())
}

pub(super) type Shared = Rc<RefCell<Worker<Epoll, Node>>>;

/// What a worker's thread is given.
pub struct Thread {
    /// The node.
    pub app: Arc<App>,
    /// Its routes.
    pub router: Router,
    /// The worker's own listener.
    pub listener: std::net::TcpListener,
    /// What the worker is told.
    pub settings: crate::worker::Settings,
    /// What it counts.
    pub counts: Arc<crate::telemetry::WorkerCounts>,
    /// What it is told later.
    pub commands: mpsc::Receiver<Command>,
    /// Ends accepting.
    pub closed: CancellationToken,
    /// Ends everything.
    pub stop: CancellationToken,
}

impl Thread {
    /// Runs until it is stopped.
    ///
    /// # Errors
    /// When the operating system has no epoll or socket for it.
    pub async fn run(self) -> io::Result<()> {
        let (answers, seats) = <(Rc<Answers>, Seats)>::default();
        let tasks = TaskTracker::new();
        let (app, clock) = (self.app.clone(), self.app.clock);
        let epoll = Epoll::new()?;
        let watched = await_readable(&epoll)?;
        let node = Node {
            app: app.clone(),
            answers: answers.clone(),
            flows: Flows::default(),
            storing: TaskTracker::new(),
            seats: seats.clone(),
        };
        let worker = Rc::new(RefCell::new(Worker::new(
            self.settings,
            epoll,
            node,
            self.counts,
            clock.now(),
        )));
        let listener = TcpListener::from_std(self.listener)?;
        let door = Rc::new(Door {
            app: app.clone(),
            router: self.router,
            worker: worker.clone(),
            seats,
            tasks: tasks.clone(),
            stop: self.stop.clone(),
        });
        tasks.spawn_local(door::accept(listener, door, self.closed));
        drive(&worker, &watched, &answers, &app, self.commands, &self.stop).await?;
        tasks.close();
        tasks.wait().await;
        Ok(())
    }
}

/// Turns the worker whenever there is something to do.
async fn drive(
    worker: &Shared,
    watched: &AsyncFd<OwnedFd>,
    answers: &Answers,
    app: &App,
    mut commands: mpsc::Receiver<Command>,
    stop: &CancellationToken,
) -> io::Result<()> {
    let (wake, clock) = (worker.borrow().wake(), app.clock);
    let mut ready: Vec<Ready> = Vec::new();
    let mut growing = Growing::default();
    loop {
        let began = clock.now();
        let turn = worker.borrow_mut().step(began, &ready);
        growing.retain_mut(|one| one.go_on(&mut worker.borrow_mut()));
        worker.borrow_mut().turned(began, clock.now());
        ready.clear();
        let published = std::mem::take(&mut *answers.known.borrow_mut());
        let more = turn.more || !published.is_empty() || !growing.is_empty();
        for (key, id, answer) in published {
            let answer = answer.map(|(position, duplicate)| (position.to_string(), duplicate));
            worker.borrow_mut().published(key, id, answer);
        }
        if more {
            worker.borrow_mut().sockets.take(&mut ready)?;
            while let Ok(command) = commands.try_recv() {
                obey(worker, command, app, &mut growing);
            }
            // Accepting and HTTP on this thread get their turn.
            tokio::task::yield_now().await;
            if stop.is_cancelled() {
                break;
            }
            continue;
        }
        let idle = turn.at.map(|at| clock.instant(at));
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(command) = commands.recv() => obey(worker, command, app, &mut growing),
            () = wake.raised() => {}
            () = answers.came.notified() => {}
            guard = watched.readable() => {
                let mut guard = guard?;
                if !worker.borrow_mut().sockets.take(&mut ready)? {
                    guard.clear_ready();
                }
            }
            () = sleep_until(idle.unwrap_or_else(tokio::time::Instant::now)), if idle.is_some() => {}
        }
    }
    worker.borrow_mut().end_all(clock.now());
    Ok(())
}

/// Streams that have grown, and who waits until all of them is followed.
type Growing = Vec<Grown>;

struct Grown {
    stream: Arc<Stream>,
    reply: Option<oneshot::Sender<()>>,
}

impl Grown {
    /// Whether there is something left to do.
    fn go_on(&mut self, worker: &mut Worker<Epoll, Node>) -> bool {
        let done = worker.take_up(&self.stream);
        if done && let Some(reply) = self.reply.take() {
            // Who asked may have gone.
            reply.send(()).unwrap_or_default();
        }
        !done
    }
}

fn obey(worker: &Shared, command: Command, app: &App, growing: &mut Growing) {
    let clock = app.clock;
    let mut worker = worker.borrow_mut();
    match command {
        Command::Adopt(socket, opening) => {
            if let Err(error) = worker.adopt(socket, (&[], &[]), *opening, clock.now()) {
                tracing::warn!(%error, "a socket could not be watched");
            }
        }
        Command::Shed(bytes) => {
            let closed = worker.shed(bytes);
            app.counts.memory.closed.add(closed as u64);
        }
        Command::Drain(window) => worker.drain(clock.now(), window),
        // Who asked may have gone; so below.
        Command::Close(pick, farewell, reply) => {
            let closed = worker.close_picked(&pick, farewell);
            reply.send(closed).map_or((), drop)
        }
        Command::EndStream(stream, reply) => {
            reply.send(worker.end_stream(&stream)).map_or((), drop)
        }
        Command::Grow(stream, reply) => {
            let reply = Some(reply);
            growing.push(Grown { stream, reply });
        }
        Command::Retell(retold) => worker.retell(retold),
        Command::Inspect(pick, most, reply) => {
            drop(reply.send(worker.inspect(&pick, most, clock.now())));
        }
        Command::Channels(most, reply) => {
            drop(reply.send(worker.inspect_channels(most, clock.now())));
        }
        Command::Named(channels, reply) => {
            drop(reply.send(worker.inspect_named(&channels, clock.now())));
        }
        Command::Count(reply) => reply.send(worker.len()).map_or((), drop),
    }
}
