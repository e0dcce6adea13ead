//! One worker's thread: its listener, its HTTP connections, its worker, on one `current_thread` runtime.

use std::{cell::RefCell, io, net::SocketAddr, os::fd::OwnedFd, rc::Rc, sync::Arc, time::Duration};

use axum::Router;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    io::unix::AsyncFd,
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    time::sleep_until,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{App, takeover};
use crate::{
    auth::Claims,
    clock::Clock,
    model::Channel,
    protocol::{PublishMessage, Refusal},
    publish::Answer,
    streams::Stream,
    telemetry::Throttle,
    worker::{
        ChannelInfo, ConnectionInfo, Farewell, Outside, Pick, Retold, Worker,
        poll::{Epoll, await_readable, tune},
        sockets::Ready,
    },
};

/// Sockets accepted in one go.
const ACCEPTS: usize = 64;
/// HTTP connections of one worker that were not handed over.
const HTTP_MAX: usize = 10_000;
/// Commands that may wait for a worker.
const COMMANDS_MAX: usize = 64;

/// What a worker is told from outside.
#[derive(Debug)]
pub enum Command {
    /// Tell everybody to come back elsewhere, spread over this time.
    Drain(Duration),
    /// Close these; answers with how many.
    Close(Pick, Farewell, oneshot::Sender<usize>),
    /// End the subscriptions to channels of this stream; answers with how many.
    EndStream(Arc<str>, oneshot::Sender<usize>),
    /// What of the settings has changed.
    Retell(Retold),
    /// List these connections, at most so many.
    Inspect(Pick, usize, oneshot::Sender<Vec<ConnectionInfo>>),
    /// List channels, at most so many, in no order.
    Channels(usize, oneshot::Sender<Vec<ChannelInfo>>),
    /// List these channels, where somebody follows them.
    Named(Arc<[Channel]>, oneshot::Sender<Vec<ChannelInfo>>),
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

type Answers = Rc<RefCell<Vec<(u64, u64, Answer)>>>;

/// The rest of the node, as a worker sees it.
pub struct Node {
    app: Arc<App>,
    answers: Answers,
}

impl Outside for Node {
    fn verify(&self, token: &str) -> Result<Arc<Claims>, Refusal> {
        self.app.verify(token)
    }
    fn stream(&self, name: &str) -> Option<Arc<Stream>> {
        self.app.streams.get(name)
    }
    fn publish(&self, from: u64, id: u64, record: PublishMessage, claims: Arc<Claims>) {
        let answer =
            self.app
                .publisher
                .publish_one(&record.stream, &claims, record.record.as_bytes());
        self.answers.borrow_mut().push((from, id, answer));
    }
    fn wall_s(&self) -> u64 {
        self.app.clock.wall_s()
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

type Shared = Rc<RefCell<Worker<Epoll, Node>>>;

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
        let answers = Answers::default();
        let clock = self.app.clock;
        let epoll = Epoll::new()?;
        let watched = await_readable(&epoll)?;
        let node = Node {
            app: self.app.clone(),
            answers: answers.clone(),
        };
        let worker = Rc::new(RefCell::new(Worker::new(
            self.settings,
            epoll,
            node,
            self.counts,
            clock.now(),
        )));
        let tasks = TaskTracker::new();
        let listener = TcpListener::from_std(self.listener)?;
        tasks.spawn_local(accept(
            listener,
            self.app,
            self.router,
            worker.clone(),
            tasks.clone(),
            self.closed,
            self.stop.clone(),
        ));
        drive(
            &worker,
            &watched,
            &answers,
            clock,
            self.commands,
            &self.stop,
        )
        .await?;
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
    clock: Clock,
    mut commands: mpsc::Receiver<Command>,
    stop: &CancellationToken,
) -> io::Result<()> {
    let wake = worker.borrow().wake();
    let mut ready: Vec<Ready> = Vec::new();
    loop {
        let began = clock.now();
        let turn = worker.borrow_mut().step(began, &ready);
        worker.borrow_mut().turned(began, clock.now());
        ready.clear();
        let published = std::mem::take(&mut *answers.borrow_mut());
        let more = turn.more || !published.is_empty();
        for (key, id, answer) in published {
            let answer = answer.map(|(position, duplicate)| (position.to_string(), duplicate));
            worker.borrow_mut().published(key, id, answer);
        }
        if more {
            worker.borrow_mut().sockets.take(&mut ready)?;
            while let Ok(command) = commands.try_recv() {
                obey(worker, command, clock);
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
            Some(command) = commands.recv() => obey(worker, command, clock),
            () = wake.raised() => {}
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

fn obey(worker: &Shared, command: Command, clock: Clock) {
    let mut worker = worker.borrow_mut();
    match command {
        Command::Drain(window) => worker.drain(clock.now(), window),
        // Who asked may have gone; so below.
        Command::Close(pick, farewell, reply) => {
            let closed = worker.close_picked(&pick, farewell);
            reply.send(closed).map_or((), drop)
        }
        Command::EndStream(stream, reply) => {
            reply.send(worker.end_stream(&stream)).map_or((), drop)
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

async fn accept(
    listener: TcpListener,
    app: Arc<App>,
    router: Router,
    worker: Shared,
    tasks: TaskTracker,
    closed: CancellationToken,
    stop: CancellationToken,
) {
    let (mut accepted, mut warning) = (0, Throttle::default());
    loop {
        let socket = tokio::select! {
            biased;
            () = closed.cancelled() => return,
            socket = listener.accept(), if tasks.len() <= HTTP_MAX => socket,
            () = tokio::time::sleep(Duration::from_millis(50)), if tasks.len() > HTTP_MAX => continue,
        };
        match socket {
            Ok((socket, peer)) if app.may_connect(peer.ip()) => {
                let (app, router, worker, stop) =
                    (app.clone(), router.clone(), worker.clone(), stop.clone());
                tasks.spawn_local(async move {
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => {}
                        () = http(socket, peer, &app, router, &worker) => {}
                    }
                });
            }
            Ok(_) => app.counts.refused_connections.add(1),
            Err(error) => {
                // Out of descriptors, or the peer has gone already: it passes.
                if let Some(kept_back) = warning.pass(app.clock.now()) {
                    tracing::warn!(%error, kept_back, "accepting failed");
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        accepted += 1;
        if accepted % ACCEPTS == 0 {
            tokio::task::yield_now().await;
        }
    }
}

/// Serves HTTP until a handler takes the socket over; then the worker adopts it.
async fn http(socket: TcpStream, peer: SocketAddr, app: &App, router: Router, worker: &Shared) {
    if let Err(error) = tune(&SockRef::from(&socket)) {
        tracing::debug!(%peer, %error, "socket options refused");
    }
    let reloads = app.live.number();
    let Some(handover) = Box::pin(takeover::serve(socket, router, app.header_bytes, peer)).await
    else {
        return;
    };
    // Leaving tokio's reactor also frees what it kept for the task that read the socket last.
    let socket = match handover.socket.into_std() {
        Ok(socket) => OwnedFd::from(socket),
        Err(error) => return tracing::warn!(%peer, %error, "a socket could not be handed over"),
    };
    let adopted =
        worker
            .borrow_mut()
            .adopt(socket, &handover.early, handover.opening, app.clock.now());
    match adopted {
        Ok(key) => {
            let mut worker = worker.borrow_mut();
            // A reload may have taken the key away since the token was looked at.
            worker.close_if(key, |id| app.live.revoked_since(reloads, id));
            worker.wake().raise();
        }
        Err(error) => tracing::warn!(%peer, %error, "a socket could not be watched"),
    }
}
