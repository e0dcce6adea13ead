//! A worker's door: accepting, turning away, and HTTP until a socket is handed over.
//!
//! Does: asks [`Admission`](super::admission::Admission), answers who is turned away with a problem, and makes room among
//! the HTTP connections: where a worker has as many as it may, the oldest that has said nothing yet goes. Owns: the HTTP
//! connections of one worker. Never knows: what is asked for. Keeps: I1, I7.

use std::{
    cell::Cell, collections::VecDeque, net::SocketAddr, os::fd::OwnedFd, rc::Rc, time::Duration,
};

use axum::Router;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    App,
    admission::{Seat, Turned},
    head, problem, takeover,
    thread::{Seats, Shared},
};
use crate::{telemetry::Throttle, worker::poll::tune};

/// Sockets accepted in one go.
const ACCEPTS: usize = 64;
/// HTTP connections of one worker that were not handed over.
pub(super) const HTTP_MAX: usize = 10_000;
/// Connections of one worker that are being told why they are turned away; beyond it they are closed without a word.
const TURNED_MAX: usize = 1024;
/// Who is turned away is told within this time: some clients take an answer only once they have asked.
const TURNING: Duration = Duration::from_secs(3);
/// … of which this much is for its request to come.
const FIRST_WORDS: Duration = Duration::from_secs(1);

/// One worker's door.
pub(super) struct Door {
    pub(super) app: std::sync::Arc<App>,
    pub(super) router: Router,
    pub(super) worker: Shared,
    pub(super) seats: Seats,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
}

/// Counts while it lives.
struct Counted(Rc<Cell<usize>>);

impl Counted {
    fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// A connection whose first head has not come.
#[derive(Default)]
struct Unheard {
    over: Cell<bool>,
    go: Notify,
}

/// Those connections, oldest first, among others that have been heard since.
#[derive(Default)]
struct Waiting(VecDeque<Rc<Unheard>>);

impl Waiting {
    fn add(&mut self) -> Rc<Unheard> {
        while self.0.front().is_some_and(|first| first.over.get()) {
            self.0.pop_front();
        }
        if self.0.len() >= 2 * HTTP_MAX {
            self.0.retain(|unheard| !unheard.over.get());
        }
        let unheard = Rc::<Unheard>::default();
        self.0.push_back(unheard.clone());
        unheard
    }

    /// Sends the oldest away; tells whether there was one.
    fn push_out(&mut self) -> bool {
        while let Some(first) = self.0.pop_front() {
            if !first.over.replace(true) {
                first.go.notify_one();
                return true;
            }
        }
        false
    }
}

/// Accepts until it is closed.
pub(super) async fn accept(listener: TcpListener, door: Rc<Door>, closed: CancellationToken) {
    let (mut accepted, mut warning) = (0, Throttle::default());
    let (http, turned) = <(Rc<Cell<usize>>, Rc<Cell<usize>>)>::default();
    let mut waiting = Waiting::default();
    loop {
        let socket = tokio::select! {
            biased;
            () = closed.cancelled() => return,
            socket = listener.accept() => socket,
        };
        match socket {
            Ok((socket, peer)) => {
                let (live, now) = (door.app.live.load(), door.app.clock.now());
                let mut entered = live.admission.enter(peer.ip(), now);
                drop(live);
                if entered.is_ok() && http.get() >= HTTP_MAX && !waiting.push_out() {
                    entered = Err(Turned::HttpFull);
                }
                match entered {
                    Ok(seat) => serve(
                        &door,
                        socket,
                        peer,
                        seat,
                        waiting.add(),
                        Counted::new(&http),
                    ),
                    Err(why) => turn_away(&door, socket, why, &turned),
                }
            }
            Err(error) => {
                // Out of descriptors, or the peer has gone already: it passes.
                if let Some(kept_back) = warning.pass(door.app.clock.now()) {
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

fn serve(
    door: &Rc<Door>,
    socket: TcpStream,
    peer: SocketAddr,
    seat: Option<Seat>,
    unheard: Rc<Unheard>,
    counted: Counted,
) {
    let own = door.clone();
    own.app.counts.http.add(1);
    door.tasks.spawn_local(async move {
        tokio::select! {
            biased;
            () = own.stop.cancelled() => {}
            () = unheard.go.notified() => own.app.counts.turned.unheard.add(1),
            () = http(&own, socket, peer, seat, &unheard) => {}
        }
        unheard.over.set(true);
        own.app.counts.http.sub(1);
        drop(counted);
    });
}

/// Serves HTTP until a handler takes the socket over; then the worker adopts it.
async fn http(
    door: &Door,
    mut socket: TcpStream,
    peer: SocketAddr,
    seat: Option<Seat>,
    unheard: &Rc<Unheard>,
) {
    if let Err(error) = tune(&SockRef::from(&socket)) {
        tracing::debug!(%peer, %error, "socket options refused");
    }
    let max = door.app.http;
    let read = head::read(&mut socket, max.head_buffer(), max.head_timeout);
    let Some(first) = read.await else {
        return;
    };
    let reloads = door.app.live.number();
    let (heard, router) = (unheard.clone(), door.router.clone());
    let on_head = move || heard.over.set(true);
    let served = takeover::serve((socket, first), router, max, peer, on_head);
    let Some(handover) = Box::pin(served).await else {
        return;
    };
    // Leaving tokio's reactor also frees what it kept for the task that read the socket last.
    let socket = match handover.socket.into_std() {
        Ok(socket) => OwnedFd::from(socket),
        Err(error) => return tracing::warn!(%peer, %error, "a socket could not be handed over"),
    };
    let mut worker = door.worker.borrow_mut();
    let said = (&handover.head[..], &handover.early[..]);
    match worker.adopt(socket, said, handover.opening, door.app.clock.now()) {
        Ok(key) => {
            // A reload may have taken the key away since the token was looked at.
            worker.close_if(key, |id| door.app.live.revoked_since(reloads, id));
            // What came with the handshake may have ended it already.
            if let Some(seat) = seat.filter(|_| worker.holds(key)) {
                door.seats.borrow_mut().insert(key.number(), seat);
            }
            worker.wake().raise();
        }
        Err(error) => tracing::warn!(%peer, %error, "a socket could not be watched"),
    }
}

/// Tells why, where not too many are being told already.
fn turn_away(door: &Rc<Door>, mut socket: TcpStream, why: Turned, turned: &Rc<Cell<usize>>) {
    let counts = &door.app.counts.turned;
    let count = match why {
        Turned::NodeRate => &counts.node_rate,
        Turned::AddressRate => &counts.address_rate,
        Turned::AddressFull => &counts.address_connections,
        Turned::HttpFull => &counts.http,
    };
    count.add(1);
    if turned.get() >= TURNED_MAX {
        return;
    }
    let (counted, stop) = (Counted::new(turned), door.stop.clone());
    let words = problem::whole(&why.refusal(1000 + door.app.jitter(2000)));
    let telling = async move {
        let mut asked = [0; 4096];
        // Whatever it asks, and if nothing: the answer is the same.
        drop(timeout(FIRST_WORDS, socket.read(&mut asked)).await);
        if socket.write_all(&words).await.is_ok() {
            takeover::linger(socket).await;
        }
    };
    door.tasks.spawn_local(async move {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            told = timeout(TURNING, telling) => drop(told),
        }
        drop(counted);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_that_has_said_nothing_goes_first() {
        let mut waiting = Waiting::default();
        let all: Vec<_> = (0..4).map(|_| waiting.add()).collect();
        // The first has been heard, the third has gone.
        all[0].over.set(true);
        all[2].over.set(true);
        assert!(waiting.push_out());
        assert!(all[1].over.get() && !all[3].over.get());
        assert!(waiting.push_out());
        assert!(all[3].over.get());
        assert!(!waiting.push_out());
    }

    #[test]
    fn who_has_been_heard_is_not_remembered_for_ever() {
        let mut waiting = Waiting::default();
        let silent = waiting.add();
        for _ in 0..10 * HTTP_MAX {
            waiting.add().over.set(true);
        }
        assert!(waiting.0.len() <= 2 * HTTP_MAX, "{}", waiting.0.len());
        assert!(waiting.push_out() && silent.over.get());
    }
}
